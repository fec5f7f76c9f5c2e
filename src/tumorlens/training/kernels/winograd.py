"""3×3 convolutions with a quarter of the multiplications, for training on a CPU.

This is Winograd's minimal filtering F(m×m, 3×3); `minimal_filtering` has its matrices and references. A tile of m×m
outputs needs (m + 2)² multiplications instead of the 9 m² of a direct convolution. Summed over channels, these are
(m + 2)² matrix products; the backward pass needs twice as many, the adjoints. Each side is cut into tiles of m and of
m - 1, which share all points but one: 14 into 5, 5 and 4, or into 4, 4, 3 and 3; 7 into 4 and 3.

The result is mathematically the same, but sums are reordered and intermediate values differ, so it is rounded
differently: in float32 by 1e-6 to 1e-5 of the largest value, about as much as between processors. In bfloat16,
intermediate values are rounded to 8 bits, and the relative error (in the norm) is 1 to 2 %, compared with 0.3 % for one
direct convolution. Tiles of 5×5 would double that error, so bfloat16 uses tiles of at most 4×4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tumorlens.training.kernels.minimal_filtering import BLOCK, of_a_shorter_tile, of_an_axis

_TILES = {torch.float32: (4, 5), torch.bfloat16: (4,)}  # output sides of the longer tiles that are considered


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `conv2d(x, weight, padding=1)`, differentiable once in `x` and `weight`.

    Parameters
    ----------
    x
        float32 or bfloat16 [n, c, h, w] on the CPU; fastest in channels_last.
    weight
        [k, c, 3, 3], float32 or of the dtype of `x`.

    Returns
    -------
    Tensor
        [n, k, h, w] of the dtype of `x`, in channels_last.

    Raises
    ------
    ValueError
        c or k is not a multiple of `BLOCK`, or the weight is not 3×3.
    """
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weights must be 3×3, not {'×'.join(map(str, weight.shape[2:]))}")
    if weight.shape[0] % BLOCK or weight.shape[1] % BLOCK:
        raise ValueError(f"channels must be multiples of {BLOCK}, not {weight.shape[1]} and {weight.shape[0]}")
    found: Tensor = _Convolution.apply(x, weight)
    return found


@dataclass(frozen=True)
class Tiling:
    """How h×w outputs are cut into tiles that are m or, at the end of a side, m - 1 long."""

    out: int
    """Output side m of the longer tiles."""
    down: int
    long_down: int
    """Of the `down` rows of tiles, the first `long_down` are m high, the others m - 1."""
    across: int
    long_across: int

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """The arguments in the order that the loops take them."""
        return self.down, self.long_down, self.across, self.long_across

    def groups(self, n: int) -> Iterator[tuple[int, int]]:
        """Yield the groups of points of n images: the number of points, and the number of tiles that have them."""
        common = self.out + 1
        yield common * common, n * self.down * self.across
        of_row, of_column = n * self.long_down * self.across, n * self.down * self.long_across
        yield from [(2 * common, of_row)] if of_row == of_column else [(common, of_row), (common, of_column)]
        yield 1, n * self.long_down * self.long_across

    def products(self) -> int:
        """Return the number of multiplications per image and pair of channels."""
        return sum(points * tiles for points, tiles in self.groups(1))


@lru_cache
def tiling(h: int, w: int, kind: torch.dtype = torch.float32) -> Tiling:
    """Return the allowed tiling with the fewest multiplications."""
    cut = [Tiling(out, *_cut(h, out), *_cut(w, out)) for out in _TILES[kind]]
    return min(cut, key=Tiling.products)


