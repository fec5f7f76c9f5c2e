"""3×3 convolutions with a quarter to a third of the multiplications, for training on a CPU.

Winograd's minimal filtering F(m×m, 3×3), whose matrices and sources stand in `minimal_filtering`: a tile of m×m outputs
takes (m + 2)² multiplications where the definition takes 9 m². Summed over channels they are (m + 2)² matrix products,
and their adjoints, which the backward pass needs, are twice as many. In float32 tiles are 4×4 or 5×5, what fits a side
best: 14 takes three of 5 with one row to spare, 7 two of 4.

The sums are the same ones in another order and with other intermediate values, so rounding differs: in float32 by 1e-6
to 1e-5 of the largest value here, as it differs between processors. In bfloat16 intermediate values are rounded to its
8 bits, and 2 % of a result's length are lost where one convolution by the definition loses 0.3 %; tiles of 5×5 would
lose 4 %, so that they are 4×4 there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tumorlens.minimal_filtering import matrices

_TILES = {torch.float32: (4, 5), torch.bfloat16: (4,)}  # sides of their outputs
_MATRICES = {
    (kind, out): tuple(torch.from_numpy(m).to(kind) for m in matrices(out))
    for kind, sides in _TILES.items() for out in sides
}  # fmt: skip


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """`conv2d(x, weight, padding=1)`, differentiable in both.

    Parameters
    ----------
    x
        float32 or bfloat16 [n, c, h, w] on the CPU; fastest in channels_last.
    weight
        [k, c, 3, 3] of the same type.

    Returns
    -------
    Tensor
        [n, k, h, w] of that type in channels_last.
    """
    found: Tensor = _Convolution.apply(x, weight)
    return found


def tile_side(h: int, w: int, kind: torch.dtype = torch.float32) -> int:
    """Outputs of a tile along each side, for h×w outputs: of those allowed what takes fewest multiplications."""
    return min(_TILES[kind], key=lambda out: -(-h // out) * -(-w // out) * (out + 2) ** 2)


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
        k, out = weight.shape[0], tile_side(h, w, x.dtype)
        down, across, side = -(-h // out), -(-w // out), out + 2
        b, g_matrix, a = _MATRICES[x.dtype, out]
        tiles = windows(x, 1, side, out, (down, across))
        d = _transform(b, _columns(tiles, (3, 4)))  # (side², tiles, c)
        g = _transform(g_matrix, _columns(weight.permute(0, 2, 3, 1), (1, 2)))  # (side², k, c)
        products = torch.bmm(d, g.transpose(1, 2))  # (side², tiles, k)
        y = _transform(a, products).view(out, out, n, down, across, k)
        ctx.save_for_backward(d, g)
        ctx.shape = (n, c, h, w)
        whole = y.permute(2, 3, 0, 4, 1, 5).reshape(n, out * down, out * across, k)
        return whole[:, :h, :w].contiguous().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        d, g = ctx.saved_tensors
        n, c, h, w = ctx.shape
        k, out = g.shape[1], tile_side(h, w, d.dtype)
        down, across, side = -(-h // out), -(-w // out), out + 2
        b, g_matrix, a = _MATRICES[d.dtype, out]
        whole = gradient.new_zeros(n, out * down, out * across, k)
        whole[:, :h, :w] = gradient.permute(0, 2, 3, 1)
        products = _transform(a.T, _columns(whole.view(n, down, out, across, out, k), (2, 4)))  # (side², tiles, k)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_g = torch.bmm(products.transpose(1, 2), d)  # (side², k, c)
            of_weight = _transform(g_matrix.T, of_g).view(3, 3, k, c).permute(2, 3, 0, 1)
        if ctx.needs_input_grad[0]:
            of_d = torch.bmm(products, g)  # (side², tiles, c)
            tiles = _transform(b.T, of_d).view(side, side, n, down, across, c)
            of_x = _overlap_add(tiles, out)[:, 1 : h + 1, 1 : w + 1].contiguous().permute(0, 3, 1, 2)
        return of_x, of_weight


def _columns(values: Tensor, mixed: tuple[int, int]) -> Tensor:
    """What a transform mixes, along two axes of `values`, as the first axis: [mixed, all others, channels].

    A copy, unless it lies in memory as `_transform` wants it.
    """
    *others, channels = (axis for axis in range(values.ndim) if axis not in mixed)
    size, c = values.shape[mixed[0]] * values.shape[mixed[1]], values.shape[channels]
    if values.dtype == torch.float32:
        return values.permute(*others, *mixed, channels).reshape(-1, size, c).transpose(0, 1)
    return values.permute(*mixed, *others, channels).reshape(size, -1, c)


def _transform(matrix: Tensor, values: Tensor) -> Tensor:
    """[rows, columns] times [columns, n, channels]: [rows, n, channels].

    In float32 the columns lie beside one another in memory, and so do the rows: small products, which MKL spreads over
    the cores. In bfloat16, for which oneDNN multiplies, it is a single product of what lies in the order of its axes.
    """
    rows, columns = matrix.shape
    if values.dtype == torch.float32:
        values = values.transpose(0, 1)
        return torch.bmm(matrix.expand(len(values), rows, columns), values).transpose(0, 1)
    return (matrix @ values.reshape(columns, -1)).view(rows, *values.shape[1:])


def _overlap_add(tiles: Tensor, out: int) -> Tensor:
    """Adjoint of cutting into tiles, m = out: [m + 2, m + 2, n, down, across, c] → [n, m·down + m, m·across + m, c]."""
    side, _, n, down, across, c = tiles.shape
    padded = tiles.new_zeros(n, down + 1, out, across + 1, out, c)
    for rows, below in ((slice(0, out), 0), (slice(out, side), 1)):
        for columns, right in ((slice(0, out), 0), (slice(out, side), 1)):
            part = tiles[rows, columns].permute(2, 3, 0, 4, 1, 5)
            padded[:, below : down + below, : part.shape[2], right : across + right, : part.shape[4]] += part
    return padded.view(n, out * (down + 1), out * (across + 1), c)
