"""Compiled loops for convolutions: Winograd's transforms of activations and weights to points and back.

Every value of a tile is used once, so a transform is limited by memory bandwidth. PyTorch would copy the tiles out,
multiply them by a matrix and copy the result to its place. Here each tile is read, transformed along both axes in the
core's own cache, and written. The points of a tile are far apart in memory, so they are prefetched, and written without
reading the cache lines first.

Points are stored one after the other as [rows, channels]: first the (m + 1)² points that all tiles have, then those
that shorter tiles lack: the last point along rows, along columns, and along both. Each point is a matrix with one row
per tile. Values are stored as float32 or bfloat16 and summed in float32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray
from numba.extending import register_jitable

from tumorlens.training.kernels.jit import (
    ask_ahead,
    compiled,
    narrowed,
    next_task,
    pointer,
    widened,
    write_past_caches,
)
from tumorlens.training.kernels.minimal_filtering import BLOCK


@register_jitable  # type: ignore[untyped-decorator]
def _numbers(job: Any) -> tuple[int, ...]:
    """Return `n, h, w, c, padding, step, down, long_down, across, long_across, rows` of a job with points."""
    return job[5], job[6], job[7], job[8], job[9], job[10], job[11], job[12], job[13], job[14], job[15]


@register_jitable  # type: ignore[untyped-decorator]
def _runs(last: int, n: int, down: int, long_down: int, across: int, long_across: int) -> tuple[int, int, int, int]:
    """Return the rows per point that all tiles have, and the offsets of the other groups; matches `Tiling.groups`."""
    shared = n * down * across
    of_row = last * last * shared
    of_column = of_row + last * n * long_down * across
    return shared, of_row, of_column, of_column + last * n * down * long_across


@lru_cache
def to_points(points: int, inputs: int, read: Any, written: Any) -> Any:
    """Return the loop that transforms activations to points.

    A job is `matrices, x, found, n, h, w, c, padding, step, down, long_down, across, long_across, rows`. `matrices`,
    float32 [2, points, inputs], are those of a longer and of a shorter tile. The zero-padded `x` [n, h, w, c] of type
    `read` is cut into tiles, the first of which begins `padding` before it. The loop writes `found` [rows, c] of type
    `written`, bypassing the caches, which would be overwritten before it is read. A task is one row of tiles of an
    image.
    """
    last = points - 1  # a compile-time constant, so that loops up to it are unrolled

    @compiled("to_points", points, inputs, read, written, BLOCK)
    def loop(address: Any) -> None:
        job = carray(address, (16,), np.int64)
        n, h, w, c, padding, step, down, long_down, across, long_across, rows = _numbers(job)
        matrices = carray(pointer(job[2]), (2, points, inputs), np.float32)
        x, found = carray(pointer(job[3]), (n, h, w, c), read), carray(pointer(job[4]), (rows, c), written)
        shared, of_row, of_column, of_both = _runs(last, n, down, long_down, across, long_across)
        tile = np.empty((inputs, inputs, BLOCK), np.float32)
        half = np.empty((points, inputs, BLOCK), np.float32)
        row, line = np.empty((points, BLOCK), np.float32), np.empty(BLOCK, written)
        while True:
            t = next_task(job)
            if t >= job[1]:
                break
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
                            place = first + p * apart if p < last else final
                            for k in range(BLOCK):
                                line[k] = narrowed(row[p, k], found)
                            write_past_caches(line, found, place, begin, BLOCK)

    return loop


@lru_cache
def from_points(outputs: int, points: int, read: Any, written: Any, past: bool) -> Any:
    """Return the loop that transforms points back to activations.

    A job is that of `to_points`, with the points [rows, c] as `x`, and `found` [n, h, w, c]. Tiles of outputs×outputs
    are added at their positions, the first of which begins `padding` before `found`. `matrices`, float32 [2, outputs,
    points], have zeros for what a shorter tile lacks. If `past`, `found` is written past the caches. A task is one
    image.
    """
    last = points - 1

    @compiled("from_points", outputs, points, read, written, past, BLOCK)
    def loop(address: Any) -> None:
        job = carray(address, (16,), np.int64)
        n, h, w, c, padding, step, down, long_down, across, long_across, rows = _numbers(job)
        matrices = carray(pointer(job[2]), (2, outputs, points), np.float32)
        values, found = carray(pointer(job[3]), (rows, c), read), carray(pointer(job[4]), (n * h * w, c), written)
        shared, of_row, of_column, of_both = _runs(last, n, down, long_down, across, long_across)
        high = (down - 1) * step - max(down - 1 - long_down, 0) + outputs
        wide = (across - 1) * step - max(across - 1 - long_across, 0) + outputs
        whole = np.empty((max(high, h + padding), max(wide, w + padding), BLOCK), np.float32)
        places, column = np.empty((points, points), np.int64), np.empty((points, BLOCK), np.float32)
        half, line = np.empty((outputs, points, BLOCK), np.float32), np.empty(BLOCK, written)
        while True:
            i = next_task(job)
            if i >= job[1]:
                break
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
                            # Points that a shorter tile lacks have zero weight, so another of its values is read.
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
                                ask_ahead(values, places[z, v], begin, BLOCK)
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
                        place = (i * h + y) * w + z
                        if past:
                            for k in range(BLOCK):
                                line[k] = narrowed(whole[padding + y, padding + z, k], found)
                            write_past_caches(line, found, place, begin, BLOCK)
                        else:
                            for k in range(BLOCK):
                                found[place, begin + k] = narrowed(whole[padding + y, padding + z, k], found)

    return loop
