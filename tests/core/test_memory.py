"""Freed memory is kept for reuse or returned to the system, and garbage collection is paused and resumed."""

import ctypes
import gc
import resource
from collections.abc import Callable
from multiprocessing import get_context

import numpy as np
import pytest

from tumorlens.core.memory import blocks_given_back, blocks_kept, gc_disabled

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")


def faults(megabytes: int) -> int:
    """Page faults while a block of that size is allocated, written and freed 20 times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(megabytes << 20, np.uint8)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def in_a_fresh_process(work: Callable[[], None]) -> None:
    """Run `work` where no other test has left free memory in the heap."""
    process = get_context("spawn").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def kept_inside_and_returned_after() -> None:
    with blocks_kept():
        faults(40)
        within = faults(40)
    # Now and then a kept block is cut by a small one that outlives it, and the next 40 MB are requested again.
    assert 4 * within < faults(40)


def returned_inside_and_kept_after() -> None:
    with blocks_given_back():
        faults(8)
        within = faults(8)
    faults(8)
    assert 4 * faults(8) < within


@glibc
@pytest.mark.parametrize("work", [kept_inside_and_returned_after, returned_inside_and_kept_after])
def test_freed_pages_are(work: Callable[[], None]) -> None:
    in_a_fresh_process(work)


@pytest.mark.parametrize("searched", [True, False])
def test_garbage_collection_is_restored(searched: bool) -> None:
    try:
        (gc.enable if searched else gc.disable)()
        with gc_disabled():
            assert not gc.isenabled()
        assert gc.isenabled() == searched
    finally:
        gc.enable()
