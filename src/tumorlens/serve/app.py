"""The application: routes over `answers.Service`."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from tumorlens.core.cpu import usable_cores
from tumorlens.core.version import __version__
from tumorlens.inference.classifier import Classifier
from tumorlens.inference.predict import model_name
from tumorlens.readers import Plane
from tumorlens.serve.admission import (
    STALL,
    Admission,
    body_of,
    unless_gone,
)
from tumorlens.serve.batching import batching
from tumorlens.serve.docs_page import page
from tumorlens.serve.metrics import Metrics
from tumorlens.serve.middleware import Gate
from tumorlens.serve.multipart import files_of, is_zip
from tumorlens.serve.pictures import AT_MOST
from tumorlens.serve.problems import Problem, install
from tumorlens.serve.schemas import (
    ANSWER,
    LINE,
    Answer,
    ask_for_tokens,
    problems,
    raw_body,
)
from tumorlens.serve.service import Service, Wish
from tumorlens.serve.settings import Settings

STATIC = Path(__file__).parent / "static"
_JOBS = 2  # batches that are stepped through at a time
_FILES = "JPEG, PNG, TIFF, BMP, WebP, DICOM or NIfTI"
_LIMITS = (
    "Not for diagnosis: research and teaching alone.",
    "Accuracy on all test images is flattered by those that have near-duplicates among the images learned from: "
    "the figure on the twin-free part, where there is one, is the honest one.",
    "It knows its classes and nothing else. Other diseases, scanners, sequences and preprocessing may be answered "
    "wrongly; the verdicts uncertain and refused catch many such images and not all.",
    "A heatmap tells what the network looked at, on a grid of 7 by 7; it does not outline a tumour.",
)
Coverage = Annotated[float, Query(gt=0, lt=1, description="Share of prediction sets that hold the true class.")]
Which = Annotated[Plane, Query(description="Which slices of a NIfTI volume are taken.")]
Around = Callable[[Admission, Callable[[], None]], AbstractContextManager[None]]
router = APIRouter()


def create_app(
    classifier: Classifier,
    settings: Settings,
    around: Around | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    around
        A context that is entered while the application runs, and may end it early: called with its admission, and
        with what gives up the images that wait.

    Raises
    ------
    ConfigError
        The token file is unusable.
    """
    metrics = Metrics()
    admission = Admission(settings, told=metrics.in_work)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        readers = ThreadPoolExecutor(min(4, usable_cores()), "reader")
        jobs = ThreadPoolExecutor(_JOBS, "batch")
        async with batching(classifier, window=settings.window, note=metrics.batch) as batcher:
            app.state.service = Service(classifier, settings, admission, metrics, batcher, readers, jobs)
            with around(admission, batcher.give_up) if around else nullcontext():
                yield
        for pool in (readers, jobs):
            pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="tumorlens",
        version=__version__,
        description="Classifies slices of brain MRI. For research, not for diagnosis. Errors are problem details "
        "(RFC 9457). Nothing that is sent is kept.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.admission = admission
    app.include_router(router)
    _refuse_other_methods(app)
    if STATIC.is_dir():
        app.mount("/", StaticFiles(directory=STATIC, html=True))
    install(app)
    tokens = settings.tokens()
    if tokens:
        ask_for_tokens(app.openapi())
    app.add_middleware(Gate, admission=admission, tokens=tokens, note=metrics.answered)
    if settings.cors:  # outermost, so that problems can be read from there too
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return app


@router.post(
    "/v1/predict",
    response_model=Answer,
    responses=problems(400, 401, 408, 413, 415, 422, 429, 503),
    openapi_extra=raw_body("application/octet-stream", what=f"A file's content: {_FILES}. It tells its format itself.")
    | {"x-example": "curl --data-binary @slice.png localhost:8000/v1/predict\n" + json.dumps(ANSWER)},
)
async def predict(
    request: Request,
    heatmap: Annotated[Literal["png", "none"], Query(description="png adds pictures to the rows.")] = "none",
    coverage: Coverage = 0.95,
    plane: Which = "axial",
    label: Annotated[str | None, Query(alias="class", description="Whose heatmap; the row's own if absent.")] = None,
    slice: Annotated[int | None, Query(ge=0, description="Answer for this slice alone, with its pictures.")] = None,
) -> Response:
    """Classify one file. A volume or series of frames gives a row a slice and one for the whole; of its slices
    16 at most carry pictures, spread evenly."""
    service = _service(request)
    if label is not None and label not in service.classifier.classes:
        known = ", ".join(service.classifier.classes)
        raise Problem("invalid-parameter", "class: the model does not know it.", cure=f"Say one of {known}.")
    body = await body_of(request)
    if is_zip(body):
        raise Problem("unsupported-format", "The body is a zip.", cure="Send it to /v1/batch.")
    wish = Wish(coverage, plane, heatmap, label, slice)
    return Response(await unless_gone(request, service.predict(body, wish)), media_type="application/json")


