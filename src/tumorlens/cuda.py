"""What computing on an NVIDIA GPU takes: kernels that give the same bits again, and exact float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Within it cuDNN takes the same kernels every time, none that adds up in an order of chance, and float32 is not
    rounded to TensorFloat-32, whose 10 bits of mantissa are its default for convolutions. Nothing changes on a CPU."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
