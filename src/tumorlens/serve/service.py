"""A body → rows: reading on a few threads, classifying in batches with everybody else's."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np

from tumorlens.inference.classifier import Classifier
from tumorlens.inference.predict import failed_row, model_name, row_of
from tumorlens.inference.records import Row
from tumorlens.inference.volumes import with_volumes
from tumorlens.readers import Plane, Slice, Unreadable
from tumorlens.readers.formats import is_raster, read_stream
from tumorlens.readers.types import SeriesNames
from tumorlens.serve.admission import Admission
from tumorlens.serve.batching import Answer, Batcher
from tumorlens.serve.metrics import Metrics
from tumorlens.serve.pictures import heat_picture, slice_picture, spread
from tumorlens.serve.problems import Problem, stopping, unreadable
from tumorlens.serve.settings import Settings

CHUNK = 8  # slices of one file that are read and classified at a time, so that others get their turn
_LOOK = 0.2  # seconds after which a waiting batch looks whether the service stops
_UNFOLDED = 4  # volumes that are read at a time, and as many archives
Item = Slice | Unreadable


@dataclass(frozen=True)
class Wish:
    """What one request asks for."""

    coverage: float = 0.95
    """Of prediction sets."""
    plane: Plane = "axial"
    """Of a NIfTI volume."""
    heatmap: Literal["png", "none"] = "none"
    """Whether rows carry pictures."""
    label: str | None = None
    """The class whose heatmap is drawn; the row's own where absent."""
    slice: int | None = None
    """The only slice that is answered for."""


