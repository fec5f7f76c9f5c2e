"""What the service answers when it cannot: problem details (RFC 9457), whose types stay as they are."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tumorlens.readers import Unreadable

MEDIA_TYPE = "application/problem+json"
_URN = "urn:tumorlens:problem:"
_log = logging.getLogger("tumorlens.serve")

#: Name of the type → status and title.
TYPES: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be used"),
    "unauthorized": (401, "A token is needed"),
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "This method is not offered here"),
    "too-slow": (408, "The body came too slowly"),
    "too-large": (413, "Over a limit"),
    "unsupported-format": (415, "Of no format that is read here"),
    "invalid-parameter": (422, "A parameter has no usable value"),
    "unreadable": (422, "The file cannot be read"),
    "too-many-requests": (429, "Too many requests of yours at once"),
    "internal": (500, "A fault of the service"),
    "busy": (503, "Too much to do at the moment"),
    "stopping": (503, "The service is stopping"),
    "took-too-long": (503, "The answer took too long"),
}
_BY_STATUS = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}


class Problem(Exception):  # noqa: N818 - the standard's word
    """An answer that is no result.

    Parameters
    ----------
    kind
        A key of `TYPES`.
    detail
        What is wrong this time, with the value.
    cure
        What the asker can do.
    headers
        More of them; `connection: close` where the rest of the body is not wanted.
    """

    def __init__(self, kind: str, detail: str, *, cure: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.cure, self.headers = kind, detail, cure, dict(headers or {})

    @property
    def status(self) -> int:
        return TYPES[self.kind][0]

    def response(self) -> Response:
        """`application/problem+json` with type, title, status, detail and cure."""
        status, title = TYPES[self.kind]
        content = {"type": _URN + self.kind, "title": title, "status": status, "detail": self.detail, "cure": self.cure}
        return Response(json.dumps(content), status, self.headers, MEDIA_TYPE)


def busy(detail: str, kind: str = "busy") -> Problem:
    """503 or 429, to be tried again a second later."""
    return Problem(kind, detail, cure="Try again after the time in Retry-After.", headers={"retry-after": "1"})


def stopping(detail: str) -> Problem:
    """503 of a service that ends."""
    cure = "Try again after the time in Retry-After, or ask another instance."
    return Problem("stopping", detail, cure=cure, headers={"retry-after": "5", "connection": "close"})


def unreadable(item: Unreadable) -> Problem:
    """The problem of a body that holds no picture."""
    kind = "unreadable"
    if item.reason.startswith("of no format"):
        kind = "unsupported-format"
    elif " limit" in item.reason or "inflates to over" in item.reason:
        kind = "too-large"
    where = "" if item.index is None else f", slice {item.index}"
    return Problem(kind, f"The body{where}: {item.reason}.", cure=item.cure)


def internal(error: BaseException) -> Problem:
    """500; the log tells where, without the message, which could quote what was sent."""
    where = " < ".join(f"{f.name} ({f.filename.rsplit('/', 1)[-1]}:{f.lineno})" for f in
                       reversed(traceback.extract_tb(error.__traceback__)[-4:]))  # fmt: skip
    _log.error("%s in %s", type(error).__name__, where)
    return Problem("internal", "Something went wrong in the service.", cure="Report it with the time of the request.")


def install(app: FastAPI) -> None:
    """Answer the framework's own errors as problems too."""

    async def problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response()

    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _BY_STATUS.get(error.status_code, "bad-request")
        cure = "Look at /docs for what is offered."
        return Problem(kind, f"{error.detail}.", cure=cure, headers=error.headers).response()

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Problem("invalid-parameter", _told(error.errors()), cure="Look at /docs for its range.").response()

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _told(errors: Any) -> str:
    """Which parameter, and why not; the value is not repeated, as it may be anything."""
    return "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in errors) + "."
