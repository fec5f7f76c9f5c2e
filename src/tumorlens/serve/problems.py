"""Error responses: problem details (RFC 9457). Their types are a public format and never change."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from tumorlens.readers import Unreadable

MEDIA_TYPE = "application/problem+json"
_URN = "urn:tumorlens:problem:"
_log = logging.getLogger("tumorlens.serve")

#: Name of the type → status and title.
TYPES: dict[str, tuple[int, str]] = {
    "bad-request": (400, "Bad request"),
    "unauthorized": (401, "A token is required"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "Method not allowed"),
    "too-slow": (408, "The body arrived too slowly"),
    "too-large": (413, "Over a limit"),
    "unsupported-format": (415, "Unsupported file format"),
    "invalid-parameter": (422, "Invalid parameter"),
    "unreadable": (422, "The file could not be read"),
    "too-many-requests": (429, "Too many requests at once from this client"),
    "internal": (500, "Internal error"),
    "busy": (503, "The service is busy"),
    "stopping": (503, "The service is stopping"),
    "took-too-long": (503, "The request took too long"),
}
_BY_STATUS = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An error response.

    Parameters
    ----------
    kind
        A key of `TYPES`.
    detail
        What is wrong in this case, with the value.
    cure
        What the client can do.
    headers
        Further headers; `connection: close` if the rest of the body is not wanted.
    """

    def __init__(self, kind: str, detail: str, *, cure: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.cure, self.headers = kind, detail, cure, dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return TYPES[self.kind][0]

    def response(self) -> Response:
        """`application/problem+json` with type, title, status, detail and cure."""
        status, title = TYPES[self.kind]
        content = {"type": _URN + self.kind, "title": title, "status": status, "detail": self.detail, "cure": self.cure}
        return Response(json.dumps(content), status, self.headers, MEDIA_TYPE)


def busy(detail: str, kind: str = "busy") -> Problem:
    """503 or 429, to be retried after a second."""
    return Problem(kind, detail, cure="Try again after the time in Retry-After.", headers={"retry-after": "1"})


def stopping(detail: str) -> Problem:
    """503 of a service that is stopping."""
    cure = "Try again after the time in Retry-After, or use another instance."
    return Problem("stopping", detail, cure=cure, headers={"retry-after": "5", "connection": "close"})


def took_too_long(seconds: float) -> Problem:
    """503 of a request that exceeded its time limit."""
    headers = {"retry-after": "5", "connection": "close"}
    cure = "Send less at once, or raise --max-seconds."
    return Problem("took-too-long", f"It was not finished after {seconds:g} s.", cure=cure, headers=headers)


def unreadable(item: Unreadable) -> Problem:
    """The problem of a body that holds no readable image."""
    kind = "unreadable"
    if item.reason.startswith(("of no format", "unsupported format")):
        kind = "unsupported-format"
    elif " limit" in item.reason or "inflates to over" in item.reason:
        kind = "too-large"
    where = "" if item.index is None else f", slice {item.index}"
    return Problem(kind, f"The body{where}: {item.reason}.", cure=item.cure)


def internal(error: BaseException) -> Problem:
    """500. The log gets type and place of the error, not its message, which could quote what was sent."""
    where = " < ".join(f"{f.name} ({f.filename.rsplit('/', 1)[-1]}:{f.lineno})" for f in
                       reversed(traceback.extract_tb(error.__traceback__)[-4:]))  # fmt: skip
    _log.error("%s in %s", type(error).__name__, where)
    return Problem("internal", "The service failed on this request.", cure="Report it with the time of the request.")


def add_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Send the framework's own errors as problems too; `routes` are those of routers included in the application."""

    async def problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, "bad-request")
        if kind == "method-not-allowed":  # Starlette names only the methods of the first route with this path
            partial = [r for r in (*app.routes, *routes) if r.matches(request.scope)[0] is Match.PARTIAL]
            methods = {method for route in partial for method in getattr(route, "methods", None) or ()}
            error.headers = {"allow": ", ".join(sorted(methods))} if methods else error.headers
        cure = "See /docs for paths and methods."
        return Problem(kind, f"{error.detail}.", cure=cure, headers=error.headers).response()

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Problem("invalid-parameter", _invalid(error.errors()), cure="See /docs for its range.").response()

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _invalid(errors: Any) -> str:
    """Name and error of each parameter, without its value, which may be anything."""
    return "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in errors) + "."
