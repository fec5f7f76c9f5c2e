"""The FastAPI application: the routes, which call `service.Service`."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.types import Message, Send

from tumorlens.core.cpu import usable_cores
from tumorlens.core.text import OTHER_TUMOURS
from tumorlens.core.version import __version__
from tumorlens.inference.classifier import Classifier
from tumorlens.inference.predict import model_name
from tumorlens.inference.volumes import VOLUME_RULE
from tumorlens.readers import Plane
from tumorlens.readers.formats import FORMATS
from tumorlens.readers.signatures import ZIP
from tumorlens.serve.admission import STALL, Admission, cancel_on_disconnect, read_body
from tumorlens.serve.batching import batching
from tumorlens.serve.bodies import explained
from tumorlens.serve.metrics import Metrics
from tumorlens.serve.middleware import ServiceMiddleware
from tumorlens.serve.multipart import files_of
from tumorlens.serve.pictures import MAX_PICTURES
from tumorlens.serve.problems import Problem, add_handlers
from tumorlens.serve.schemas import (
    BATCH_EXAMPLE,
    PREDICT_EXAMPLE,
    PredictResponse,
    problems,
    raw_body,
)
from tumorlens.serve.service import PredictionOptions, Service
from tumorlens.serve.settings import Settings

STATIC = Path(__file__).parent / "static"
_LIMITS = (
    "For research and teaching, not for diagnosis.",
    "Accuracy on all test images is inflated by those with near-duplicates among the training images. If the card has "
    "a figure for the test images without near-duplicates, use that one.",
    OTHER_TUMOURS,
    "Images of other diseases, scanners, sequences or preprocessing may be classified wrongly; the verdicts uncertain "
    "and refused catch many of them, but not all.",
    "A heatmap shows which regions supported a class, on a grid of 7 by 7; it does not outline a tumour.",
)
CoverageQuery = Annotated[float, Query(gt=0, lt=1, description="Share of prediction sets that contain the true class.")]
VolumeQuery = Annotated[int | None, Query(ge=1, description="Read only this volume of files or series with several.")]
PlaneQuery = Annotated[Plane, Query(description="Orientation of the slices of a NIfTI volume.")]
LifespanHook = Callable[[Admission, Callable[[], None]], AbstractContextManager[None]]
router = APIRouter()  # routes that need a token, if the service has tokens
open_router = APIRouter()


def create_app(
    classifier: Classifier, settings: Settings, hook: LifespanHook = lambda _admission, _reject: nullcontext()
) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    hook
        Returns a context manager that is entered while the application runs. It gets the admission and a function
        that rejects the waiting images, and can thereby stop the service.

    Raises
    ------
    ConfigError
        The token file cannot be used.
    """
    metrics = Metrics()
    admission = Admission(settings, on_active=metrics.active.inc)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        readers = ThreadPoolExecutor(min(4, usable_cores()), "reader")
        batches = ThreadPoolExecutor(2, "batch")  # batches that are processed at a time
        async with batching(classifier, window=settings.window, on_batch=metrics.batches.observe) as batcher:
            app.state.service = Service(classifier, settings, admission, metrics, batcher, readers, batches)
            with hook(admission, batcher.reject_waiting):
                yield
                for pool in (readers, batches):  # the hook may end the process if a file is being decoded for too long
                    await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    app = FastAPI(
        title="tumorlens",
        version=__version__,
        description="Classifies slices of brain MRI. For research, not for diagnosis. Errors are problem details "
        "(RFC 9457). Nothing that is sent is stored.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.admission = admission
    tokens = settings.tokens()
    # The middleware checks the tokens; this only describes them.
    app.include_router(router, dependencies=[Depends(HTTPBearer(scheme_name="token", auto_error=False))] * bool(tokens))
    app.include_router(open_router)
    # Not mounted at "/", which would match every path and hide that another method exists for it.
    app.router.default = StaticFiles(directory=STATIC, html=True)
    add_handlers(app, [*router.routes, *open_router.routes])
    app.add_middleware(ServiceMiddleware, admission=admission, tokens=tokens, on_request=metrics.count_request)
    if settings.cors:  # outermost, so that other origins can read problems too
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )  # fmt: skip
    return app


