"""A plane through a patient: its coordinates, smooth noise cut by it, and shapes as signed distances.

Coordinates are mm in RAS: x to the patient's right, y to the front, z up; the origin lies between the
thalami. A shape is its signed distance in mm, positive inside, on a coarse grid of 2.5 mm. The ellipsoid's
is the first-order estimate k0 (1 - k0) / k1 (I. Quilez, "Ellipsoid SDF"), exact on the surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Point = tuple[float, float, float]

VIEWS = ("axial", "coronal", "sagittal")
SIDE = 192  # pixels a side of a drawn plane
STEP = 1.25  # mm a pixel
_COARSE = SIDE // 2
_HALF = SIDE / 2 * STEP
_MARGIN = 24.0  # mm; warp and size bring no structure farther than this from where the model has it
_LATTICE = 24  # nodes a side of the noise lattice, which repeats beyond
_CENTRE_Z = -24.0  # mm, height in the middle of coronal and sagittal planes

# Per view, for rows and columns: the axis (x, y, z), its direction, and the mm of its middle; then the axis of depth.
_GRID = {
    "axial": ((1, -1, 0.0), (0, -1, 0.0), 2),
    "coronal": ((2, -1, _CENTRE_Z), (0, -1, 0.0), 1),
    "sagittal": ((2, -1, _CENTRE_Z), (1, 1, 0.0), 0),
}


@dataclass(frozen=True)
class Plane:
    """Where a slice lies: the coordinates in mm of its coarse grid, [96, 96] each."""

    view: str
    depth: float
    x: Field
    y: Field
    z: Field

    def ellipsoid(self, centre: Point, radii: Point, *, mirrored: bool = False, whole: bool = False) -> Field:
        """Signed distance to an ellipsoid.

        Parameters
        ----------
        mirrored
            Also its mirror image across x = 0.
        whole
            Everywhere; otherwise -99 where it is farther than 24 mm or so.
        """
        window, at = self._near((centre,), radii, mirrored, whole)
        u, v, w = (((a - c) * (1 / r)) ** 2 for a, c, r in zip(at, centre, radii, strict=True))
        k0 = np.sqrt(u + v + w)
        k1 = np.sqrt(u * radii[0] ** -2 + v * radii[1] ** -2 + w * radii[2] ** -2)
        return _placed(k0 * (1 - k0) / (k1 + 1e-4), window)

    def capsule(self, a: Point, b: Point, ra: float, rb: float, *, mirrored: bool = True, whole: bool = False) -> Field:
        """Signed distance to a rounded cone from `a` (radius `ra`) to `b` (radius `rb`); see `ellipsoid`."""
        window, at = self._near((a, b), (max(ra, rb),) * 3, mirrored, whole)
        u, v, w = (end - start for start, end in zip(a, b, strict=True))
        px, py, pz = (here - start for here, start in zip(at, a, strict=True))
        square = u * u + v * v + w * w
        t = px * (u / square) + py * (v / square) + pz * (w / square)
        np.clip(t, 0, 1, out=t)
        px, py, pz = px - u * t, py - v * t, pz - w * t
        return _placed(ra + (rb - ra) * t - np.sqrt(px * px + py * py + pz * pz), window)

    def _near(
        self, points: tuple[Point, ...], reach: Point, mirrored: bool, whole: bool
    ) -> tuple[tuple[slice, ...], tuple[Field, Field, Field]]:
        """Rows and columns of the grid near points, none if the plane misses them, and the coordinates there."""
        low = [min(at) - r for at, r in zip(zip(*points, strict=True), reach, strict=True)]
        high = [max(at) + r for at, r in zip(zip(*points, strict=True), reach, strict=True)]
        if mirrored:
            low[0] = -high[0]
        *sides, through = _GRID[self.view]
        window: tuple[slice, ...] = (slice(None),) if whole else (slice(0),)
        if not whole and low[through] - _MARGIN < self.depth < high[through] + _MARGIN:
            edges = (
                (sign * (low[axis] - at - _MARGIN), sign * (high[axis] - at + _MARGIN)) for axis, sign, at in sides
            )
            spans = (sorted((edge + _HALF) / (2 * STEP) for edge in pair) for pair in edges)
            window = tuple(slice(max(0, math.floor(first)), max(0, math.ceil(last) + 1)) for first, last in spans)
        x = self.x[window]
        return window, (np.abs(x) if mirrored else x, self.y[window], self.z[window])


def _placed(part: Field, window: tuple[slice, ...]) -> Field:
    """A part of a field in its place, on the whole grid."""
    full = np.full((_COARSE, _COARSE), -99, np.float32)
    full[window] = part
    return full


def make_plane(scale: Point, warp: Field, view: str, depth: float) -> Plane:
    """The plane of a view at a depth (mm along z, y or x), its coordinates brought to the model's.

    Rows run from front to back (axial) or from top to bottom; columns from the patient's right to left
    (axial, coronal) or from back to front (sagittal).

    Parameters
    ----------
    scale
        Size of the head along x, y, z relative to the model's.
    warp
        float32 [3, 24, 24, 24], displacement lattice in mm.
    """
    falling = np.arange(SIDE // 2, -SIDE // 2, -2, dtype=np.float32) * np.float32(STEP)
    *sides, _ = _GRID[view]
    at: list[Field] = [np.full((_COARSE, _COARSE), depth, np.float32) for _ in range(3)]
    for (axis, sign, middle), shape in zip(sides, ((-1, 1), (1, -1)), strict=True):
        line = (falling if sign < 0 else -falling) + np.float32(middle)
        at[axis] = np.broadcast_to(line.reshape(shape), (_COARSE, _COARSE))
    x, y, z = (at[i] / np.float32(scale[i]) + noise(warp[i], view, depth, 55.0) for i in range(3))
    return Plane(view, depth, x, y, z)


@lru_cache(maxsize=64)
def _weights(first: float, step: float, n: int) -> Field:
    """[n, 24] weights of the periodic cubic B-spline at `first + i step` lattice units."""
    place = first + step * np.arange(n)
    base, t = np.floor(place).astype(int), place % 1.0
    matrix = np.zeros((n, _LATTICE), np.float32)
    spline = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    for i, part in enumerate(spline):
        matrix[np.arange(n), (base + i - 1) % _LATTICE] += (part / 6).astype(np.float32)
    return matrix


def noise(lattice: Field, view: str, depth: float, spacing: float, shift: float = 0.0) -> Field:
    """Cut smooth noise by a plane: a lattice [24, 24, 24] with nodes `spacing` mm apart, from node `shift`.

    Returns
    -------
    float32 [96, 96]; its sd is a third of the lattice's.
    """
    start, step = SIDE / 2 * STEP / spacing, 2 * STEP / spacing
    falling = _weights(shift + start, -step, _COARSE)
    rising = _weights(shift - start, step, _COARSE)
    lowered = _weights(shift + start + _CENTRE_Z / spacing, -step, _COARSE)
    through = _weights(round(shift + depth / spacing, 4), 0.0, 1)[0]
    if view == "axial":
        return np.asarray(falling @ np.tensordot(lattice, through, (2, 0)).T @ falling.T)
    if view == "coronal":
        return np.asarray(lowered @ np.tensordot(lattice, through, (1, 0)).T @ falling.T)
    return np.asarray(lowered @ np.tensordot(through, lattice, (0, 0)).T @ rising.T)


def ramp(value: Field, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high`, linear between."""
    return np.asarray(np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1))


def soft_max(a: Field, b: Field, width: float) -> Field:
    """Union of two shapes with a rounded crease (I. Quilez, "Smooth minimum", polynomial)."""
    h = np.maximum(width - np.abs(a - b), 0)
    return np.asarray(np.maximum(a, b) + h * h * np.float32(0.25 / width))
