"""When freed memory is returned to the system (settings of glibc's malloc), and when garbage is collected.

Memory that malloc keeps is reused at once; memory that it returns is handed out again page by page, zeroed. Training
allocates and frees the same blocks over and over, and is faster if they are kept. Steps whose memory grows with the
number of images should return all of it. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_SMALL = 1 << 20  # bytes
# Bytes, and number of mappings: what glibc adapts to once it has freed a large block.
_LARGE, _USUAL_TRIM, _USUAL_MAPPINGS = 32 << 20, 64 << 20, 65536


def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def give_back_memory() -> None:
    """Return freed memory to the system; glibc by itself keeps the holes between small objects."""
    if trim := _libc("malloc_trim"):
        trim(0)


@contextmanager
def blocks_given_back() -> Iterator[None]:
    """Inside the block, return memory of 1 MiB or more when it is freed; at its end, return all freed memory."""
    if mallopt := _libc("mallopt"):
        mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        _as_usual()


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Inside the block, keep all freed memory; at its end, return it.

    A training step allocates dozens of blocks of 10 to 40 MB. To get them from the system each time takes a tenth of
    the step.
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
