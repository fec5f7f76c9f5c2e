"""A plane through a head → the signal of a contrast-enhanced T1 slice.

Shapes come on a coarse grid of 2.5 mm and are brought to 1.25 mm, where edges are drawn: that keeps a slice
at a few ms.

The folded cortex follows one idea: the zero set of band-limited noise is a labyrinth of sheets like the
sulci. The distance to the nearer of surface and sheet, p, then gives CSF (p small), grey matter (the next
3 mm) and white matter (beyond), so the ribbon follows surface and sulci alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.data.phantom import anatomy
from tumorlens.data.phantom.anatomy import Head
from tumorlens.data.phantom.planes import (
    SIDE,
    Field,
    Plane,
    noise,
    ramp,
)

# Signal of tissues, as a fraction of fat's.
AIR, CSF, BONE, MUSCLE, VESSEL = 0.015, 0.13, 0.055, 0.28, 0.64


def finer(field: Field) -> Field:
    """Bring [n, m] to [2n, 2m] by linear interpolation; a coarse node keeps its value."""
    n, m = field.shape
    rows = np.empty((2 * n, m), np.float32)
    rows[::2], rows[-1] = field, field[-1]
    rows[1:-1:2] = (field[1:] + field[:-1]) * np.float32(0.5)
    full = np.empty((2 * n, 2 * m), np.float32)
    full[:, ::2], full[:, -1] = rows, rows[:, -1]
    full[:, 1:-1:2] = (rows[:, 1:] + rows[:, :-1]) * np.float32(0.5)
    return full


def blend(
    image: Field, inside: Field, value: float | npt.NDArray[np.floating[Any]], edge: float = 1.4, strength: float = 1.0
) -> None:
    """Draw a shape of signed distance `inside` (mm) into the image, with a soft edge `edge` mm wide."""
    cover = inside * np.float32(1 / edge)
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    if strength != 1.0:
        cover *= np.float32(strength)
    cover *= value - image
    image += cover


def draw_head(head: Head, plane: Plane, pushed: Plane | None = None) -> tuple[Field, dict[str, Field]]:
    """Draw the signal of a healthy head in a plane.

    Parameters
    ----------
    pushed
        Where the inner structures are read instead (mass effect); skull and surface stay.

    Returns
    -------
    signal
        float32 [192, 192], 0 (air) to about 1 (fat), `STEP` mm a pixel.
    fields
        For drawing lesions, float32 [192, 192] each: `cavity` and `head` (signed distances in mm),
        `pial` (distance in mm from the brain's folded surface) and `texture` (noise, mean 0, sd about 1).
    """
    inner = pushed or plane
    view, depth = plane.view, plane.depth
    folds, bend, grain = (noise(head.folds, view, depth, *at) for at in ((6.6, 0.0), (9.0, 7.3), (3.4, 11.3)))
    cavity = anatomy.cavity(plane)
    tent, falx, sylvian, cortical = anatomy.partitions(inner)
    stem = anatomy.stem(inner)
    ventricles, cisterns = anatomy.fluid(head, inner, stem, bend)
    walls = np.minimum(tent, falx)
    skull, outline, fold, second, texture = map(
        finer, (cavity, anatomy.outline(head, plane, cavity), folds, bend, grain)
    )
    mottle = 1 + np.float32(0.07) * texture

    image = np.full((SIDE, SIDE), AIR, np.float32)
    sheets = np.abs(second) * np.float32(6.5)  # mm to the planes of fat between muscles, by the same idea
    muscle = (MUSCLE + np.float32(0.03) * fold) * mottle
    muscle += (head.fat - 0.36) * ramp(np.float32(2.2) + np.float32(0.8) * texture - sheets, 0, 2.8)
    blend(image, outline, muscle)
    scalp = np.minimum(outline - 1.2, head.scalp * (1 + 0.25 * second) - outline)
    blend(image, scalp, head.fat - 0.04 + 0.04 * texture)
    bone = skull + finer(head.skull * (0.3 + 0.7 * ramp(plane.z, -82, -58)))
    blend(image, bone, BONE)
    blend(image, np.minimum(bone - 1.3, -1.6 - skull), head.marrow * mottle)
    air, fat, globe, mucosa, marrow = anatomy.face(plane, bend)
    paint(image, fat, head.fat * mottle)
    paint(image, mucosa, 0.55 * mottle)
    paint(image, air, AIR)
    paint(image, globe, 0.50)
    paint(image, globe - 1.7, 0.16)
    paint(image, marrow, (0.8 * head.marrow + 0.1) * mottle, 2.5)

    sheet = np.abs(fold) * np.float32(5.0)  # |noise| over its usual gradient: mm to the nearest sulcus
    inward = np.maximum(skull - (20 + 4 * second), 0) + finer(np.maximum(3 - cortical, 0) * 3)
    pial = np.minimum(skull - (0.9 * head.sulcus + 1.0), _length(sheet, inward) - head.sulcus)
    np.minimum(pial, finer(np.minimum(walls - 1.0, sylvian - 0.6 - head.sulcus)), out=pial)
    tissue = head.grey + (head.white - head.grey) * ramp(pial, 2.5, 4.1)
    tissue += np.float32(0.008) * (second + texture)
    paint(tissue, -cortical, head.grey + 0.02 + 0.07 * finer(anatomy.folia(inner, bend)), 3.0)
    paint(tissue, anatomy.deep_grey(inner), head.grey + 0.035, 3.0, 0.8)
    blend(image, skull, CSF, 1.2)
    blend(image, np.minimum(pial, skull - 0.8), tissue, 1.3)
    paint(image, np.minimum(stem, cavity - 0.8), head.white - 0.04 + 0.01 * second, 1.6)
    paint(image, cisterns, CSF, 2.0)
    paint(image, ventricles, CSF, 1.5)
    dura = np.maximum(finer(np.minimum(0.5 - walls, cavity)), 0.8 - np.abs(skull - 0.2))
    blend(image, dura, 0.42, 1.3, 0.7)
    veins = np.minimum(0.6 + head.vessels - _length(sheet, sheets), np.minimum(skull + 1, 16 - skull))
    blend(image, np.maximum(finer(anatomy.bright(head, inner)), veins), VESSEL, 1.8)
    return image, {"cavity": skull, "head": outline, "pial": pial, "texture": texture}


def paint(
    image: Field, inside: Field, value: float | npt.NDArray[np.floating[Any]], edge: float = 1.4, strength: float = 1.0
) -> None:
    """`blend` a shape given on the coarse grid, which is skipped if the plane misses it."""
    if inside.max() > -edge:
        blend(image, finer(inside), value, edge, strength)


def _length(a: Field, b: Field) -> Field:
    """np.hypot at a fifth of its time; mm do not overflow."""
    return np.asarray(np.sqrt(a * a + b * b))
