"""Error responses: problem details (RFC 9457). Their types are a public format and never change."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping, Sequence

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
_OPTION = re.compile(r"--(plane|volume) ")
_AGAIN = "Try again after the time in Retry-After"
#: The types to be retried later → cure and headers.
_LATER: dict[str, tuple[str, dict[str, str]]] = {
    "too-many-requests": (f"{_AGAIN}.", {"retry-after": "1"}),
    "busy": (f"{_AGAIN}.", {"retry-after": "1"}),
    "stopping": (f"{_AGAIN}, or use another instance.", {"retry-after": "5", "connection": "close"}),
    "took-too-long": (
        "Send less at once, or raise --max-seconds.", {"retry-after": "5", "connection": "close"},
    ),
}  # fmt: skip


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An error response.

    Parameters
    ----------
    kind
        A key of `TYPES`.
    detail
        What is wrong in this case, with the value.
    cure
        What the client can do; types to be retried later have one of their own.
    headers
        Further headers; `connection: close` if the rest of the body is not wanted.
    """

    def __init__(self, kind: str, detail: str, *, cure: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        later, again = _LATER.get(kind, ("", {}))
        self.kind, self.detail, self.cure, self.headers = kind, detail, cure or later, again | dict(headers or {})

    def response(self) -> Response:
        """`application/problem+json` with type, title, status, detail and cure."""
        status, title = TYPES[self.kind]
        content = {"type": _URN + self.kind, "title": title, "status": status, "detail": self.detail, "cure": self.cure}
        return Response(json.dumps(content), status, self.headers, MEDIA_TYPE)


def unreadable(item: Unreadable) -> Problem:
    """The problem of a body that holds no readable image."""
    kind = "unreadable"
    if item.reason.startswith(("of no format", "unsupported format")):
        kind = "unsupported-format"
    elif " limit" in item.reason or "inflates to over" in item.reason:
        kind = "too-large"
    where = "" if item.index is None else f", slice {item.index}"
    return Problem(kind, f"The body{where}: {item.reason}.", cure=in_query(item.cure))


def in_query(cure: str) -> str:
    """A reader's cure with options of the command line as parameters: `--plane axial` → `?plane=axial`."""
    return _OPTION.sub(r"?\1=", cure)


def internal(error: BaseException) -> Problem:
    """500. The log gets type and place of the error, not its message, which could quote what was sent."""
    where = " < ".join(f"{f.name} ({f.filename.rsplit('/', 1)[-1]}:{f.lineno})" for f in
                       reversed(traceback.extract_tb(error.__traceback__)[-4:]))  # fmt: skip
    _log.error("%s in %s", type(error).__name__, where)
    return Problem("internal", "The service failed on this request.", cure="Report it with the time of the request.")


def add_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Send the framework's own errors as problems too; `routes` are those of routers included in the application."""

    @app.exception_handler(Problem)
    async def problem(_request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        cure = "See /docs for paths and methods."
        if error.status_code == 405:  # Starlette names only the methods of the first route with this path
            partial = [r for r in (*app.routes, *routes) if r.matches(request.scope)[0] is Match.PARTIAL]
            methods = {method for route in partial for method in getattr(route, "methods", None) or ()}
            allowed = sorted(methods or {"GET", "HEAD"})  # those of the page's files
            error.headers, cure = {"allow": ", ".join(allowed)}, f"Use {' or '.join(allowed)}."
        kind = _BY_STATUS.get(error.status_code, "bad-request")
        return Problem(kind, f"{error.detail}.", cure=cure, headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        # Name and error of each parameter, without its value, which may be anything.
        wrong = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
        return Problem("invalid-parameter", f"{wrong}.", cure="See /docs for its range.").response()
