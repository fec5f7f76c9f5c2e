"""Dynamic batching: images of concurrent requests go through the network together, on a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tumorlens.inference.classifier import Classifier
from tumorlens.inference.network import BATCH
from tumorlens.inference.uncertainty import Classification
from tumorlens.readers.pixels import Pixels
from tumorlens.serve.problems import Problem


@dataclass(frozen=True, eq=False)
class Prediction:
    """The classifier's output for the n images of one request."""

    judgement: Classification
    heatmap: npt.NDArray[np.float32]
    """float32 [n, K, 7, 7], signed."""
    seconds: float
    """Of inference and verdict for one image: the batch's time, shared equally."""


@dataclass(frozen=True, eq=False)
class _Queued:
    pixels: Pixels
    coverage: float
    future: asyncio.Future[Prediction]


class Batcher:
    """Forms batches of the images of all requests, first come, first served; made by `batching`.

    While one batch is classified the next one is collected, so that batches grow with the load by themselves. The
    window matters at the start: requests that arrive shortly after the first are classified with it.
    """

    def __init__(self, classifier: Classifier, window: float, batch: int, on_batch: Callable[[int], None]) -> None:
        self._classifier, self._window, self._batch, self._on_batch = classifier, window, batch, on_batch
        self._queue: deque[_Queued] = deque()
        self._not_empty = asyncio.Event()

    async def classify(self, pixels: Pixels, coverage: float) -> Prediction:
        """Classify uint8 [n, 224, 224, 3], n ≥ 1; a cancelled call takes its images out of the queue.

        Raises
        ------
        ConfigError, DataError
            As `Classifier.run` and `UncertaintyModel.assess` do.
        """
        queued = _Queued(pixels, coverage, asyncio.get_running_loop().create_future())
        self._queue.append(queued)
        self._not_empty.set()
        return await queued.future

    async def run(self) -> None:
        """Classify what is queued, until cancelled."""
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                await self._not_empty.wait()
                if self._window and sum(len(queued.pixels) for queued in self._queue) < self._batch:
                    await asyncio.sleep(self._window)
                group = self._next_batch()
                if not group:
                    continue
                try:
                    predictions = await asyncio.get_running_loop().run_in_executor(
                        thread, _classify, self._classifier, group
                    )
                except Exception as error:  # raised by `classify` of each request in the batch
                    for queued in group:
                        if not queued.future.done():
                            queued.future.set_exception(error)
                    continue
                self._on_batch(sum(len(queued.pixels) for queued in group))
                for queued, prediction in zip(group, predictions, strict=True):
                    if not queued.future.done():
                        queued.future.set_result(prediction)

    def reject_waiting(self) -> None:
        """Fail what is still queued with 503 `stopping`; a batch that is being classified is finished."""
        while self._queue:
            queued = self._queue.popleft()
            if not queued.future.done():
                queued.future.set_exception(Problem("stopping", "The image was not classified in time."))
        self._not_empty.clear()

    def _next_batch(self) -> list[_Queued]:
        """The next batch, without cancelled requests: images of one coverage, as nearly all have the same."""
        group: list[_Queued] = []
        while self._queue and (not group or _fits(self._queue[0], group, self._batch)):
            queued = self._queue.popleft()
            if not queued.future.done():
                group.append(queued)
        if not self._queue:
            self._not_empty.clear()
        return group


@asynccontextmanager
async def batching(
    classifier: Classifier, *, window: float, batch: int = BATCH, on_batch: Callable[[int], None] = lambda _n: None
) -> AsyncIterator[Batcher]:
    """A running batcher.

    Parameters
    ----------
    window
        Seconds that the first image waits for others.
    batch
        Maximum number of images per run of the network; only a single request with more exceeds it.
    on_batch
        Called with the size of each batch.
    """
    batcher = Batcher(classifier, window, batch, on_batch)
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        batcher.reject_waiting()


def _fits(queued: _Queued, group: Sequence[_Queued], batch: int) -> bool:
    """Whether a request can join a batch, which has one coverage and at most `batch` images."""
    return queued.coverage == group[0].coverage and sum(len(q.pixels) for q in (*group, queued)) <= batch


def _classify(classifier: Classifier, group: Sequence[_Queued]) -> list[Prediction]:
    """Run the network once for requests of the same coverage."""
    began = time.perf_counter()
    pixels = np.concatenate([queued.pixels for queued in group])
    outputs = classifier.run(pixels)
    whole = classifier.assess(outputs, pixels, coverage=group[0].coverage)
    seconds = (time.perf_counter() - began) / len(pixels)
    ends = np.cumsum([len(queued.pixels) for queued in group]).tolist()
    predictions = []
    for first, end in pairwise([0, *ends]):
        own = Classification(*(getattr(whole, field.name)[first:end] for field in fields(whole)))
        predictions.append(Prediction(own, outputs.heatmap[first:end].copy(), seconds))
    return predictions
