"""3×3 convolutions with a quarter to a third of the multiplications, for training in float32 on a CPU.

Winograd's minimal filtering F(m×m, 3×3), whose matrices and sources stand in `minimal_filtering`: a tile of m×m outputs
takes (m + 2)² multiplications where the definition takes 9 m². Summed over channels they are (m + 2)² matrix products,
and their adjoints, which the backward pass needs, are twice as many. Tiles are 4×4 or 5×5, what fits a side best: 14
takes three of 5 with one row to spare, 7 two of 4.

The sums are the same ones in another order and with other intermediate values, so rounding differs: by 1e-6 to 1e-5 of
the largest value here, as it differs between processors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tumorlens.minimal_filtering import matrices

_MATRICES = {out: tuple(torch.from_numpy(m).float() for m in matrices(out)) for out in (4, 5)}


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


def tile_side(h: int, w: int) -> int:
    """Outputs of a tile along each side, for h×w outputs: 4 or 5, whichever takes fewer multiplications."""
    return min(_MATRICES, key=lambda out: -(-h // out) * -(-w // out) * (out + 2) ** 2)


def windows(x: Tensor, padding: int, side: int, step: int, count: tuple[int, int]) -> Tensor:
    """What lies under a side×side window as it moves over x [n, c, h, w] by `step`, with `padding` zeros before it.

    Returns
    -------
    Tensor
        [n, down, across, side, side, c], `count` being (down, across): a view of a padded copy.
    """
    n, c, h, w = x.shape
    high, wide = (max(step * (k - 1) + side, padding + length) for k, length in zip(count, (h, w), strict=True))
    padded = x.new_zeros(n, high, wide, c)
    padded[:, padding : h + padding, padding : w + padding] = x.permute(0, 2, 3, 1)
    image, row, column, _ = padded.stride()
    return padded.as_strided((n, *count, side, side, c), (image, step * row, step * column, row, column, 1))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x.shape
        k, out = weight.shape[0], tile_side(h, w)
        down, across, side = -(-h // out), -(-w // out), out + 2
        b, g_matrix, a = _MATRICES[out]
        tiles = windows(x, 1, side, out, (down, across))
        d = _transform(b, tiles.reshape(-1, side * side, c))  # (tiles, side², c)
        g = _transform(g_matrix, weight.permute(0, 2, 3, 1).reshape(k, 9, c))  # (k, side², c)
        products = torch.bmm(d.transpose(0, 1), g.permute(1, 2, 0))  # (side², tiles, k)
        y = _transform(a, products.transpose(0, 1)).view(n, down, across, out, out, k)
        ctx.save_for_backward(d, g)
        ctx.shape = (n, c, h, w)
        whole = y.permute(0, 1, 3, 2, 4, 5).reshape(n, out * down, out * across, k)
        return whole[:, :h, :w].contiguous().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        d, g = ctx.saved_tensors
        n, c, h, w = ctx.shape
        k, out = g.shape[0], tile_side(h, w)
        down, across, side = -(-h // out), -(-w // out), out + 2
        b, g_matrix, a = _MATRICES[out]
        whole = gradient.new_zeros(n, out * down, out * across, k)
        whole[:, :h, :w] = gradient.permute(0, 2, 3, 1)
        y = whole.view(n, down, out, across, out, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, out * out, k)
        products = _transform(a.T, y)  # (tiles, side², k)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_g = torch.bmm(products.permute(1, 2, 0), d.transpose(0, 1))  # (side², k, c)
            of_weight = _transform(g_matrix.T, of_g.transpose(0, 1)).view(k, 3, 3, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            of_d = torch.bmm(products.transpose(0, 1), g.transpose(0, 1))  # (side², tiles, c)
            tiles = _transform(b.T, of_d.transpose(0, 1)).view(n, down, across, side, side, c)
            of_x = _overlap_add(tiles, out)[:, 1 : h + 1, 1 : w + 1].contiguous().permute(0, 3, 1, 2)
        return of_x, of_weight


def _transform(matrix: Tensor, values: Tensor) -> Tensor:
    """[rows, columns] times each of [n, columns, channels]: small products, which MKL spreads over the cores."""
    return torch.bmm(matrix.expand(len(values), *matrix.shape), values)


def _overlap_add(tiles: Tensor, out: int) -> Tensor:
    """Adjoint of cutting into tiles, m = out: [n, down, across, m + 2, m + 2, c] → [n, m·down + m, m·across + m, c]."""
    n, down, across, side, _, c = tiles.shape
    padded = tiles.new_zeros(n, down + 1, out, across + 1, out, c)
    for rows, below in ((slice(0, out), 0), (slice(out, side), 1)):
        for columns, right in ((slice(0, out), 0), (slice(out, side), 1)):
            part = tiles[:, :, :, rows, columns].permute(0, 1, 3, 2, 4, 5)
            padded[:, below : down + below, : part.shape[2], right : across + right, : part.shape[4]] += part
    return padded.view(n, out * (down + 1), out * (across + 1), c)