@router.post(
    "/v1/predict",
    response_model=PredictResponse,
    responses=problems(400, 401, 408, 413, 415, 422, 429, 503),
    openapi_extra=raw_body("application/octet-stream", what=f"A file's content: {FORMATS}. The format is detected.")
    | {"x-example": "curl --data-binary @slice.png localhost:8000/v1/predict\n" + json.dumps(PREDICT_EXAMPLE)},
)
async def predict(
    request: Request,
    heatmap: Annotated[Literal["png", "none"], Query(description="png adds pictures to the rows.")] = "none",
    coverage: CoverageQuery = 0.95,
    plane: PlaneQuery = "axial",
    label: Annotated[str | None, Query(alias="class", description="Class of the heatmap; default: predicted.")] = None,
    slice: Annotated[int | None, Query(ge=0, description="Classify only this slice, with its pictures.")] = None,
    volume: VolumeQuery = None,
) -> Response:
    """Classify one file. A volume or multi-frame file gives one row per slice and one for the volume; at most 16 of
    its slices have pictures, spread evenly."""
    service = _service(request)
    if label is not None and label not in service.classifier.classes:
        known = ", ".join(service.classifier.classes)
        raise Problem("invalid-parameter", "class: not a class of the model.", cure=f"Use one of {known}.")
    body = await read_body(request)
    if body.startswith(ZIP):
        raise Problem("unsupported-format", "The body is a zip.", cure="Send it to /v1/batch.")
    options = PredictionOptions(coverage, plane, heatmap, label, slice, volume)
    try:
        content = await cancel_on_disconnect(request, service.predict(body, options))
    except Problem as problem:
        raise explained(problem, body, request.headers) from None
    return Response(content, media_type="application/json")


@router.post(
    "/v1/batch",
    response_class=StreamingResponse,
    responses=problems(400, 401, 408, 413, 415, 422, 429, 503)
    | {200: {"description": "NDJSON: one line per row, with the file's name as it was sent.",
             "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
    openapi_extra=raw_body("application/zip", "multipart/form-data", what=f"Many files ({FORMATS}): a zip, or parts.")
    | {"x-example": "curl --data-binary @study.zip localhost:8000/v1/batch\n" + json.dumps(BATCH_EXAMPLE)},
)  # fmt: skip
async def batch(
    request: Request, coverage: CoverageQuery = 0.95, plane: PlaneQuery = "axial", volume: VolumeQuery = None
) -> Response:
    """Classify many files. Rows are sent while later files are still processed; a file that could not be read is also
    a row."""
    service = _service(request)
    body = await read_body(request)
    kind, most = request.headers.get("content-type", ""), service.settings.limits.entries
    try:
        # On a thread: splitting a form with thousands of parts takes seconds.
        files = await run_in_threadpool(files_of, body, kind, most)
    except Problem as problem:
        raise explained(problem, body, request.headers, batch=True) from None
    lines = service.batch(files, PredictionOptions(coverage, plane, volume=volume))
    return NdjsonResponse(lines, media_type="application/x-ndjson")


@router.get("/v1/model", responses=problems(400, 401))
async def model(request: Request) -> dict[str, Any]:
    """The model card: classes, preprocessing, fingerprint of the training data, measured accuracy with intervals,
    intended use and limits; the rule for volumes; and the limits of this service."""
    service = _service(request)
    limits = service.settings.limits
    takes = {"bytes": service.settings.max_bytes, "pixels": limits.pixels, "frames": limits.frames,
             "files": limits.entries, "pictures": MAX_PICTURES, "formats": FORMATS}  # fmt: skip
    name, card = model_name(service.classifier), service.classifier.card
    return {"model": name, **card, "limits": _LIMITS, "takes": takes, "volume_rule": VOLUME_RULE}


@router.get(
    "/v1/sample",
    response_class=Response,
    responses=problems(400, 401, 422) | {200: {"description": "A slice.", "content": {"image/png": {}}}},
)
async def sample(
    label: Annotated[
        Literal["glioma", "meningioma", "notumor", "pituitary"], Query(alias="class", description="Class of the slice.")
    ] = "glioma",
) -> Response:
    """A generated slice for trying the service, of no person: PNG."""
    return Response(_phantom(label), media_type="image/png")


@open_router.head("/healthz", include_in_schema=False)
@open_router.get("/healthz", responses=problems(400))
async def healthz() -> dict[str, str]:
    """Whether the process responds at all."""
    return {"status": "alive"}


@open_router.head("/readyz", include_in_schema=False)
@open_router.get("/readyz", responses=problems(400, 503))
async def readyz(request: Request) -> dict[str, str]:
    """Whether the service accepts requests; 503 while it is stopping or its queue is full."""
    request.app.state.admission.require_capacity()
    return {"status": "ready"}


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems(400, 401) | {200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, latency, verdicts, batches, and drift of the images from the training data, for Prometheus."""
    return Response(_service(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@open_router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """The API description as a page, which docs.js fills from /openapi.json."""
    return FileResponse(STATIC / "docs.html")


class NdjsonResponse(StreamingResponse):
    """Drops a client that stops reading: it would keep one of the few places for batches."""

    async def stream_response(self, send: Send) -> None:
        """Send the lines; TimeoutError if the client reads nothing for `STALL` seconds."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(STALL):
                await send(message)

        await super().stream_response(send_in_time)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@lru_cache(maxsize=4)
def _phantom(label: str) -> bytes:
    from tumorlens.data.phantom.generator import make_slice

    content = io.BytesIO()
    Image.fromarray(make_slice(0, label, 0, 0).pixels).save(content, "PNG")
    return content.getvalue()
