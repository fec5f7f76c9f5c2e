"""Control when glibc's malloc returns freed memory to the system, and when Python collects garbage.

Memory that malloc keeps can be reused at once, whereas memory it has returned must be mapped and zeroed again page by
page. Training allocates and frees the same blocks over and over, so it runs faster if they are kept. Work whose memory
grows with the number of images should return all of it. With other C libraries, these functions do nothing.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # from malloc.h
_SMALL = 1 << 20  # bytes
# Bytes, bytes and a number of mappings: the values that glibc adapts to after freeing a large block.
_LARGE, _USUAL_TRIM, _USUAL_MAPPINGS = 32 << 20, 64 << 20, 65536


def _libc(name: str) -> Any:
    """Return a glibc function, or None on other systems."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def give_back_memory() -> None:
    """Return freed memory to the system; by default, glibc keeps the gaps between small objects."""
    if trim := _libc("malloc_trim"):
        trim(0)


@contextmanager
def blocks_given_back() -> Iterator[None]:
    """Return blocks of 1 MiB or more as soon as they are freed, and all freed memory at the end of the `with` block."""
    if mallopt := _libc("mallopt"):
        mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        _as_usual()


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Keep all freed memory for reuse, and return it at the end of the `with` block.

    A training step allocates dozens of blocks of 10 to 40 MB. Requesting them from the system each time would take a
    tenth of the step.
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

    Importing PyTorch creates hundreds of thousands of objects that are never freed, and garbage collection takes a
    fifth of the import time.
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