@router.post(
    "/v1/batch",
    response_class=StreamingResponse,
    responses=problems(400, 401, 408, 413, 415, 422, 429, 503)
    | {200: {"description": "NDJSON: a line for each row, with the file's name as it was sent.",
             "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
    openapi_extra=raw_body("application/zip", "multipart/form-data", what=f"Many files ({_FILES}): a zip, or parts.")
    | {"x-example": "curl --data-binary @study.zip localhost:8000/v1/batch\n" + json.dumps(LINE)},
)  # fmt: skip
async def batch(request: Request, coverage: Coverage = 0.95, plane: Which = "axial") -> Response:
    """Classify many files. Rows come while later files are still in work; a file that cannot be read is a row too."""
    service = _service(request)
    body = await body_of(request)
    # On a thread: a form of thousands of parts takes seconds to take apart.
    files = await run_in_threadpool(
        files_of, body, request.headers.get("content-type", ""), service.settings.limits.entries
    )
    lines = service.batch(files, Wish(coverage, plane))
    return _Lines(lines, media_type="application/x-ndjson")


@router.get("/v1/model", responses=problems(400, 401))
async def model(request: Request) -> dict[str, Any]:
    """The model's card: classes, preprocessing, training data's fingerprint, measured accuracy with intervals,
    intended use and limits; and what this service takes."""
    service = _service(request)
    limits = service.settings.limits
    takes = {"bytes": service.settings.max_bytes, "pixels": limits.pixels, "frames": limits.frames,
             "files": limits.entries, "pictures": AT_MOST}  # fmt: skip
    return {"model": model_name(service.classifier), **service.classifier.card, "limits": _LIMITS, "takes": takes}


@router.get(
    "/v1/sample",
    response_class=Response,
    responses=problems(400, 401, 422) | {200: {"description": "A slice.", "content": {"image/png": {}}}},
)
async def sample(
    label: Annotated[
        Literal["glioma", "meningioma", "notumor", "pituitary"], Query(alias="class", description="What it shows.")
    ] = "glioma",
) -> Response:
    """A generated slice to try, of nobody: PNG."""
    return Response(_phantom(label), media_type="image/png")


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses=problems(400))
async def healthz() -> dict[str, str]:
    """Whether the process answers at all."""
    return {"status": "alive"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=problems(400, 503))
async def readyz(request: Request) -> dict[str, str]:
    """Whether it takes on requests; 503 while it is stopping or its queue is full."""
    request.app.state.admission.check("")
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems(400, 401) | {200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, latency, verdicts, batches, and the drift of images from the training data, for Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The description for people."""
    return HTMLResponse(page(request.app.openapi()))


def _refuse_other_methods(app: FastAPI) -> None:
    """Answer 405 where a path has a route and not for this method: else the mounted page, which takes any path, would
    answer 404, or 405 with its own methods."""
    offered: dict[str, set[str]] = {}
    for route in (*app.routes, *router.routes):
        if isinstance(route, Route):
            offered.setdefault(route.path, set()).update(route.methods or ())
    app.router.routes += [Route(path, _Refusal(", ".join(sorted(methods)))) for path, methods in offered.items()]


@dataclass(frozen=True)
class _Refusal:
    """An application of its own, since a function as an endpoint would be asked for GET alone."""

    allow: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = Problem("method-not-allowed", f"This path offers {self.allow} alone.",
                          cure="Look at /docs for what is offered.", headers={"allow": self.allow})  # fmt: skip
        await problem.response()(scope, receive, send)


class _Lines(StreamingResponse):
    """Gives up a client who does not read: it would keep one of the few places for batches."""

    async def stream_response(self, send: Send) -> None:
        async def patiently(message: Message) -> None:
            async with asyncio.timeout(STALL):
                await send(message)

        await super().stream_response(patiently)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@lru_cache(maxsize=4)
def _phantom(label: str) -> bytes:
    from tumorlens.data.phantom.generator import make_slice

    content = io.BytesIO()
    Image.fromarray(make_slice(0, label, 0, 0).pixels).save(content, "PNG")
    return content.getvalue()
