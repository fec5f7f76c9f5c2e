"""Routes, methods, CORS and streamed responses."""

import asyncio
import io
import re
import time

import pytest
from folders import CLASSES
from PIL import Image
from serve_model import problem_of, service

from tumorlens.core.text import OTHER_TUMOURS
from tumorlens.serve import app


def test_paths_and_methods(here):
    assert problem_of(here.get("/v1/nothing")) == (404, "not-found")
    assert problem_of(here.get("/nothing")) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/predict", "POST"),  # the page is there for any path with GET
        ("PUT", "/v1/predict", "POST"),
        ("GET", "/v1/batch", "POST"),
        ("POST", "/v1/model", "GET"),
        ("DELETE", "/healthz", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/docs", "GET"),
        ("POST", "/style.css", "GET, HEAD"),
    ],
)
def test_a_wrong_method_names_the_right_ones(here, method, path, allowed):
    answer = here.run(here.client.request(method, path))
    assert problem_of(answer) == (405, "method-not-allowed")
    assert answer.headers["allow"] == allowed
    assert answer.json()["cure"] == f"Use {allowed.replace(', ', ' or ')}."


@pytest.mark.case(25)
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_link_relatively_so_that_they_work_behind_a_prefix(here, path):
    content = here.get(path).text
    scripts = [here.get(f"/{name}").text for name in ("docs.js", "api.js", "app.js", "dom.js")]
    assert not [link for link in re.findall(r'(?:href|src)="([^"]*)"', content) if link.startswith("/") or ":" in link]
    assert not [
        link
        for text in scripts
        for link in re.findall(r'(?:from|fetch\(|send\() ?["`]([^"`]*)', text)
        if link[0] == "/"
    ]


class TestOthers:
    def test_model(self, here):
        card = here.get("/v1/model").json()
        assert card["model"] == "tiny-fp32-01234567"
        assert card["classes"] == list(CLASSES)
        assert card["takes"]["bytes"] == 64_000_000
        assert OTHER_TUMOURS in card["limits"]

    def test_sample(self, here):
        answer = here.get("/v1/sample")
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size[0] >= 200
        assert here.predict(answer.content).status_code == 200

    def test_health(self, here):
        for path in ("/healthz", "/readyz"):
            assert here.get(path).status_code == 200
            asked = here.run(here.client.head(path))  # as monitors ask
            assert (asked.status_code, asked.content) == (200, b"")


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


def test_cors_is_for_those_named(model):
    origin = "https://viewer.example.org"
    with service(model, cors=(origin,)) as here:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        for name, status in ((origin, 200), ("https://evil.example", 400)):
            answer = here.run(here.client.options("/v1/predict", headers=asked | {"origin": name}))
            assert answer.status_code == status
        refused = here.post("/v1/predict", content=b"x", headers={"origin": origin})
        assert refused.headers["access-control-allow-origin"] == origin
