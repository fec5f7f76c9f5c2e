"""CPU cores that this process may use (in containers often fewer than the machine has), and how many BLAS uses."""

import math
import os
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

from threadpoolctl import ThreadpoolController

_GROUP = Path("/sys/fs/cgroup")  # inside a container this is its own group


def usable_cores(group: Path = _GROUP) -> int:
    """CPU cores that this process may use, at least 1: the smaller of its affinity and its container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota(group))))


def _quota(group: Path) -> float:
    """CPU quota of a Linux control group in cores; infinite if there is none."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup v2, v1
        try:
            quota, period = (int(word) for name in names for word in (group / name).read_text().split())
        except (OSError, ValueError):  # missing, or "max"
            continue
        if quota > 0 and period > 0:  # -1: no limit
            return quota / period
    return math.inf


def single_threaded_blas() -> AbstractContextManager[object]:
    """Limit BLAS to one thread inside a `with` block.

    BLAS threads spin for a while after each product, which slows down inference and decoding on the same cores.
    """
    return _controller().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # type: ignore[no-untyped-call]
