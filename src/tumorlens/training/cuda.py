"""What computing on an NVIDIA GPU takes: convolutions that give the same bits again, and exactly in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Within it convolutions on CUDA take the same kernels every time, none that adds up in an order of chance, and do
    not round float32 to TensorFloat-32, whose 10 bits of mantissa are their default. `torch.backends.fp32_precision`,
    where somebody set it, is obeyed before this. Nothing computes otherwise on a CPU."""
    enabled = torch.backends.cudnn.enabled
    with torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield
