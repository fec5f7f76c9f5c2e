"""The outermost ASGI layer: access control, time limit, security headers, log and metrics of every request.

Pure ASGI, as a middleware based on requests and responses would buffer streamed ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tumorlens.serve.admission import Admission, Reservation
from tumorlens.serve.problems import Problem, internal
from tumorlens.serve.schemas import is_guarded
from tumorlens.serve.settings import is_loopback

#: The page consists of files served here and of pictures inside JSON; nothing is loaded from elsewhere.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
#: Other methods share one name in log and metrics, else clients could add labels without limit.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
_log = logging.getLogger("tumorlens.serve.requests")


@dataclass(frozen=True, eq=False)
class ServiceMiddleware:
    """Checks who may send a request, limits its time, and logs and counts it."""

    app: ASGIApp
    admission: Admission
    tokens: frozenset[bytes]
    """SHA-256 of the accepted tokens; if empty, no token is needed."""
    on_request: Callable[[str, str, int, float], None]
    """Called with route, method, status and seconds of each request."""

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
                try:
                    await self._respond(scope, receive, send_with_headers)
                except Problem as problem:
                    if status == 499:  # else the response has started, and uvicorn breaks it off
                        await problem.response()(scope, receive, send_with_headers)
        finally:
            self.admission.open_requests -= 1
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.on_request(route, method, status, seconds)
            if not self.admission.settings.quiet:
                _log.info("%s %s %d %.1f ms", method, route, status, seconds * 1000)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application respond, and release what the request has reserved; Problem if it fails."""
        reservation = scope["reservation"] = Reservation(self.admission, self._admit(scope))
        seconds = self.admission.settings.max_seconds
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody receives a response
        except asyncio.CancelledError:
            if not self.admission.draining:
                raise
            # uvicorn cancels open requests when it stops
            raise Problem("stopping", "The request was not finished in time.") from None
        except TimeoutError:
            raise Problem("took-too-long", f"It was not finished after {seconds:g} s.") from None
        except Exception as error:
            raise internal(error) from None
        finally:
            reservation.release()

    def _admit(self, scope: Scope) -> str:
        """A key for the client, which is never shown; Problem if it may not send this request."""
        headers = Headers(scope=scope)
        if not self.tokens:
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if self.admission.settings.is_loopback and not is_loopback(name.strip("[]")):
                # Otherwise any web page could send requests, by a name of its own that resolves to this machine.
                raise Problem(
                    "bad-request",
                    "The Host header is not an address of this machine.",
                    cure="Use localhost, or start the service with --host and --token-file.",
                )
            return (scope.get("client") or ("?",))[0]
        if not is_guarded(scope["path"]) or scope["method"] == "OPTIONS":
            return ""
        kind, _, token = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        # Every token is compared, by digests of equal length, so that timing reveals nothing about them.
        if sum(hmac.compare_digest(digest, known) for known in self.tokens) and kind.lower() == "bearer":
            return digest.hex()
        raise Problem(
            "unauthorized",
            "The token is not known." if token else "The request has no token.",
            cure="Send the header Authorization: Bearer TOKEN with a token of this service.",
            headers={"www-authenticate": 'Bearer realm="tumorlens"'},
        )
