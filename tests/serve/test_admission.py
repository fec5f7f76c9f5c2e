"""Limits on open requests, clients and body bytes."""

import asyncio
import time

from serve_model import TOKENS, png, problem_of, service


class TestPlaces:
    def test_a_full_queue_says_so_at_once(self, model):
        with service(model, queue=2, window=0.5) as here:

            async def three():
                asked = [asyncio.create_task(here.client.post("/v1/predict", content=png())) for _ in range(2)]
                while here.app.state.admission.active < 2:
                    await asyncio.sleep(0.005)
                assert "tumorlens_requests_in_work 2.0" in (await here.client.get("/metrics")).text
                began = time.monotonic()
                late = await here.client.post("/v1/predict", content=png())
                ready = await here.client.get("/readyz")
                return late, ready, time.monotonic() - began, await asyncio.gather(*asked)

            late, ready, took, others = here.run(three())
            assert problem_of(late) == problem_of(ready) == (503, "busy")
            assert int(late.headers["retry-after"]) >= 1
            assert took < 0.4
            assert [answer.status_code for answer in others] == [200, 200]
            assert here.predict(png()).status_code == 200
            assert "tumorlens_requests_in_work 0.0" in here.run(here.client.get("/metrics")).text
            assert here.app.state.admission.body_bytes == here.app.state.admission.active == 0

    def test_one_client_may_not_take_all(self, model, token_file):
        with service(model, token_file=token_file, per_client=1, window=0.3) as here:

            def ask(token):
                headers = {"authorization": f"Bearer {token}"}
                return here.client.post("/v1/predict", content=png(), headers=headers)

            async def both():
                first = asyncio.create_task(ask(TOKENS[0]))
                while not here.app.state.admission.active:
                    await asyncio.sleep(0.005)
                return await asyncio.gather(first, ask(TOKENS[0]), ask(TOKENS[1]))

            first, again, other = here.run(both())
            assert problem_of(again) == (429, "too-many-requests")
            assert first.status_code == other.status_code == 200

    def test_a_clients_bodies_on_their_way_count_as_its_own(self, model, token_file):
        with service(model, token_file=token_file, per_client=1) as here:
            go_on = asyncio.Event()

            async def stalled():
                yield png()[:10]
                await go_on.wait()
                yield png()[10:]

            def ask(token, content):
                headers = {"authorization": f"Bearer {token}"}
                return here.client.post("/v1/predict", content=content, headers=headers)

            async def work():
                first = asyncio.create_task(ask(TOKENS[0], stalled()))
                while not here.app.state.admission.body_bytes:
                    await asyncio.sleep(0.005)
                again, other = await ask(TOKENS[0], png()), await ask(TOKENS[1], png())
                go_on.set()
                return await first, again, other

            first, again, other = here.run(work())
            assert problem_of(again) == (429, "too-many-requests")
            assert first.status_code == other.status_code == 200
            assert not here.app.state.admission.by_client

    def test_too_many_bytes(self, model):
        async def endless():
            for _ in range(40):
                yield bytes(100_000)

        with service(model, max_megabytes=1) as here:
            declared = here.post("/v1/predict", content=bytes(1_000_001))
            assert problem_of(declared) == problem_of(here.post("/v1/predict", content=endless())) == (413, "too-large")
            assert declared.headers["connection"] == "close"
            assert here.app.state.admission.body_bytes == 0

    def test_bodies_together_have_a_cap(self, model):
        with service(model) as here:
            here.app.state.admission.body_bytes = here.app.state.admission.settings.max_held
            assert problem_of(here.predict(png())) == (503, "busy")

    def test_draining(self, model):
        with service(model) as here:
            here.app.state.admission.draining = True
            for answer in (here.predict(png()), here.get("/readyz")):
                assert problem_of(answer) == (503, "stopping")
                assert answer.headers["connection"] == "close"
                assert "retry-after" in answer.headers
            assert here.get("/healthz").status_code == 200
