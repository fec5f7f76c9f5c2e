"""From a request's body to prediction rows: reading on a few threads, classifying in batches shared by all requests."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice, repeat
from typing import Any, Literal, TypeVar

import numpy as np

from tumorlens.inference.classifier import Classifier
from tumorlens.inference.heatmap import HeatArray
from tumorlens.inference.predict import failed_record, model_name, record_of
from tumorlens.inference.records import Record
from tumorlens.inference.volumes import with_volumes
from tumorlens.readers import Plane, Slice, Unreadable
from tumorlens.readers.formats import read_stream
from tumorlens.readers.places import choose_volume
from tumorlens.readers.signatures import is_raster
from tumorlens.readers.sources import read_file
from tumorlens.readers.types import ReadContext, SeriesNames
from tumorlens.serve.admission import Admission
from tumorlens.serve.batching import Batcher
from tumorlens.serve.metrics import Metrics
from tumorlens.serve.pictures import heat_picture, slice_picture, spread
from tumorlens.serve.problems import Problem, in_query, unreadable
from tumorlens.serve.settings import Settings

CHUNK = 8  # slices of one file that are read and classified at a time, so that other requests get their turn
_POLL = 0.2  # seconds after which a waiting batch checks whether the service is stopping
_CONCURRENT = 4  # volumes that are read at a time, and as many batches
Item = Slice | Unreadable
_LEFT_OUT = ("file", "series", "seconds", "model")
T = TypeVar("T")


@dataclass(frozen=True)
class PredictionOptions:
    """The options of one request."""

    coverage: float = 0.95
    """Of prediction sets, 0 to 1."""
    plane: Plane = "axial"
    """Orientation of the slices of a NIfTI volume."""
    heatmap: Literal["png", "none"] = "none"
    """Whether rows have pictures."""
    label: str | None = None
    """Class of the heatmap; default: the predicted one."""
    slice: int | None = None
    """The only slice to classify; default: all."""
    volume: int | None = None
    """Which volume of a file with several is read, from 1; default: the first of NIfTI, all of DICOM."""


@dataclass(frozen=True, eq=False)
class Service:
    """Predictions for one file or many; shared by all requests of a worker."""

    classifier: Classifier
    settings: Settings
    admission: Admission
    metrics: Metrics
    batcher: Batcher
    readers: ThreadPoolExecutor
    """Threads that decode single files."""
    batches: ThreadPoolExecutor
    """Threads that read the files of batches."""
    volumes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENT))
    """Limits concurrent volumes: while read, one holds up to its limit of memory, however small its body."""
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENT))
    """Limits concurrent batches, apart from volumes, as a batch lasts as long as its client takes to read it."""

    async def predict(self, body: bytes, options: PredictionOptions) -> bytes:
        """The JSON response for one file.

        Raises
        ------
        Problem
            The file contains no readable image, or not the requested slice.
        """
        async with nullcontext() if is_raster(body) else self.volumes:
            began = time.perf_counter()
            rows, pictures = await self._predict_slices(body, options)
        self.metrics.count_records(rows)
        extra = iter(pictures)
        listed = rows if options.slice is not None else with_volumes(rows, self.classifier.classes)
        content = {
            "model": model_name(self.classifier),
            "rows": [_json(row) | ({} if row.kind == "volume" else next(extra, {})) for row in listed],
            "seconds": round(time.perf_counter() - began, 4),
        }
        return json.dumps(content).encode()

    async def _predict_slices(
        self, body: bytes, options: PredictionOptions
    ) -> tuple[list[Record], list[dict[str, str | None]]]:
        """A row for each slice, and its pictures if requested."""
        rows: list[Record] = []
        pictures: list[dict[str, str | None]] = []
        failed: Unreadable | None = None
        failed_file: Unreadable | None = None  # an error of the whole file, which has no slice number
        wanted = options.slice
        numbers: list[int] = []  # of the slices seen, if one is wanted
        context = ReadContext(io.BytesIO(body), "body", options.plane, self.settings.limits, volume=options.volume)
        items = enumerate(read_stream(context) if options.volume is None else read_file(context))
        chunk: list[tuple[int, Item]]
        # Whole chunks are read and filtered here, as a request can be cancelled between two of them.
        while not (rows and wanted is not None) and (chunk := await _on(self.readers, list, islice(items, CHUNK))):
            if self.admission.must_stop:
                raise Problem("stopping", "The file was not finished in time.")
            if wanted is not None:
                failed_file = next((i for _, i in chunk if isinstance(i, Unreadable) and i.index is None), failed_file)
                slices = [(n, i) for n, i in chunk if isinstance(i, Slice) or i.index is not None]
                numbers += [n if i.index is None else i.index for n, i in slices]
                chunk = [(n, i) for n, i in slices if wanted == (n if i.index is None else i.index)][:1]
            made = await self._classify([item for _, item in chunk], options.coverage)
            rows += [row for row, _ in made]
            failed = next((item for _, item in chunk if isinstance(item, Unreadable)), failed)
            if options.heatmap == "png":
                pictures += await _on(self.readers, list, map(self._draw, chunk, made, repeat(options)))
        if not rows and numbers:
            raise _no_slice(wanted, numbers, failed_file)
        if (error := failed or failed_file) and all(row.failed for row in rows):
            raise unreadable(error)
        return rows, pictures

    async def _classify(self, items: Sequence[Item], coverage: float) -> list[tuple[Record, HeatArray | None]]:
        """A row for each item, and the heatmap, float32 [K, 7, 7], of those that are slices."""
        slices = [item.pixels for item in items if isinstance(item, Slice)]
        prediction = await self.batcher.classify(np.stack(slices), coverage) if slices else None
        made: list[tuple[Record, HeatArray | None]] = []
        positions = count()
        for item in items:
            if isinstance(item, Slice) and prediction is not None:
                n = next(positions)
                row = record_of(item, prediction.judgement, n, self.classifier.classes, prediction.seconds)
                made.append((row, prediction.heatmap[n]))
            elif isinstance(item, Unreadable):
                made.append((failed_record(item), None))
        return made

    def _draw(
        self, entry: tuple[int, Item], made: tuple[Record, HeatArray | None], options: PredictionOptions
    ) -> dict[str, str | None]:
        """Image and heatmap of an item; None if it has no pictures."""
        (position, item), (row, heatmap) = entry, made
        pictures: dict[str, str | None] = {"image": None, "heatmap": None}
        if isinstance(item, Slice) and (options.slice is not None or position in spread(item.count)):
            pictures["image"] = slice_picture(item.pixels)
            if row.label and heatmap is not None:  # the heatmap of a refused image would be read as a prediction
                label = self.classifier.classes.index(options.label or row.label)
                pictures["heatmap"] = heat_picture(heatmap, label)
        return pictures

    async def batch(self, files: Iterable[tuple[str, io.BytesIO]], options: PredictionOptions) -> AsyncIterator[bytes]:
        """A line of JSON for each row of each file, as soon as it is known; a last one if the batch is incomplete."""
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.9 * self.settings.max_seconds  # leaves time for the last line
        try:
            await self._acquire_stream(end)
        except (Problem, TimeoutError) as error:
            yield _last_line(error)
            return
        try:
            rows = with_volumes(self._read_files(files, options, loop), self.classifier.classes)
            why: Problem | TimeoutError | None = None
            while why is None:
                done: list[Record] = []  # `extend` keeps the rows before an error
                try:
                    await asyncio.wait_for(_on(self.batches, done.extend, islice(rows, CHUNK)), end - loop.time())
                    if not done:
                        return
                    if self.admission.must_stop:
                        why = Problem("stopping", "the service is stopping")
                except (Problem, TimeoutError) as error:
                    why = error
                self.metrics.count_records(done)
                for row in done:
                    yield _line(row.file.lstrip("/") or ".", row)
            yield _last_line(why)
        finally:
            self.streams.release()

    async def _acquire_stream(self, end: float) -> None:
        """Acquire `streams`; Problem if the service stops first, TimeoutError at `end`."""
        turn = asyncio.create_task(self.streams.acquire())  # one task, which keeps its place in the queue
        try:
            async with asyncio.timeout_at(end):
                while not (await asyncio.wait([turn], timeout=_POLL))[0]:
                    if self.admission.must_stop:
                        raise Problem("stopping", "the service is stopping")
        except BaseException:
            if not turn.cancel():  # acquired at the same moment
                self.streams.release()
            raise

    def _read_files(
        self, files: Iterable[tuple[str, io.BytesIO]], options: PredictionOptions, loop: asyncio.AbstractEventLoop
    ) -> Iterator[Record]:
        """Rows of all files; runs on a thread, which waits for the batcher on the event loop."""
        limit, n, last = self.settings.limits.entries, 0, ""
        context = ReadContext(io.BytesIO(), "", options.plane, self.settings.limits, volume=options.volume)
        if options.volume is not None:  # a DICOM series may continue in any file
            files, survey = list(files), replace(context, survey=True, series=SeriesNames())
            heads = (read_stream(replace(survey, stream=content, source=name)) for name, content in files)
            chosen, lacking = choose_volume(chain.from_iterable(heads), options.volume)
            yield from map(failed_record, lacking)
            context = replace(context, chosen=chosen)
        for name, content in files:
            content.seek(0)
            items = read_stream(replace(context, stream=content, source=name))
            while chunk := list(islice(items, CHUNK)):
                for item in chunk:
                    n, last = n + (item.source != last), item.source
                if n > limit:  # each zip of a form has a limit of its own, and there may be many
                    raise Problem("too-large", f"over {limit:,} files in all", cure="Send fewer at once.")
                rows = asyncio.run_coroutine_threadsafe(self._classify(chunk, options.coverage), loop)
                yield from (row for row, _ in rows.result(self.settings.max_seconds))


async def _on(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def _no_slice(wanted: int | None, numbers: Sequence[int], failed: Unreadable | None) -> Problem:
    """The problem of a file that was read and lacks a slice; `failed` is what else is to be said about the file."""
    first, last = min(numbers), max(numbers)
    held = f"Its only slice is {first}" if first == last else f"Its slices are {first} to {last}"
    also = f" The file {failed.reason}." if failed else ""
    cure = f"Use {first}" + (f" to {last}" if last > first else "") + ", or omit slice to get all."
    return Problem("invalid-parameter", f"slice: there is no slice {wanted}. {held}.{also}", cure=cure)


def _json(record: Record) -> dict[str, Any]:
    """A record as the API returns it: files and series are named elsewhere, model and seconds once per response."""
    return {name: value for name, value in record.to_dict().items() if name not in _LEFT_OUT} | {
        "reason": in_query(record.reason)
    }


def _line(file: str | None, row: Record) -> bytes:
    """A line of a batch's response."""
    return json.dumps({"file": file, "series": row.series} | _json(row)).encode() + b"\n"


def _last_line(why: Problem | TimeoutError) -> bytes:
    """The line that says why a batch is incomplete."""
    problem = why if isinstance(why, Problem) else Problem("took-too-long", "it took too long")
    verdict = f"error: {problem.detail.rstrip('.')}"
    return _line(None, Record("image", "", verdict=verdict, reason=f"Not all was read. {problem.cure}"))
