"""Iterators over iterators: computed ahead on a thread, and in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], size: int) -> Iterator[T]:
    """The same items in the same order, computed ahead on a thread: `size` wait while the next one is computed.

    Decoding then overlaps with inference, as Pillow and ONNX Runtime both release the GIL. An exception raised by
    `items` is raised in its place. If the reader stops early, only the item in progress is still computed.
    """
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = deque(pool.submit(next, items, end) for _ in range(size + 1))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]  # not `end`, so a T
    finally:
        pool.shutdown(cancel_futures=True)


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
