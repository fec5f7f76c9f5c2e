"""Loops of `winograd`: tiles of an image to their points, and back.

A transform does few calculations per number, so it takes the time of reading and writing it. PyTorch would copy the
tiles out, multiply them by a matrix and copy the result to its place; here each tile is read, transformed along both
axes in a core's own cache, and written.

Points are stored one after the other, [rows, channels]: first those that every tile has, (m + 1)² of them, then the
last of the rows' points, of the columns', and of both, which shorter tiles lack. Each is a matrix with a row per tile.
Numbers are stored as float32 or bfloat16 and summed in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from tumorlens.training.kernels.jit import compiled, narrowed, signature_of, widened
from tumorlens.training.kernels.minimal_filtering import BLOCK


@register_jitable  # type: ignore[untyped-decorator]
def _runs(last: int, n: int, down: int, long_down: int, across: int, long_across: int) -> tuple[int, int, int, int]:
    """Rows of a point that all tiles have, and where the runs of the others begin: what `Tiling.groups` adds up to."""
    shared = n * down * across
    of_row = last * last * shared
    of_column = of_row + last * n * long_down * across
    return shared, of_row, of_column, of_column + last * n * down * long_across


@lru_cache
def windows(stored: Any) -> Any:
    """Loop `(x, found, padding, step, down, side)`: the values under a window as it moves.

    `x` [n, h, w, c], zero outside, is seen through a side×side window, which begins at `-padding` and moves by `step`;
    `found` [n · down, across, side, side, c] is written. A task is one row of an image's windows.
    """

    @compiled(signature_of([(stored, 4), (stored, 5)], 4), "windows", stored)
    def loop(start, stop, x, found, padding, step, down, side):  # type: ignore[no-untyped-def]
        _, h, w, c = x.shape
        for t in range(start, stop):
            i, top = t // down, t % down * step - padding
            for q in range(found.shape[1]):
                left = q * step - padding
                for y in range(side):
                    for z in range(side):
                        if 0 <= top + y < h and 0 <= left + z < w:
                            for k in range(c):
                                found[t, q, y, z, k] = x[i, top + y, left + z, k]
                        else:
                            for k in range(c):
                                found[t, q, y, z, k] = 0

    return loop


@lru_cache
def to_points(points: int, inputs: int, read: Any, written: Any) -> Any:
    """Loop `(matrices, x, found, padding, step, down, long_down, across, long_across)`.

    `matrices`, float32 [2, points, inputs], are those of a longer and a shorter tile; `x` [n, h, w, c] of type `read`,
    zero outside, is cut into tiles, the first of which begins at `-padding`; `found` [rows, c] of type `written` is
    written. A task is one row of an image's tiles.
    """
    last = points - 1  # a constant here, so that loops to it are unrolled

    @compiled(signature_of([(np.float32, 3), (read, 4), (written, 2)], 6), "to_points", points, inputs, read, written)
    def loop(start, stop, matrices, x, found, padding, step, down, long_down, across, long_across):  # type: ignore[no-untyped-def]
        n, h, w, c = x.shape
        shared, of_row, of_column, of_both = _runs(last, n, down, long_down, across, long_across)
        tile = np.empty((inputs, inputs, BLOCK), np.float32)
        half = np.empty((points, inputs, BLOCK), np.float32)
        row = np.empty((points, BLOCK), np.float32)
        for t in range(start, stop):
            i, r = t // down, t % down
            row_kind = 0 if r < long_down else 1
            top = r * step - max(r - long_down, 0) - padding
            for q in range(across):
                column_kind = 0 if q < long_across else 1
                left = q * step - max(q - long_across, 0) - padding
                for b in range(c // BLOCK):
                    begin = b * BLOCK
                    for y in range(inputs):
                        for z in range(inputs):
                            if 0 <= top + y < h and 0 <= left + z < w:
                                for k in range(BLOCK):
                                    tile[y, z, k] = widened(x[i, top + y, left + z, begin + k])
                            else:
                                for k in range(BLOCK):
                                    tile[y, z, k] = np.float32(0)
                    for z in range(inputs):
                        for k in range(BLOCK):
                            for o in range(points):
                                total = np.float32(0)
                                for y in range(inputs):
                                    total += matrices[row_kind, o, y] * tile[y, z, k]
                                half[o, z, k] = total
                    for o in range(points):
                        if o < last:
                            first, apart = o * last * shared + t * across + q, shared
                            final = of_column + o * n * down * long_across + t * long_across + q
                        elif r < long_down:
                            first, apart = of_row + (i * long_down + r) * across + q, n * long_down * across
                            final = of_both + (i * long_down + r) * long_across + q
                        else:
                            continue
                        for k in range(BLOCK):
                            for p in range(points):
                                total = np.float32(0)
                                for z in range(inputs):
                                    total += matrices[column_kind, p, z] * half[o, z, k]
                                row[p, k] = total
                        for p in range(points if q < long_across else last):
                            place = np.uintp(first + p * apart if p < last else final)
                            for k in range(BLOCK):
                                found[place, begin + k] = narrowed(row[p, k], found)

    return loop


@lru_cache
def from_points(outputs: int, points: int, read: Any, written: Any) -> Any:
    """Loop with the arguments of `to_points`: `x` are points [rows, c], and `found` [n, h, w, c] is written.

    Tiles of outputs×outputs are added at their places, the first of which begins at `-padding`. `matrices`, float32
    [2, outputs, points], have zeros for what a shorter tile lacks. A task is an image.
    """
    last = points - 1

    @compiled(
        signature_of([(np.float32, 3), (read, 2), (written, 4)], 6), "from_points", outputs, points, read, written
    )
    def loop(start, stop, matrices, values, found, padding, step, down, long_down, across, long_across):  # type: ignore[no-untyped-def]
        n, h, w, c = found.shape
        shared, of_row, of_column, of_both = _runs(last, n, down, long_down, across, long_across)
        high = (down - 1) * step - max(down - 1 - long_down, 0) + outputs
        wide = (across - 1) * step - max(across - 1 - long_across, 0) + outputs
        whole = np.empty((max(high, h + padding), max(wide, w + padding), BLOCK), np.float32)
        places, column = np.empty((points, points), np.int64), np.empty((points, BLOCK), np.float32)
        half = np.empty((outputs, points, BLOCK), np.float32)
        for i in range(start, stop):
            for b in range(c // BLOCK):
                begin = b * BLOCK
                whole[:] = 0
                for r in range(down):
                    row_kind = 0 if r < long_down else 1
                    top = r * step - max(r - long_down, 0)
                    for q in range(across):
                        column_kind = 0 if q < long_across else 1
                        left = q * step - max(q - long_across, 0)
                        for z in range(points):
                            # A shorter tile's matrix is zero there, so another of its values is read.
                            if z < last or q >= long_across:
                                first = (z % last) * shared + (i * down + r) * across + q
                                apart = last * shared
                                final = of_row + ((z % last) * n * long_down + i * long_down + r) * across + q
                            else:
                                first, apart = of_column + (i * down + r) * long_across + q, n * down * long_across
                                final = of_both + (i * long_down + r) * long_across + q
                            if r >= long_down:
                                final = first
                            for v in range(points):
                                places[z, v] = first + v * apart if v < last else final
                        for z in range(points):
                            for v in range(points):
                                place = np.uintp(places[z, v])
                                for k in range(BLOCK):
                                    column[v, k] = widened(values[place, begin + k])
                            for k in range(BLOCK):
                                for o in range(outputs):
                                    total = np.float32(0)
                                    for v in range(points):
                                        total += matrices[row_kind, o, v] * column[v, k]
                                    half[o, z, k] = total
                        for o in range(outputs):
                            for k in range(BLOCK):
                                for p in range(outputs):
                                    total = np.float32(0)
                                    for z in range(points):
                                        total += matrices[column_kind, p, z] * half[o, z, k]
                                    whole[np.uintp(top + o), np.uintp(left + p), k] += total
                for y in range(h):
                    for z in range(w):
                        for k in range(BLOCK):
                            found[i, y, z, begin + k] = narrowed(whole[padding + y, padding + z, k], found)

    return loop
