"""Who may ask, and what stands around every answer: pure ASGI, so that nothing is held back on its way."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorlens.serve.admission import Admission, Visit
from tumorlens.serve.metrics import METHODS
from tumorlens.serve.problems import Problem, internal, stopping
from tumorlens.serve.schemas import is_guarded

#: The page is files of its own, and pictures that arrive within JSON; nothing else is loaded from anywhere.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_log = logging.getLogger("tumorlens.serve.requests")
#: Called with route, method, status, seconds and requests in work.
OnAnswer = Callable[[str, str, int, float], None]


@dataclass(frozen=True, eq=False)
class Gate:
    """The outermost layer: counts and logs each request, lets it in, and sees that it ends."""

    app: ASGIApp
    admission: Admission
    tokens: frozenset[bytes]
    """SHA-256 of those that may ask; everybody may where there are none."""
    note: OnAnswer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499  # the client hung up

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("cache-control", "no-store")
                if self.admission.draining:
                    headers["connection"] = "close"
            await send(message)

        self.admission.present += 1
        try:
            await self._let_in(scope, receive, out)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except asyncio.CancelledError:
            if not self.admission.draining:
                raise
            if status == 499:  # uvicorn's patience with open requests is over; it would answer a bare 500
                await stopping("The request was not finished in time.").response()(scope, receive, out)
        except Exception as error:
            problem = internal(error)
            if status != 499:  # the answer has begun: all that is left is to cut it
                raise RuntimeError("An answer was cut off.") from None
            await problem.response()(scope, receive, out)
        finally:
            self.admission.present -= 1
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.note(route, scope["method"], status, seconds)
            if not self.admission.settings.quiet:
                method = scope["method"] if scope["method"] in METHODS else "other"
                _log.info("%s %s %d %.1f ms", method, route, status, seconds * 1000)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Through to the application, or a problem; what the request held is given back."""
        headers = Headers(scope=scope)
        guarded = is_guarded(scope["path"])
        client, problem = self._client(scope, headers)
        if self.admission.settings.is_loopback and not self.tokens and not _is_here(headers.get("host", "")):
            problem = Problem(
                "bad-request",
                "The Host header names no address of this machine.",  # else any web page could ask through its name
                cure="Ask at localhost, or start the service with --host and --token-file.",
            )
        elif not guarded or scope["method"] == "OPTIONS":
            problem = None
        if problem is not None:
            await problem.response()(scope, receive, send)
            return
        visit = scope["visit"] = Visit(self.admission, client)
        begun = False

        async def out(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(self.admission.settings.max_seconds):
                await self.app(scope, receive, out)
        except TimeoutError:
            if begun:
                raise
            most = self.admission.settings.max_seconds
            cure = "Send less at once, or raise --max-seconds."
            late = Problem("took-too-long", f"It was not done after {most:g} s.", cure=cure,
                           headers={"retry-after": "5", "connection": "close"})  # fmt: skip
            await late.response()(scope, receive, send)
        finally:
            visit.end()

    def _client(self, scope: Scope, headers: Headers) -> tuple[str, Problem | None]:
        """Who asks, as a key that is never shown; and the problem where nobody knows them."""
        if not self.tokens:
            return (scope.get("client") or ("?",))[0], None
        kind, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        # Digests of equal length, all of them looked at: time tells nothing about the tokens.
        known = sum(hmac.compare_digest(digest, one) for one in self.tokens) > 0
        if kind.lower() == "bearer" and known:
            return digest.hex(), None
        return "", Problem(
            "unauthorized",
            "The token is not known." if token else "No token came.",
            cure="Send the header Authorization: Bearer TOKEN with a token of this service.",
            headers={"www-authenticate": 'Bearer realm="tumorlens"'},
        )


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine. A loopback address needs no name server, which others could run."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
