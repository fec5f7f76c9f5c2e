"""Iterators of iterators: ahead of their reader, on a thread of its own, and in groups."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 0.1  # seconds between looks at whether the reader has gone away
_GIVE_UP = 5.0  # seconds to wait for an item that is being made when the reader goes away


def ahead(items: Iterator[T], size: int) -> Iterator[T]:
    """The same items in the same order, of which up to `size` are made before they are asked for.

    Decoding then overlaps with inference: Pillow and ONNX Runtime both let other threads run. An exception of
    `items` is raised where the item would have stood; a reader that stops early stops the thread too.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(entry, timeout=_PATIENCE)
                return

    def work() -> None:
        try:
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # handed over, whatever it is
            put((False, error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, entry = waiting.get()
            if not more:
                if isinstance(entry, BaseException):
                    raise entry
                return
            yield entry  # type: ignore[misc]  # an item, as `more` says
    finally:
        stopped.set()
        thread.join(_GIVE_UP)


def grouped(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """`size` items each time, what is left the last time; an error comes after what came before it."""
    group: list[T] = []
    try:
        for item in items:
            group.append(item)
            if len(group) == size:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group
