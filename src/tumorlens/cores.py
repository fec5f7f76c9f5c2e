"""How many processors this process may use, fewer than the machine has in most containers, and for what."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def usable_cores() -> int:
    """Cores that this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_for_matrices() -> AbstractContextManager[object]:
    """Within it numpy multiplies matrices on one core.

    Its threads spin for a while after each product, and take the cores from the network and from decoding.
    """
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # type: ignore[no-untyped-call]
