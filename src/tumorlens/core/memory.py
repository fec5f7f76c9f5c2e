"""When freed memory goes back to the system: settings of glibc's malloc, and Python's search for garbage.

Other C libraries are left as they are.

Kept, a freed block is there at once for the next; given back, the system hands it out again page by page and
zeroed. Training and the frozen layers, which take and free the same blocks over and over, are faster where blocks are
kept; steps that grow with the number of images must leave nothing behind for those after them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # of malloc.h
_SMALL = 1 << 20
# Bytes; what glibc arrives at by itself, once a block of the first size was freed.
_LARGE, _USUAL_TRIM = 32 << 20, 64 << 20
_USUAL_MAPPINGS = 65536


def _libc(name: str) -> Any:
    """That function of glibc; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def give_back_memory() -> None:
    """Return freed memory to the system now; glibc would keep the holes that many small objects leave."""
    if trim := _libc("malloc_trim"):
        trim(0)


def give_back_blocks(*, arenas: int = 0) -> None:
    """From now on return blocks from 1 MiB on as soon as they are freed, else glibc learns to keep them, for each
    thread apart; with `arenas`, let threads share that many."""
    if mallopt := _libc("mallopt"):
        mallopt(_MMAP_THRESHOLD, _SMALL)
        if arenas:
            mallopt(_ARENA_MAX, arenas)


@contextmanager
def blocks_given_back() -> Iterator[None]:
    """As `give_back_blocks` within it; after it nothing freed is left, and blocks below 32 MiB are kept again."""
    give_back_blocks()
    try:
        yield
    finally:
        _as_usual()


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Keep all that is freed, until the end.

    A step of training takes and frees dozens of blocks of 10 to 40 MB, and to take them anew from the system is a
    tenth of its time.
    """
    if mallopt := _libc("mallopt"):
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        _as_usual()


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the garbage collector inside a `with` block.

    Importing PyTorch creates hundreds of thousands of objects that all stay, and collections take a fifth of that time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _as_usual() -> None:
    if mallopt := _libc("mallopt"):
        mallopt(_MMAP_MAX, _USUAL_MAPPINGS)
        mallopt(_MMAP_THRESHOLD, _LARGE)
        mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
    give_back_memory()
