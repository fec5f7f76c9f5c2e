"""Settings, tokens, places, batches and multipart bodies, one by one."""

import asyncio
import io
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom_files import write_nifti
from serve_model import png, problem_of, service, write_model

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.inference.classifier import load_classifier
from tumorlens.serve.batching import batching
from tumorlens.serve.multipart import files_of
from tumorlens.serve.pictures import MAX_PICTURES, spread
from tumorlens.serve.problems import Problem
from tumorlens.serve.server import serve
from tumorlens.serve.service import PredictionOptions
from tumorlens.serve.settings import Settings

TOKENS = ("first-token-of-the-test", "second-token-of-the-test")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "classifier.onnx")


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# who may ask\n" + "\n".join(TOKENS) + "\n")
    return path


def images(n):
    return np.random.default_rng(n).integers(0, 255, (n, 224, 224, 3), np.uint8)


class TestSettings:
    @pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
    def test_beyond_this_machine_only_with_tokens_or_in_the_open(self, host, token_file):
        with pytest.raises(ConfigError, match="token-file"):
            Settings(host=host)
        Settings(host=host, insecure=True)
        Settings(host=host, token_file=token_file)

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
    def test_loopback(self, host):
        assert Settings(host=host).is_loopback

    @pytest.mark.parametrize(
        "wrong",
        [{"port": -1}, {"port": 65536}, {"workers": 0}, {"queue": 0}, {"max_megabytes": 0}, {"window": 2},
         {"max_seconds": 0}, {"per_client": 0}, {"cors": ("*",)}, {"cors": ("https://a.org/",)}],
    )  # fmt: skip
    def test_wrong_values_name_the_option(self, wrong):
        with pytest.raises(ConfigError, match="--" + next(iter(wrong)).replace("_", "-")) as found:
            Settings(**wrong)
        assert found.value.cure

    @pytest.mark.parametrize("content", [None, "", "# nothing\n", "short\n", "ä" * 20])
    def test_unusable_token_files(self, content, tmp_path):
        path = tmp_path / "tokens"
        if content is not None:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="token-file") as found:
            Settings(token_file=path).tokens()
        assert content is None or not content.strip() or content.strip() not in str(found.value)

    def test_what_cannot_be_served_is_told_before_anything_listens(self, model, tmp_path):
        with pytest.raises(RunError, match="not there"):
            serve(Settings(model=tmp_path / "none.onnx"))
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunError, match="port"):
            serve(Settings(model=model, port=taken.getsockname()[1]))


