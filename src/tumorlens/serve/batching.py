"""Requests that come together go through the network together, on one thread beside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tumorlens.inference.classifier import BATCH, Classifier, Outputs
from tumorlens.inference.uncertainty import Judgement
from tumorlens.readers.pixels import Pixels
from tumorlens.serve.problems import stopping


@dataclass(frozen=True, eq=False)
class Answer:
    """What the classifier says of the n images of one request."""

    judgement: Judgement
    heatmap: npt.NDArray[np.float32]
    """float32 [n, K, 7, 7], signed."""
    seconds: float
    """Of inference and judgement for one image: the batch's time, shared equally."""


@dataclass(frozen=True, eq=False)
class _Asked:
    pixels: Pixels
    coverage: float
    answer: asyncio.Future[Answer]


class Batcher:
    """Collects images of all requests, first come, first served; made by `batching`.

    While a batch is classified the next one gathers, so that batches grow with the load by themselves. The window
    is for the start: requests that come a little after the first one go with it.
    """

    def __init__(self, classifier: Classifier, window: float, batch: int, note: Callable[[int], None]) -> None:
        self._classifier, self._window, self._batch, self._note = classifier, window, batch, note
        self._waiting: deque[_Asked] = deque()
        self._images = 0
        self._some = asyncio.Event()

    async def classify(self, pixels: Pixels, coverage: float) -> Answer:
        """Answer for uint8 [n, 224, 224, 3], n ≥ 1; a cancelled call takes its images out of the queue.

        Raises
        ------
        ConfigError, DataError
            As `Classifier.run` and `Trust.judge` do.
        """
        asked = _Asked(pixels, coverage, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._images += len(pixels)
        self._some.set()
        return await asked.answer

    async def work(self) -> None:
        """Classify what is asked, for ever."""
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                await self._some.wait()
                if self._images < self._batch and self._window:
                    await asyncio.sleep(self._window)
                group = self._taken()
                if not group:
                    continue
                work = asyncio.get_running_loop().run_in_executor(thread, _answers, self._classifier, group)
                try:
                    answers = await work
                except Exception as error:  # handed over to those who asked
                    for asked in group:
                        if not asked.answer.done():
                            asked.answer.set_exception(error)
                    continue
                self._note(sum(len(asked.pixels) for asked in group))
                for asked, answer in zip(group, answers, strict=True):
                    if not asked.answer.done():
                        asked.answer.set_result(answer)

    def give_up(self) -> None:
        """Answer what still waits that the service is stopping; a batch that is in work is finished."""
        while self._waiting:
            asked = self._waiting.popleft()
            if not asked.answer.done():
                asked.answer.set_exception(stopping("The image was not classified in time."))
        self._images = 0
        self._some.clear()

    def _taken(self) -> list[_Asked]:
        """The next batch, without those that nobody waits for any more."""
        group: list[_Asked] = []
        n = 0
        while self._waiting and (not group or n + len(self._waiting[0].pixels) <= self._batch):
            asked = self._waiting.popleft()
            self._images -= len(asked.pixels)
            if not asked.answer.done():
                group.append(asked)
                n += len(asked.pixels)
        if not self._waiting:
            self._some.clear()
        return group


@asynccontextmanager
async def batching(
    classifier: Classifier, *, window: float, batch: int = BATCH, note: Callable[[int], None] = lambda _n: None
) -> AsyncIterator[Batcher]:
    """A batcher at work.

    Parameters
    ----------
    window
        Seconds that the first image waits for others.
    batch
        Images through the network at once; more come only from one request of more.
    note
        Called with the size of each batch.
    """
    batcher = Batcher(classifier, window, batch, note)
    worker = asyncio.create_task(batcher.work())
    try:
        yield batcher
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        batcher.give_up()


def _answers(classifier: Classifier, group: Sequence[_Asked]) -> list[Answer]:
    began = time.perf_counter()
    outputs = classifier.run(np.concatenate([asked.pixels for asked in group]))
    starts = np.cumsum([0, *(len(asked.pixels) for asked in group)]).tolist()
    judged: dict[int, Judgement] = {}
    for coverage in {asked.coverage for asked in group}:  # nearly always one
        alike = [i for i, asked in enumerate(group) if asked.coverage == coverage]
        at = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in alike])
        chosen = Outputs(outputs.logits[at], outputs.features[at], outputs.heatmap[at], outputs.statistics[at])
        whole = classifier.judge(chosen, np.concatenate([group[i].pixels for i in alike]), coverage=coverage)
        first = 0
        for i in alike:
            judged[i] = _part(whole, first, first + len(group[i].pixels))
            first += len(group[i].pixels)
    seconds = (time.perf_counter() - began) / starts[-1]
    return [Answer(judged[i], outputs.heatmap[starts[i] : starts[i + 1]].copy(), seconds) for i in range(len(group))]


def _part(judged: Judgement, first: int, end: int) -> Judgement:
    return Judgement(
        judged.probabilities[first:end], judged.sets[first:end], judged.verdicts[first:end],
        judged.reasons[first:end], judged.scores[first:end],
    )  # fmt: skip
