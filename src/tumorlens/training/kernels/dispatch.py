"""Entry point to the CPU kernels: `fast_convolutions` selects the convolutions that are not left to oneDNN.

Wide 3×3 convolutions with stride 1 use Winograd's algorithm (`winograd`): in float32, and in bfloat16 during training,
because its rounding error affects a gradient less than a prediction. For strided convolutions, only the gradient of the
weight is computed here, as a single matrix product; oneDNN takes up to twice as long for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from tumorlens.core.memory import blocks_kept
from tumorlens.training.kernels.minimal_filtering import BLOCK
from tumorlens.training.kernels.winograd import convolve

_CHANNELS = 128  # minimum; with 64, the transforms cost more than the products save: 1.5 times the time


def convolve_strided(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Compute `conv2d(x, weight, stride=stride, padding=padding)`, differentiable once in `x` and `weight`.

    Parameters
    ----------
    x
        float32 or bfloat16 [n, c, h, w] on the CPU; fastest in channels_last.
    weight
        [k, c, s, s] of the same dtype.

    Returns
    -------
    Tensor
        [n, k, (h + 2 padding - s) // stride + 1, (w + 2 padding - s) // stride + 1] of the same dtype.
    """
    found: Tensor = _Strided.apply(x, weight, stride, padding)
    return found


class _Strided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return nn.functional.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(  # type: ignore[no-untyped-call]
                x.shape, weight, gradient, stride=ctx.stride, padding=ctx.padding
            )
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(x, gradient, weight.shape[-1], ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def _of_weight(x: Tensor, gradient: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """Return the gradient of a weight [k, c, side, side], given that of the output [n, k, down, across]."""
    c, k = x.shape[1], gradient.shape[1]
    flat = gradient.permute(0, 2, 3, 1).reshape(-1, k)  # (n · down · across, k)
    padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # (n, h, w, c)
    windows = padded.unfold(1, side, stride).unfold(2, side, stride)  # (n, down, across, c, side, side)
    seen = windows.permute(0, 1, 2, 4, 5, 3).reshape(len(flat), side * side * c)
    if x.dtype == torch.bfloat16:  # gives the memory layout of the weight
        return (flat.T @ seen).view(k, side, side, c).permute(0, 3, 1, 2)
    return (seen.T @ flat).view(side, side, c, k).permute(3, 2, 0, 1)


def _winograd(m: nn.Conv2d, x: Tensor) -> Tensor:
    kind = _computed_in(x)
    if kind == torch.float32:
        return convolve(x, m.weight)
    if kind == torch.bfloat16 and m.training:
        return convolve(x.to(kind), m.weight)
    return nn.Conv2d.forward(m, x)


def _strided(m: nn.Conv2d, x: Tensor) -> Tensor:
    kind = _computed_in(x)
    if kind == torch.float32 or (kind == torch.bfloat16 and m.training):
        return convolve_strided(x.to(kind), m.weight.to(kind), m.stride[0], int(m.padding[0]))
    return nn.Conv2d.forward(m, x)


def _computed_in(x: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution of `x` is computed, with or without autocast."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


@contextmanager
def fast_convolutions(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Use these kernels for the convolutions in `modules` that benefit: wide 3×3 and strided ones.

    Parameters, buffers and names stay unchanged.
    """
    convolutions = (m for module in modules for m in module.modules() if type(m) is nn.Conv2d)
    chosen = {m: forward for m in convolutions if (forward := _forward_of(m))}
    for m, forward in chosen.items():
        m.forward = partial(forward, m)  # type: ignore[method-assign]
    try:
        with blocks_kept() if chosen else nullcontext():
            yield
    finally:
        for m in chosen:
            del m.forward  # restores the method of the class


def _forward_of(m: nn.Conv2d) -> Callable[[nn.Conv2d, Tensor], Tensor] | None:
    """Return the function that computes a convolution here, or None to leave it to PyTorch."""
    if (
        m.dilation != (1, 1) or m.groups != 1 or m.bias is not None
        or m.padding_mode != "zeros" or m.in_channels < _CHANNELS
    ):  # fmt: skip
        return None
    if (m.kernel_size, m.stride, m.padding) == ((3, 3), (1, 1), (1, 1)):
        return None if m.in_channels % BLOCK or m.out_channels % BLOCK else _winograd
    square = all(len({*pair}) == 1 for pair in (m.kernel_size, m.stride, m.padding))
    return _strided if square and m.stride != (1, 1) else None
