"""Iterators over iterators: computed ahead on a thread, and in batches."""

import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = 5.0  # seconds to wait for the item in progress when the reader stops early


def prefetch(items: Iterator[T], size: int) -> Iterator[T]:
    """The same items in the same order, computed ahead on a thread: `size` wait while the next one is computed.

    Decoding then overlaps with inference, as Pillow and ONNX Runtime both release the GIL. An exception raised by
    `items` is raised in its place. If the reader stops early, only the item in progress is still computed.
    """
    end = object()
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    failed: list[BaseException] = []
    room, stopped = threading.Semaphore(size), threading.Event()

    def work() -> None:
        try:
            for item in items:
                waiting.put(item)
                room.acquire()
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the reader
            failed.append(error)
        finally:
            waiting.put(end)

    # A daemon: `items` may wait for standard input, and a thread of a pool would be joined when the process ends.
    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not end:
            room.release()
            yield item
        for error in failed:
            raise error
    finally:
        stopped.set()
        room.release()
        thread.join(_PATIENCE)


def batched(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter. If `items` raises, what came before is yielded first."""
    batch: list[T] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
