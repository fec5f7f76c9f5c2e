"""How many processors this process may use, fewer than the machine has in most containers, and for what."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from threadpoolctl import ThreadpoolController

_GROUP = Path("/sys/fs/cgroup")  # of a container, its own


def usable_cores(group: Path = _GROUP) -> int:
    """Cores that this process may use, at least 1: those it may run on, or what its container's share is worth."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota(group))))


def _quota(group: Path) -> float:
    """Cores' worth of time that Linux lets a control group have; infinite where nothing says so."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of version 2, of version 1
        try:
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:  # -1 stands for no limit
            return quota / period
    return math.inf


def one_for_matrices() -> AbstractContextManager[object]:
    """Within it numpy multiplies matrices on one core.

    Its threads spin for a while after each product, and take the cores from the network and from decoding.
    """
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # type: ignore[no-untyped-call]
