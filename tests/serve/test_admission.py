"""Requests that were made to slip past: a guard, a parser, a wait."""

import asyncio
import io
import json
import re
import sys
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image
from serve_model import png, problem_of, service, write_model

from tumorlens.cli.main import main
from tumorlens.readers import ReadLimits
from tumorlens.serve import app
from tumorlens.serve import service as answering
from tumorlens.serve.admission import Admission
from tumorlens.serve.middleware import ServiceMiddleware
from tumorlens.serve.problems import TYPES
from tumorlens.serve.service import CHUNK, PredictionOptions
from tumorlens.serve.settings import Settings

WRONG = ["*=idna''x", "*=a%00b''x", "*=utf-8''x; {0}*1=y", "*" + "9" * 5_000 + "=x"]  # after a parameter's name
KINDS = ["idna", "nul", "mixed", "digits"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "classifier.onnx")


@pytest.mark.parametrize("path", ["/metrics", "/metrics%0A", "/metrics/", "/v1/model%0A"])
def test_no_spelling_of_a_path_goes_without_a_token(model, tmp_path, path):
    (tmp_path / "tokens").write_text("a-token-of-this-test\n")
    with service(model, token_file=tmp_path / "tokens") as here:
        assert problem_of(here.get(path)) == (401, "unauthorized")


def test_every_problem_stands_in_the_documentation():
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (.+?) \|", text, flags=re.M)
    assert {(int(status), kind) for status, kinds in rows for kind in re.findall("`(.+?)`", kinds)} == {
        (status, kind) for kind, (status, _) in TYPES.items()
    }


def test_without_the_extra_the_cure_is_one_for_the_source(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tumorlens.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    err = capsys.readouterr().err
    assert "'uvicorn'" in err
    assert "pip install '.[serve]'" in err  # there is no such package to be had elsewhere


class TestACancelledRequest:
    """uvicorn cancels what is still open when its patience is over."""

    @pytest.fixture
    def ask(self):
        """Cancels a request to the gate; gives what was sent and what was counted."""

        def ask(*, draining, begun):
            sent, noted = [], []

            async def never(_scope, _receive, send):
                if begun:
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                await asyncio.sleep(60)

            async def send(message):
                sent.append(message)

            async def work():
                held = Admission(Settings(quiet=True), draining=draining)
                gate = ServiceMiddleware(never, held, frozenset(), lambda *words: noted.append(words[2]))
                scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [(b"host", b"localhost")]}
                asked = asyncio.create_task(gate(scope, None, send))
                await asyncio.sleep(0.01)
                asked.cancel()
                try:
                    await asked
                finally:
                    assert held.open_requests == 0

            with nullcontext() if draining else pytest.raises(asyncio.CancelledError):
                asyncio.run(work())
            return sent, noted

        return ask

    def test_is_answered_where_the_service_stops(self, ask):
        (start, body), noted = ask(draining=True, begun=False)
        assert start["status"] == 503
        assert noted == [503]
        assert json.loads(body["body"])["type"] == "urn:tumorlens:problem:stopping"
        assert (b"connection", b"close") in start["headers"]

    def test_whose_answer_has_begun_is_left_as_it_is(self, ask):
        sent, _ = ask(draining=True, begun=True)
        assert [message["type"] for message in sent] == ["http.response.start"]

    def test_is_cancelled_else(self, ask):
        assert ask(draining=False, begun=False) == ([], [499])


