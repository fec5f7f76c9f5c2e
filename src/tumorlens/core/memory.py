"""Control when glibc's malloc returns freed memory to the system, and when Python collects garbage.

Memory that malloc keeps can be reused at once, whereas memory it has returned must be mapped and zeroed again page by
page. Training allocates and frees the same blocks over and over, so it runs faster if they are kept. Work whose memory
grows with the number of images should return all of it. With other C libraries, these functions do nothing.
"""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options, from malloc.h
#: The values that glibc adapts to after freeing a large block: bytes, bytes, and a number of mappings.
_USUAL = ((_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20), (_MMAP_MAX, 65536))


def _libc(name: str, *arguments: int) -> None:
    """Call a function of glibc; on other systems do nothing."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)


def give_back_memory() -> None:
    """Return freed memory to the system; by default, glibc keeps the gaps between small objects."""
    _libc("malloc_trim", 0)


@contextmanager
def _malloc_options(*options: tuple[int, int]) -> Iterator[None]:
    """Set options of malloc inside a `with` block, and return all freed memory at its end."""
    for option in options:
        _libc("mallopt", *option)
    try:
        yield
    finally:
        for option in _USUAL:
            _libc("mallopt", *option)
        give_back_memory()


#: Return blocks of 1 MiB or more as soon as they are freed, and all freed memory at the end of the `with` block.
blocks_given_back = partial(_malloc_options, (_MMAP_THRESHOLD, 1 << 20))

#: Keep all freed memory for reuse, and return it at the end of the `with` block. A training step allocates dozens of
#: blocks of 10 to 40 MB. Requesting them from the system each time would take a tenth of the step.
blocks_kept = partial(_malloc_options, (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))


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
