"""Access control, time limit, security headers and cancelled requests."""

import asyncio
import json
from contextlib import nullcontext

import pytest
from serve_model import TOKENS, png, problem_of, service

from tumorlens.serve.admission import Admission
from tumorlens.serve.middleware import ServiceMiddleware
from tumorlens.serve.settings import Settings


def test_security_headers_stand_around_every_answer(here):
    for answer in (here.get("/healthz"), here.get("/v1/nothing"), here.predict(b"x"), here.predict(png())):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/metrics", "/metrics%0A", "/metrics/", "/v1/model%0A"])
def test_no_spelling_of_a_path_goes_without_a_token(model, tmp_path, path):
    (tmp_path / "tokens").write_text("a-token-of-this-test\n")
    with service(model, token_file=tmp_path / "tokens") as here:
        assert problem_of(here.get(path)) == (401, "unauthorized")


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


def test_an_answer_that_takes_too_long(model):
    with service(model, max_seconds=0.2, window=1.0) as here:
        assert problem_of(here.predict(png())) == (503, "took-too-long")
        assert here.app.state.admission.active == 0