@dataclass(frozen=True, eq=False)
class Service:
    """What every request needs."""

    classifier: Classifier
    settings: Settings
    admission: Admission
    metrics: Metrics
    batcher: Batcher
    readers: ThreadPoolExecutor
    """Decode single files."""
    jobs: ThreadPoolExecutor
    """Step through whole batches."""
    unfolding: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_UNFOLDED))
    """A volume that is being read holds up to its limit of memory, however small its body: few at once."""
    streaming: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_UNFOLDED))
    """The same of batches, which have places of their own: one lasts as long as its client takes to read it."""

    async def predict(self, body: bytes, wish: Wish) -> bytes:
        """The JSON answer for one file.

        Raises
        ------
        Problem
            It holds no picture, or not the one that is wished for.
        """
        if is_raster(body):
            return await self._predicted(body, wish)
        async with self.unfolding:
            return await self._predicted(body, wish)

    async def _predicted(self, body: bytes, wish: Wish) -> bytes:
        began = time.perf_counter()
        rows: list[Row] = []
        pictures: list[dict[str, str | None]] = []
        reason: Unreadable | None = None
        whole: Unreadable | None = None  # of the file, which no number asks for
        items = enumerate(read_stream(io.BytesIO(body), "body", wish.plane, self.settings.limits, SeriesNames()))
        # Chunks are read whole and sifted here: between two of them a request can be cancelled.
        while not (rows and wish.slice is not None) and (chunk := await self._in(self.readers, partial(_chunk, items))):
            if self.admission.hurried:
                raise stopping("The file was not finished in time.")
            if wish.slice is not None:
                whole = next((it for _, it in chunk if isinstance(it, Unreadable) and it.index is None), whole)
                chunk = [entry for entry in chunk if _is_slice(wish.slice, entry)][:1]
                if not chunk:
                    continue
            made, answer = await self._rows([item for _, item in chunk], wish)
            rows += made
            reason = next((item for _, item in chunk if isinstance(item, Unreadable)), reason)
            if wish.heatmap == "png":
                pictures += await self._in(self.readers, partial(self._pictures, chunk, made, answer, wish))
        if not rows and whole:
            raise unreadable(whole)
        if not rows:
            raise Problem(
                "invalid-parameter", f"slice: the file has no slice {wish.slice}.", cure="Leave it out to see them all."
            )
        if reason and all(row.failed for row in rows):
            raise unreadable(reason)
        self.metrics.judged(rows)
        record = {"model": model_name(self.classifier), "rows": self._listed(rows, pictures, whole=wish.slice is None)}
        return json.dumps(record | {"seconds": round(time.perf_counter() - began, 4)}).encode()

    def _listed(
        self, rows: list[Row], pictures: Sequence[dict[str, str | None]], *, whole: bool
    ) -> list[dict[str, Any]]:
        """The rows as they are answered, with their pictures, and with rows for a whole volume."""
        classes = self.classifier.classes
        extra = iter(pictures)
        listed = with_volumes(rows, classes) if whole else rows
        return [_json(r, classes) | ({} if r.kind == "volume" else next(extra, {})) for r in listed]

    async def _rows(self, items: Sequence[Item], wish: Wish) -> tuple[list[Row], Answer | None]:
        """A row for each item, and what the network said of those that are slices."""
        slices = [item.pixels for item in items if isinstance(item, Slice)]
        answer = await self.batcher.classify(np.stack(slices), wish.coverage) if slices else None
        rows, n = [], 0
        for item in items:
            if isinstance(item, Slice) and answer is not None:
                rows.append(row_of(item, n, answer.judgement, self.classifier.classes, answer.seconds))
                n += 1
            elif isinstance(item, Unreadable):
                rows.append(failed_row(item))
        return rows, answer

    async def batch(self, files: Iterable[tuple[str, io.BytesIO]], wish: Wish) -> AsyncIterator[bytes]:
        """A line of JSON for each row of each file, as they come; a last one says why, where not all was read."""
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.9 * self.settings.max_seconds  # the last line takes time too
        try:
            await self._turn(end)
        except (Problem, TimeoutError) as error:
            yield self._last(error)
            return
        try:
            rows = with_volumes(self._each(files, wish, loop), self.classifier.classes)
            why: Exception | None = None
            while why is None:
                done: list[Row] = []  # kept whatever comes of the rest
                try:
                    await asyncio.wait_for(self._in(self.jobs, partial(_take, rows, done)), end - loop.time())
                    if not done:
                        return
                    if self.admission.hurried:
                        why = stopping("the service is stopping")
                except (Problem, TimeoutError) as error:
                    why = error
                self.metrics.judged(done)
                for row in done:
                    yield self._line({"file": row.file.lstrip("/") or ".", "series": row.series}, row)
            yield self._last(why)
        finally:
            self.streaming.release()

    async def _turn(self, end: float) -> None:
        """Take a place in `streaming`; Problem or TimeoutError where none comes before the service stops, or `end`."""
        loop = asyncio.get_running_loop()
        turn = loop.create_task(self.streaming.acquire())  # one for the whole wait, which keeps its place in the queue
        try:
            while not (await asyncio.wait([turn], timeout=max(0.0, min(_LOOK, end - loop.time()))))[0]:
                if self.admission.hurried:
                    raise stopping("the service is stopping")
                if loop.time() >= end:
                    raise TimeoutError
        except BaseException:
            if not turn.cancel():  # the place came in the same moment
                self.streaming.release()
            raise

    def _last(self, why: Exception) -> bytes:
        cure = why.cure if isinstance(why, Problem) else "Send less at once, or raise --max-seconds."
        reason = why.detail.rstrip(".") if isinstance(why, Problem) else "it took too long"
        row = Row("image", "", None, None, "", (), (), f"error: {reason}", f"Not all was read. {cure}", None, 0.0)
        return self._line({"file": None, "series": None}, row)

    def _line(self, where: dict[str, str | None], row: Row) -> bytes:
        return json.dumps(where | _json(row, self.classifier.classes)).encode() + b"\n"

    def _each(
        self, files: Iterable[tuple[str, io.BytesIO]], wish: Wish, loop: asyncio.AbstractEventLoop
    ) -> Iterator[Row]:
        """Rows of all files; runs on a thread, which waits for the batcher on the event loop's."""
        names, most, n, last = SeriesNames(), self.settings.limits.entries, 0, ""
        for name, content in files:
            items = read_stream(content, name, wish.plane, self.settings.limits, names)
            while chunk := list(islice(items, CHUNK)):
                for item in chunk:
                    n, last = n + (item.source != last), item.source
                if n > most:  # each zip of a form has its own limit, and there may be many
                    raise Problem("too-large", f"over {most:,} files in all", cure="Send fewer at once.")
                asked = asyncio.run_coroutine_threadsafe(self._rows(chunk, wish), loop)
                yield from asked.result(self.settings.max_seconds)[0]

    def _pictures(
        self, chunk: Sequence[tuple[int, Item]], rows: Sequence[Row], answer: Answer | None, wish: Wish
    ) -> list[dict[str, str | None]]:
        made: list[dict[str, str | None]] = []
        n = 0
        for (position, item), row in zip(chunk, rows, strict=True):
            one: dict[str, str | None] = {"image": None, "heatmap": None}
            if isinstance(item, Slice) and answer is not None:
                if wish.slice is not None or position in spread(item.count):
                    one["image"] = slice_picture(item.pixels)
                    if row.label:  # a map of a refused image would pass for an answer
                        one["heatmap"] = heat_picture(
                            answer.heatmap[n], self.classifier.classes.index(wish.label or row.label)
                        )
                n += 1
            made.append(one)
        return made

    async def _in(self, pool: ThreadPoolExecutor, work: partial[Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _take(rows: Iterator[Row], done: list[Row]) -> None:
    """Move the next few rows to `done`, one by one: those before an error stay."""
    for row in islice(rows, CHUNK):
        done.append(row)


def _chunk(items: Iterator[tuple[int, Item]]) -> list[tuple[int, Item]]:
    return list(islice(items, CHUNK))


def _is_slice(wanted: int, entry: tuple[int, Item]) -> bool:
    position, item = entry
    return wanted == (position if item.index is None else item.index)


def _json(row: Row, classes: Sequence[str]) -> dict[str, Any]:
    """A row as it is answered, without the file's name."""
    probabilities = {name: float(f"{p:.6g}") for name, p in zip(classes, row.probabilities, strict=False)}
    return {
        "kind": row.kind, "slice": row.slice, "class": row.label or None, "probabilities": probabilities or None,
        "set": list(row.set), "verdict": row.verdict, "reason": row.reason,
        "score": None if row.score is None else float(f"{row.score:.6g}"),
    }  # fmt: skip
