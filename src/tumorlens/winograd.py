"""3×3 convolutions with a third of the multiplications, for training in float32 on a CPU.

Winograd's minimal filtering F(4×4, 3×3), whose matrices and sources stand in `minimal_filtering`: a tile of 4×4 outputs
takes 36 multiplications where the definition takes 144. Summed over channels they are 36 matrix products, and their
adjoints, which the backward pass needs, are 72 more.

The sums are the same ones in another order and with other intermediate values, so rounding differs: by about
1e-6 of the largest value here, as it differs between processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tumorlens.allocator import blocks_kept
from tumorlens.minimal_filtering import matrices

_OUT = 4  # outputs of a tile, along each side
_IN = _OUT + 2  # inputs of a tile
_CHANNELS = 128  # with 64 the transforms outweigh what the products gain: half as long again


_B, _G, _A = (torch.from_numpy(m).float() for m in matrices(_OUT))


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight, padding=1)`, differentiable in both.

    Parameters
    ----------
    x
        float32 [n, c, h, w] on the CPU; fastest in channels_last.
    weight
        float32 [k, c, 3, 3].

    Returns
    -------
    Tensor
        float32 [n, k, h, w] in channels_last.
    """
    found: Tensor = _Convolution.apply(x, weight)
    return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k = weight.shape[0]
        down, across = -(-h // _OUT), -(-w // _OUT)
        padded = x.new_zeros(n, _OUT * down + 2, _OUT * across + 2, c)
        padded[:, 1 : h + 1, 1 : w + 1] = x.permute(0, 2, 3, 1)
        image, row, column, _ = padded.stride()
        tiles = padded.as_strided(
            (n, down, across, _IN, _IN, c), (image, _OUT * row, _OUT * column, row, column, 1)
        )  # fmt: skip
        d = _transform(_B, tiles.reshape(-1, _IN * _IN, c))  # (tiles, 36, c)
        g = _transform(_G, weight.permute(0, 2, 3, 1).reshape(k, 9, c))  # (k, 36, c)
        products = torch.bmm(d.transpose(0, 1), g.permute(1, 2, 0))  # (36, tiles, k)
        y = _transform(_A, products.transpose(0, 1)).view(n, down, across, _OUT, _OUT, k)
        ctx.save_for_backward(d, g)
        ctx.shape = (n, c, h, w)
        whole = y.permute(0, 1, 3, 2, 4, 5).reshape(n, _OUT * down, _OUT * across, k)
        return whole[:, :h, :w].contiguous().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        d, g = ctx.saved_tensors
        n, c, h, w = ctx.shape
        k = g.shape[0]
        down, across = -(-h // _OUT), -(-w // _OUT)
        whole = gradient.new_zeros(n, _OUT * down, _OUT * across, k)
        whole[:, :h, :w] = gradient.permute(0, 2, 3, 1)
        y = whole.view(n, down, _OUT, across, _OUT, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, _OUT * _OUT, k)
        products = _transform(_A.T, y)  # (tiles, 36, k)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_g = torch.bmm(products.permute(1, 2, 0), d.transpose(0, 1))  # (36, k, c)
            of_weight = _transform(_G.T, of_g.transpose(0, 1)).view(k, 3, 3, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            of_d = torch.bmm(products.transpose(0, 1), g.transpose(0, 1))  # (36, tiles, c)
            tiles = _transform(_B.T, of_d.transpose(0, 1)).view(n, down, across, _IN, _IN, c)
            of_x = _overlap_add(tiles)[:, 1 : h + 1, 1 : w + 1].contiguous().permute(0, 3, 1, 2)
        return of_x, of_weight


def _transform(matrix: Tensor, values: Tensor) -> Tensor:
    """[rows, columns] times each of [n, columns, channels]: small products, which MKL spreads over the cores."""
    return torch.bmm(matrix.expand(len(values), *matrix.shape), values)


def _overlap_add(tiles: Tensor) -> Tensor:
    """Adjoint of cutting into tiles: [n, down, across, 6, 6, c] → [n, 4·down + 4, 4·across + 4, c]."""
    n, down, across, _, _, c = tiles.shape
    padded = tiles.new_zeros(n, down + 1, _OUT, across + 1, _OUT, c)
    for rows, below in ((slice(0, _OUT), 0), (slice(_OUT, _IN), 1)):
        for columns, right in ((slice(0, _OUT), 0), (slice(_OUT, _IN), 1)):
            part = tiles[:, :, :, rows, columns].permute(0, 1, 3, 2, 4, 5)
            padded[:, below : down + below, : part.shape[2], right : across + right, : part.shape[4]] += part
    return padded.view(n, _OUT * (down + 1), _OUT * (across + 1), c)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight) if x.dtype == torch.float32 else super().forward(x)


def by_winograd(wanted: str, device: torch.device, precision: torch.dtype) -> bool:
    """Whether layers that learn convolve by `convolve`, from `auto` or `direct`: in float32 on a CPU alone."""
    return wanted == "auto" and device.type == "cpu" and precision == torch.float32


@contextmanager
def winograd(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it the convolutions of `modules` that gain from it compute by `convolve`: 3×3, stride 1, wide ones.

    Parameters, buffers and names stay as they are.
    """
    chosen = [
        m for module in modules for m in module.modules()
        if type(m) is nn.Conv2d and m.kernel_size == (3, 3) and m.stride == (1, 1) and m.padding == (1, 1)
        and m.dilation == (1, 1) and m.groups == 1 and m.bias is None and m.padding_mode == "zeros"
        and m.in_channels >= _CHANNELS
    ]  # fmt: skip
    for m in chosen:
        m.__class__ = _Conv2d
    try:
        with blocks_kept() if chosen else nullcontext():
            yield
    finally:
        for m in chosen:
            m.__class__ = nn.Conv2d
