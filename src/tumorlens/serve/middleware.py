"""The outermost ASGI layer: access control, time limit, security headers, log and metrics of every request.

Pure ASGI, as a middleware based on requests and responses would buffer streamed ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorlens.serve.admission import Admission, Reservation
from tumorlens.serve.metrics import METHODS
from tumorlens.serve.problems import Problem, internal, stopping, took_too_long
from tumorlens.serve.schemas import is_guarded

#: The page consists of files served here and of pictures inside JSON; nothing is loaded from elsewhere.
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
#: Called with route, method, status and seconds of each request.
OnRequest = Callable[[str, str, int, float], None]


@dataclass(frozen=True, eq=False)
class ServiceMiddleware:
    """Checks who may send a request, limits its time, and logs and counts it."""

    app: ASGIApp
    admission: Admission
    tokens: frozenset[bytes]
    """SHA-256 of the accepted tokens; if empty, no token is needed."""
    on_request: OnRequest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499  # the client closed the connection

        async def send_with_headers(message: Message) -> None:
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

        connection = scope.get("state", {}).get("connection")  # see `server.Connection`
        self.admission.open_requests += 1
        try:
            with connection.request() if connection else nullcontext():
                problem = await self._respond(scope, receive, send_with_headers)
                if problem and status == 499:  # else the response has started, and uvicorn breaks it off
                    await problem.response()(scope, receive, send_with_headers)
        finally:
            self.admission.open_requests -= 1
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            self.on_request(route, scope["method"], status, seconds)
            if not self.admission.settings.quiet:
                method = scope["method"] if scope["method"] in METHODS else "other"
                _log.info("%s %s %d %.1f ms", method, route, status, seconds * 1000)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> Problem | None:
        """Let the application respond, and release what the request has reserved; the problem if it fails."""
        client, problem = self._admit(scope)
        if problem:
            return problem
        reservation = scope["reservation"] = Reservation(self.admission, client)
        try:
            async with asyncio.timeout(self.admission.settings.max_seconds):
                await self.app(scope, receive, send)
        except ClientDisconnect:
            return None  # nobody receives a response
        except asyncio.CancelledError:
            if not self.admission.draining:
                raise
            return stopping("The request was not finished in time.")  # uvicorn cancels open requests when it stops
        except TimeoutError:
            return took_too_long(self.admission.settings.max_seconds)
        except Exception as error:
            return internal(error)
        finally:
            reservation.release()
        return None

    def _admit(self, scope: Scope) -> tuple[str, Problem | None]:
        """A key for the client, which is never shown, and a Problem if it may not send this request."""
        headers = Headers(scope=scope)
        if not self.tokens:
            if self.admission.settings.is_loopback and not _is_loopback(headers.get("host", "")):
                # Otherwise any web page could send requests, by a name of its own that resolves to this machine.
                return "", Problem(
                    "bad-request",
                    "The Host header is not an address of this machine.",
                    cure="Use localhost, or start the service with --host and --token-file.",
                )
            return (scope.get("client") or ("?",))[0], None
        if not is_guarded(scope["path"]) or scope["method"] == "OPTIONS":
            return "", None
        kind, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        # Every token is compared, by digests of equal length, so that timing reveals nothing about them.
        known = sum(hmac.compare_digest(digest, accepted) for accepted in self.tokens) > 0
        if kind.lower() == "bearer" and known:
            return digest.hex(), None
        return "", Problem(
            "unauthorized",
            "The token is not known." if token else "The request has no token.",
            cure="Send the header Authorization: Bearer TOKEN with a token of this service.",
            headers={"www-authenticate": 'Bearer realm="tumorlens"'},
        )


def _is_loopback(host: str) -> bool:
    """Whether a Host header is localhost or a loopback address; no other name is resolved, as its owner decides how."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