class TestParameters:
    @pytest.mark.parametrize("wrong", WRONG, ids=KINDS)
    def test_of_a_part(self, model, wrong):
        header = "Content-Disposition: form-data; filename" + wrong.format("filename")
        body = f"--b\r\n{header}\r\n\r\nx\r\n--b--".encode()
        with service(model) as here:
            answer = here.post("/v1/batch", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        assert problem_of(answer) == (400, "bad-request")
        assert "Part 1" in answer.json()["detail"]

    @pytest.mark.parametrize("wrong", WRONG, ids=KINDS)
    def test_of_the_request(self, model, wrong):
        kind = "multipart/form-data; boundary" + wrong.format("boundary")
        with service(model) as here:
            answer = here.post("/v1/batch", content=b"--x\r\n\r\nx\r\n--x--", headers={"content-type": kind})
        assert problem_of(answer) == (400, "bad-request")


def test_zips_of_a_form_have_a_limit_together(model, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i}.png", b"x")
    monkeypatch.setattr(Settings, "limits", ReadLimits(entries=100))
    with service(model) as here:
        ask = [("f", (f"{i}.zip", content.getvalue())) for i in range(3)]
        rows = [json.loads(line) for line in here.post("/v1/batch", files=ask).text.splitlines()]
        whole = [json.loads(line) for line in here.post("/v1/batch", files=ask[:2]).text.splitlines()]
    assert (rows[-1]["file"], rows[-1]["verdict"]) == (None, "error: over 100 files in all")
    assert len(rows) - 1 <= 100
    assert len(whole) == 80
    assert all(row["file"] for row in whole)


def test_who_does_not_read_a_batch_is_given_up(monkeypatch):
    monkeypatch.setattr(app, "STALL", 0.05)
    sent = []

    async def lines():
        for _ in range(9):
            yield b"x\n"

    async def send(message):
        sent.append(message["type"])
        if len(sent) > 3:
            await asyncio.sleep(60)

    began = time.perf_counter()
    with pytest.raises(TimeoutError):  # which the server takes for a client that hung up
        asyncio.run(app.NdjsonResponse(lines()).stream_response(send))
    assert len(sent) == 4
    assert time.perf_counter() - began < 10


class TestOneSlice:
    @pytest.fixture
    def pages(self):
        content = io.BytesIO()
        page = Image.open(io.BytesIO(png())).resize((32, 32))
        page.save(content, "TIFF", save_all=True, append_images=[page] * 59)
        return content.getvalue()

    @pytest.fixture
    def read(self, monkeypatch):
        """Counts what is read; each takes a moment."""
        found, plain = [], answering.read_stream

        def counted(*args, **more):
            for item in plain(*args, **more):
                found.append(item)
                time.sleep(0.02)
                yield item

        monkeypatch.setattr(answering, "read_stream", counted)
        return found

    def test_is_read_up_to_its_chunk(self, model, pages, read):
        with service(model) as here:
            rows = here.predict(pages, slice=2 * CHUNK + 1).json()["rows"]
        assert [row["slice"] for row in rows] == [2 * CHUNK + 1]
        assert len(read) == 3 * CHUNK

    def test_that_takes_too_long_is_not_read_on(self, model, pages, read):
        with service(model, max_seconds=0.3) as here:
            assert problem_of(here.predict(pages, slice=59)) == (503, "took-too-long")
            before = len(read)
            time.sleep(0.6)
            assert len(read) <= before + CHUNK


class TestWaitingBatch:
    @pytest.mark.parametrize("why", ["late", "stopping"])
    def test_that_gets_no_turn_says_so_in_its_last_line(self, model, why):
        with service(model, max_seconds=3.0 if why == "late" else 30.0) as here:
            serving = here.app.state.service

            async def ask():
                taken = [await serving.streams.acquire() for _ in range(answering._CONCURRENT)]
                asked = asyncio.create_task(here.client.post("/v1/batch", files=[("f", ("a.png", png()))]))
                await asyncio.sleep(0.3)
                here.app.state.admission.must_stop = why == "stopping"
                answer = await asyncio.wait_for(asked, 30)
                for _ in taken:
                    serving.streams.release()
                return answer

            rows = [json.loads(line) for line in here.run(ask()).text.splitlines()]
            assert [row["file"] for row in rows] == [None]
            told = {"late": "error: it took too long", "stopping": "error: the service is stopping"}
            assert rows[0]["verdict"] == told[why]
            assert serving.streams._value == answering._CONCURRENT

    def test_that_is_given_up_leaves_its_place(self, model):
        with service(model) as here:
            serving = here.app.state.service

            async def ask():
                for _ in range(answering._CONCURRENT):
                    await serving.streams.acquire()
                batches = [serving.batch([("a.png", io.BytesIO(png()))], PredictionOptions()) for _ in range(2)]
                first, second = (asyncio.create_task(anext(lines)) for lines in batches)
                await asyncio.sleep(0.05)
                serving.streams.release()
                first.cancel()  # in the moment when its turn comes
                return json.loads(await asyncio.wait_for(second, 5))

            assert here.run(ask())["file"] == "a.png"