class TestSecurity:
    def test_tokens(self, model, token_file):
        with service(model, token_file=token_file, host="0.0.0.0") as here:
            for path in ("/v1/model", "/metrics", "/v1/sample"):
                assert problem_of(here.get(path)) == (401, "unauthorized")
                assert "Bearer" in here.get(path).headers["www-authenticate"]
            for wrong in (
                "Bearer x",
                f"Basic {TOKENS[0]}",
                f"Bearer {TOKENS[0]}x",
                "Bearer",
                f"Bearer {TOKENS[0][:-1]}",
            ):
                assert here.get("/v1/model", headers={"authorization": wrong}).status_code == 401
            for token in TOKENS:
                assert here.get("/v1/model", headers={"authorization": f"Bearer {token}"}).status_code == 200
            assert here.get("/healthz").status_code == here.get("/readyz").status_code == 200
            description = here.get("/openapi.json").json()
            assert description["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
            asking = {path for path, one in description["paths"].items() for op in one.values() if "security" in op}
            assert asking == {"/v1/predict", "/v1/batch", "/v1/model", "/v1/sample", "/metrics"}

    def test_a_page_cannot_ask_by_a_name_of_its_own(self, model):
        with service(model) as here:
            for host in (
                "evil.example",
                "evil.example:8000",
                "localhost.evil.example",
                "",
                "10.0.0.1",
                "127.0.0.1.nip.io",
            ):
                assert here.get("/v1/model", headers={"host": host}).status_code == 400
            for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "[::1]", "127.0.0.9:8000"):
                assert here.get("/v1/model", headers={"host": host}).status_code == 200

    def test_cors_is_for_those_named(self, model):
        origin = "https://viewer.example.org"
        with service(model, cors=(origin,)) as here:
            asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
            for name, status in ((origin, 200), ("https://evil.example", 400)):
                answer = here.run(here.client.options("/v1/predict", headers=asked | {"origin": name}))
                assert answer.status_code == status
            refused = here.post("/v1/predict", content=b"x", headers={"origin": origin})
            assert refused.headers["access-control-allow-origin"] == origin


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

    def test_batches_that_nobody_reads_do_not_stand_in_the_way_of_volumes(self, model, tmp_path):
        volume, _ = write_nifti(tmp_path / "volume.nii.gz", 0, "glioma", 0)
        with service(model) as here:
            serving = here.app.state.service
            streams = [serving.batch([("a.png", io.BytesIO(png()))] * 20, PredictionOptions()) for _ in range(8)]

            async def begin():
                return [asyncio.create_task(anext(stream)) for stream in streams]

            begun = here.run(begin())
            assert here.predict(volume.read_bytes(), slice=0).status_code == 200

            async def end():
                for task in begun:
                    task.cancel()
                await asyncio.gather(*begun, return_exceptions=True)
                for stream in streams:
                    await stream.aclose()
                # While there is a loop to answer them: else they wait at the interpreter's end.
                await asyncio.to_thread(serving.batches.shutdown)

            here.run(end())

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

    def test_an_answer_that_takes_too_long(self, model):
        with service(model, max_seconds=0.2, window=1.0) as here:
            assert problem_of(here.predict(png())) == (503, "took-too-long")
            assert here.app.state.admission.active == 0

    def test_draining(self, model):
        with service(model) as here:
            here.app.state.admission.draining = True
            for answer in (here.predict(png()), here.get("/readyz")):
                assert problem_of(answer) == (503, "stopping")
                assert answer.headers["connection"] == "close"
                assert "retry-after" in answer.headers
            assert here.get("/healthz").status_code == 200


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

    def test_a_batch_is_not_larger_than_said(self, model):
        async def work(batcher):
            return await asyncio.gather(*(batcher.classify(images(3), 0.95) for _ in range(5)))

        _, sizes = self.run(model, work, window=0.02, batch=7)
        assert sizes == [6, 6, 3]

    def test_what_nobody_waits_for_is_left_out(self, model):
        async def work(batcher):
            gone = asyncio.create_task(batcher.classify(images(2), 0.95))
            kept = asyncio.create_task(batcher.classify(images(1), 0.95))
            await asyncio.sleep(0)
            gone.cancel()
            return await kept

        _, sizes = self.run(model, work, window=0.05)
        assert sizes == [1]

    def test_giving_up_answers_those_who_wait(self, model):
        async def work(batcher):
            asked = [asyncio.create_task(batcher.classify(images(1), 0.95)) for _ in range(2)]
            await asyncio.sleep(0)
            batcher.reject_waiting()
            return await asyncio.gather(*asked, return_exceptions=True), await batcher.classify(images(1), 0.95)

        (given_up, later), sizes = self.run(model, work, window=0.05)
        assert [problem.kind for problem in given_up] == ["stopping"] * 2
        assert len(later.judgement.verdicts) == 1
        assert sizes == [1]

    def test_an_error_reaches_those_who_asked_and_nobody_else(self, model):
        async def work(batcher):
            wrong = await asyncio.gather(batcher.classify(images(1)[:, :100], 0.95), return_exceptions=True)
            return wrong[0], await batcher.classify(images(1), 0.95)

        (wrong, right), _ = self.run(model, work, window=0.0)
        assert isinstance(wrong, ConfigError)
        assert len(right.judgement.verdicts) == 1


class TestParts:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.binary(max_size=200) | st.sampled_from([b"\r\n", b"\r\n--", b"--\r\n"]), min_size=1, max_size=5))
    def test_what_httpx_writes_is_read_back(self, contents):
        request = httpx.Request("POST", "http://localhost", files=[("f", ("n.png", c)) for c in contents])
        found = list(files_of(request.read(), request.headers["content-type"], 10))
        assert [(name, part.read()) for name, part in found] == [("n.png", content) for content in contents]

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.sampled_from([b"--b", b"--", b"\r\n", b"a: b", b"x", b"\n"]), max_size=12).map(b"".join))
    def test_anything_is_parts_or_a_problem(self, body):
        try:
            found = [part for _, part in files_of(body, "multipart/form-data; boundary=b", 9)]
        except Problem as problem:
            found = []
            status = problem.status
        assert (found and all(isinstance(part, io.BytesIO) for part in found)) or status in (400, 413)

    def test_parts_have_a_cap_and_need_no_header(self):
        body = b"--b\r\n\r\nx\r\n" * 3 + b"--b--"
        found = files_of(body, "multipart/mixed; boundary=b", 3)
        assert [(name, part.read()) for name, part in found] == [(f"part-{i}", b"x") for i in (1, 2, 3)]
        with pytest.raises(Problem, match="3 parts"):
            files_of(body, "multipart/mixed; boundary=b", 2)

    def test_headers_have_a_cap_together(self):
        body = (b"--b\r\na: " + b"x" * 8_000 + b"\r\n\r\nx\r\n") * 600 + b"--b--"
        with pytest.raises(Problem, match="headers of all parts are over 4,000,000 bytes"):
            files_of(body, "multipart/mixed; boundary=b", 1000)


def test_pictures_are_spread_evenly():
    assert spread(None) == spread(MAX_PICTURES) == frozenset(range(MAX_PICTURES))
    assert spread(3) == {0, 1, 2}
    assert spread(10 * MAX_PICTURES) == frozenset(range(0, 10 * MAX_PICTURES, 10))


def test_no_torch_and_nothing_of_the_study_is_imported():
    code = (
        "import sys, tumorlens.serve.server, tumorlens.data.phantom.generator\n"
        "print([m for m in ('torch', 'torchvision', 'scipy', 'sklearn', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