def _cut(length: int, out: int) -> tuple[int, int]:
    """Return the number of tiles along a side, and how many are longer; if none, the last may extend past its end."""
    tiles = -(-length // out)
    return tiles, max(0, length - tiles * (out - 1))


def _of_filters(cut: Tiling) -> Tiling:
    """Return the tiling of the filters: each is a single longer tile."""
    return Tiling(cut.out, 1, 1, 1, 1)


@lru_cache
def _transforms(out: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return transforms for tiles of side m and m - 1, and their adjoints (`_back`).

    Each is float32 [2, ., .], the longer tile first.
    """
    b, g, a = of_an_axis(out)
    shorter_b, shorter_a = of_a_shorter_tile(out)
    pairs = {"b": (b, shorter_b), "g": (g, g), "a": (a, shorter_a)}
    there = {name: np.stack(pair).astype(np.float32) for name, pair in pairs.items()}
    return there | {f"{name}_back": np.ascontiguousarray(pair.transpose(0, 2, 1)) for name, pair in there.items()}


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (n, c, h, w), k = x.shape, weight.shape[0]
        cut = tiling(h, w, x.dtype)
        matrices = _transforms(cut.out)
        d = _to_points(matrices["b"], x, 1, cut, x.dtype)
        g = _to_points(matrices["g"], weight, 0, _of_filters(cut), x.dtype)
        products = x.new_empty(len(d), k)
        for tiles, filters, found in _grouped(cut, n, d, g.view(-1, k, c), products):
            torch.bmm(tiles, filters.transpose(1, 2), out=found)
        ctx.save_for_backward(d, g)
        ctx.cut, ctx.x, ctx.weight_kind = cut, x.shape, weight.dtype
        return _from_points(matrices["a"], products, 0, cut, x.new_empty(n, h, w, k))

    @staticmethod
    @once_differentiable  # autograd cannot trace the compiled loops
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        d, g = ctx.saved_tensors
        cut, (n, c, h, w), k = ctx.cut, ctx.x, gradient.shape[1]
        matrices = _transforms(cut.out)
        products = _to_points(matrices["a_back"], gradient, 0, cut, d.dtype)
        of_x = of_weight = None
        if ctx.needs_input_grad[1]:
            of_g = torch.empty_like(g)
            for tiles, found, of_y in _grouped(cut, n, d, of_g.view(-1, k, c), products):
                torch.bmm(of_y.transpose(1, 2), tiles, out=found)
            of_weight = g.new_empty(k, 3, 3, c, dtype=ctx.weight_kind)
            of_weight = _from_points(matrices["g_back"], of_g, 0, _of_filters(cut), of_weight, past=True)
        if ctx.needs_input_grad[0]:
            of_d = torch.empty_like(d)
            for found, filters, of_y in _grouped(cut, n, of_d, g.view(-1, k, c), products):
                torch.bmm(of_y, filters, out=found)
            of_x = _from_points(matrices["b_back"], of_d, 1, cut, d.new_empty(n, h, w, c))
        return of_x, of_weight


def _grouped(cut: Tiling, n: int, d: Tensor, g: Tensor, products: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield views of each group's matrices: [points, tiles, c], [points, k, c] and [points, tiles, k]."""
    row = point = 0
    for points, tiles in cut.groups(n):
        rows = slice(row, row + points * tiles)
        of_x, of_y = (values[rows].view(points, tiles, values.shape[1]) for values in (d, products))
        yield of_x, g[point : point + points], of_y
        row, point = rows.stop, point + points


def _to_points(matrices: npt.NDArray[np.float32], x: Tensor, padding: int, cut: Tiling, kind: torch.dtype) -> Tensor:
    """Transform `x` [n, c, h, w] to points, [rows, c] of dtype `kind`."""
    # Numba is imported only when needed: importing it takes a quarter of a second, and a GPU does not use it.
    from tumorlens.training.kernels.jit import array, run
    from tumorlens.training.kernels.winograd_loops import to_points

    n, c, h, w = x.shape
    found = torch.empty(n * cut.products(), c, dtype=kind)
    read, written = array(x.permute(0, 2, 3, 1).contiguous()), array(found)
    loop = to_points(*matrices.shape[1:], read.dtype, written.dtype)
    run(loop, n * cut.down, matrices, read, written, n, h, w, c, padding, cut.out, *cut.grid, len(found))
    return found


def _from_points(
    matrices: npt.NDArray[np.float32], values: Tensor, padding: int, cut: Tiling, found: Tensor, *, past: bool = False
) -> Tensor:
    """Transform points back into `found` [n, h, w, c], and return it as [n, c, h, w] in channels_last.

    Set `past` for a result that is not read soon: it is written past the caches.
    """
    from tumorlens.training.kernels.jit import array, run
    from tumorlens.training.kernels.winograd_loops import from_points

    read, written = array(values), array(found)
    loop = from_points(*matrices.shape[1:], read.dtype, written.dtype, past)
    run(loop, len(found), matrices, read, written, *found.shape, padding, cut.out, *cut.grid, len(values))
    return found.permute(0, 3, 1, 2)
