"""Dynamic batching."""

import asyncio

import numpy as np

from tumorlens.core.errors import ConfigError
from tumorlens.inference.classifier import load_classifier
from tumorlens.serve.batching import batching


def images(n):
    return np.random.default_rng(n).integers(0, 255, (n, 224, 224, 3), np.uint8)


class TestBatching:
    def run(self, model, work, **more):
        sizes = []

        async def whole():
            async with batching(load_classifier(model, 1), on_batch=sizes.append, **more) as batcher:
                return await work(batcher)

        return asyncio.run(whole()), sizes

    def test_requests_that_come_together_go_together(self, model):
        async def work(batcher):
            return await asyncio.gather(*(batcher.classify(images(n), 0.95) for n in (1, 2, 3)))

        answers, sizes = self.run(model, work, window=0.05)
        assert sizes == [6]
        classifier = load_classifier(model, 1)
        for n, answer in zip((1, 2, 3), answers, strict=True):
            alone = classifier.classify(images(n))
            np.testing.assert_allclose(answer.judgement.probabilities, alone.probabilities, atol=1e-5)
            np.testing.assert_allclose(answer.heatmap, classifier.run(images(n)).heatmap, atol=1e-5)
            assert answer.judgement.verdicts == alone.verdicts

    def test_a_batch_is_not_larger_than_its_limit(self, model):
        async def work(batcher):
            return await asyncio.gather(*(batcher.classify(images(3), 0.95) for _ in range(5)))

        _, sizes = self.run(model, work, window=0.02, batch=7)
        assert sizes == [6, 6, 3]

    def test_cancelled_requests_are_left_out(self, model):
        async def work(batcher):
            gone = asyncio.create_task(batcher.classify(images(2), 0.95))
            kept = asyncio.create_task(batcher.classify(images(1), 0.95))
            await asyncio.sleep(0)
            gone.cancel()
            return await kept

        _, sizes = self.run(model, work, window=0.05)
        assert sizes == [1]

    def test_rejecting_fails_the_waiting_requests(self, model):
        async def work(batcher):
            asked = [asyncio.create_task(batcher.classify(images(1), 0.95)) for _ in range(2)]
            await asyncio.sleep(0)
            batcher.reject_waiting()
            return await asyncio.gather(*asked, return_exceptions=True), await batcher.classify(images(1), 0.95)

        (given_up, later), sizes = self.run(model, work, window=0.05)
        assert [problem.kind for problem in given_up] == ["stopping"] * 2
        assert len(later.judgement.verdicts) == 1
        assert sizes == [1]

    def test_an_error_reaches_only_its_requests(self, model):
        async def work(batcher):
            wrong = await asyncio.gather(batcher.classify(images(1)[:, :100], 0.95), return_exceptions=True)
            return wrong[0], await batcher.classify(images(1), 0.95)

        (wrong, right), _ = self.run(model, work, window=0.0)
        assert isinstance(wrong, ConfigError)
        assert len(right.judgement.verdicts) == 1
