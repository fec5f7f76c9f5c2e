"""The head behind the phantom: one smooth 3-D model per patient, in shapes that a plane cuts.

Lengths are mm, coordinates as in `planes`; the pituitary gland lies at `SELLA`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np

from tumorlens.data.phantom.planes import Field, Plane, Point, ramp, soft_max

SELLA: Point = (0.0, 9.0, -27.0)  # mm, centre of the pituitary gland
_NODES = (24, 24, 24)  # of the noise lattices


@dataclass(frozen=True)
class Head:
    """One patient's anatomy; lengths in mm."""

    scale: Point
    """Head size along x, y, z relative to the model's."""
    warp: Field
    """[3, 24, 24, 24], displacement lattice in mm."""
    folds: Field
    """[24, 24, 24], lattice of noise whose cuts have mean 0 and sd about 1."""
    ventricle: float
    """Added to the radius of the ventricles."""
    sulcus: float
    """Half width of a sulcus: atrophy."""
    skull: float
    """Thickness of the skull."""
    scalp: float
    """Thickness of the scalp."""
    grey: float
    """Signal of grey matter."""
    white: float
    """Signal of white matter."""
    marrow: float
    """Signal of the skull's marrow."""
    fat: float
    """Signal of fat."""
    vessels: float
    """Radius added to vessels and sinuses, which enhance."""
    gland: float
    """Half height of the normal pituitary gland."""


@lru_cache(maxsize=8)
def make_head(seed: int, patient: int) -> Head:
    """Draw one patient's anatomy; it depends on nothing but these two numbers."""
    rng = np.random.default_rng([seed, 1, patient])
    size = rng.normal(1, 0.035)
    return Head(
        scale=(size * rng.normal(1, 0.03), size * rng.normal(1, 0.03), size * rng.normal(1, 0.025)),
        warp=9.0 * rng.standard_normal((3, *_NODES), dtype=np.float32),
        folds=3.0 * rng.standard_normal(_NODES, dtype=np.float32),
        ventricle=rng.uniform(-1.2, 3.2),
        sulcus=rng.uniform(0.35, 1.15),
        skull=rng.uniform(5.0, 8.5),
        scalp=rng.uniform(4.5, 9.0),
        grey=rng.uniform(0.36, 0.42),
        white=rng.uniform(0.48, 0.55),
        marrow=rng.uniform(0.18, 0.55),
        fat=rng.uniform(0.48, 0.98),
        vessels=rng.uniform(-0.4, 0.7),
        gland=rng.uniform(2.6, 4.4),
    )


def cavity(plane: Plane) -> Field:
    """Signed distance to the inner surface of the skull, positive inside."""
    side = np.abs(plane.x)
    middle = 1 - ramp(plane.y, 14, 38)  # 1 in the middle fossa, 0 in the anterior one
    floor = -22.0 - 22.0 * middle * ramp(side, 6, 24) + 0.0035 * (side - 24) ** 2
    vault = np.minimum(plane.ellipsoid((0, 0, 10), (68, 86, 64), whole=True), 0.85 * (plane.z - floor))
    canal = np.maximum(
        plane.capsule((0, -14, -20), (0, -30, -60), 17, 11, mirrored=False, whole=True),
        plane.capsule((0, -30, -60), (0, -36, -160), 10, 8, mirrored=False, whole=True),  # of the spinal cord
    )
    return soft_max(soft_max(vault, plane.ellipsoid((0, -44, -32), (54, 38, 33), whole=True), 5), canal, 4)


def outline(head: Head, plane: Plane, skull: Field) -> Field:
    """Signed distance to the skin."""
    vault = np.maximum(
        plane.ellipsoid((0, 0, 10), (68, 86, 64), whole=True), plane.ellipsoid((0, -44, -32), (54, 38, 33), whole=True)
    )
    vault = np.maximum(vault, skull) + np.float32(head.skull + head.scalp)
    face = plane.ellipsoid((0, 38, -62), (66, 58, 68), whole=True)
    soft = soft_max(face, plane.capsule((12, -28, -60), (12, -34, -170), 50, 46, whole=True), 30)  # with the neck
    soft = soft_max(soft, plane.capsule((0, 90, -42), (0, 106, -66), 7, 10, mirrored=False), 12)  # with the nose
    ear = plane.ellipsoid((78, -18, -36), (8, 11, 17), mirrored=True)
    return soft_max(soft_max(vault, soft, 16), ear, 4)


def partitions(plane: Plane) -> tuple[Field, Field, Field, Field]:
    """Distances in mm to tentorium, falx and Sylvian fissure, and the signed one to the cerebellum (outside +)."""
    x, y, z = plane.x, plane.y, plane.z
    # A slice is some mm thick: the middle one still holds the brain on either side of the falx.
    side = np.maximum(np.abs(x), 2.4 if plane.view == "sagittal" else 0.0)
    height = -4 - 0.30 * side + 0.25 * (y + 30)
    tent = np.abs(z - height) * 0.93 + 2 * np.maximum(y + 22, 0)
    cerebellum = np.minimum(0.93 * (height - z), -20 - y)
    core = plane.ellipsoid((0, -2, 0), (400, 44, 27), whole=True)
    falx = side + 2 * np.maximum(np.maximum(core, cerebellum), np.maximum(-14 - z - np.maximum(y - 25, 0), 0))
    slope = z + 8 - 0.22 * (y - 10) + 2.5 * np.sin(side * 0.25)
    reach = np.maximum(36 - side, 0) + np.maximum(np.abs(y - 2) - 32, 0)
    ends = np.maximum(np.maximum(np.abs(slope - 4) - 11, np.abs(y - 2) - 19), 0)
    insula = np.hypot(side - 40 + 0.012 * (y - 2) ** 2, ends)
    sylvian = np.minimum(np.hypot(slope, reach), insula)
    return tent, falx, sylvian, -cerebellum


def stem(plane: Plane) -> Field:
    """Signed distance to the brainstem and spinal cord."""
    pons = plane.ellipsoid((0, -13, -32), (16, 13, 14))
    return _union(
        soft_max(pons, plane.capsule((4, -13, -8), (4, -13, -28), 10, 11), 5),  # with the midbrain
        plane.capsule((0, -16, -38), (0, -30, -66), 10, 7, mirrored=False),  # medulla
        plane.capsule((0, -30, -66), (0, -36, -170), 6.5, 5.5, mirrored=False),  # cord
        plane.capsule((8, -18, -32), (22, -36, -34), 6, 5),  # cerebellar peduncle
    )


def fluid(head: Head, plane: Plane, stem: Field, bend: Field) -> tuple[Field, Field]:
    """Signed distances to the ventricles and to the cisterns."""
    r = head.ventricle
    ventricles = _union(
        plane.capsule((6, 31, 6), (7, 12, 17), 3.2 + r, 4.2 + r),
        plane.capsule((7, 12, 17), (12, -22, 18), 3.8 + r, 4.2 + r),
        plane.capsule((13, -22, 17), (25, -36, 6), 4.2 + r, 4.8 + r),
        plane.capsule((25, -36, 6), (22, -58, 4), 3.6 + r, 0.8),
        plane.capsule((27, -34, 2), (31, -2, -20), 2.2 + 0.6 * r, 1.0),
        plane.ellipsoid((0, -3, -2), (2.4 + 0.6 * max(r, 0), 15, 11)),
        plane.ellipsoid((0, -29, -32), (8, 5, 9)),
    )
    cisterns = _union(
        plane.ellipsoid((0, 8, -15), (13, 11, 7)),  # suprasellar
        plane.ellipsoid((0, -29, -6), (11, 5, 6)),  # quadrigeminal
        np.minimum(0.7 + 1.1 * bend - np.abs(stem + 1.8), 24 - np.abs(plane.y + 12)),  # ambient
    )
    return ventricles, np.minimum(cisterns, -stem)


def deep_grey(plane: Plane) -> Field:
    """Signed distance to thalamus, caudate head and lentiform nucleus."""
    return _union(
        plane.ellipsoid((10, -9, 4), (8, 14, 9), mirrored=True),
        plane.ellipsoid((14, 17, 10), (5, 9, 9), mirrored=True),
        plane.ellipsoid((25, 5, 1), (7, 16, 9), mirrored=True),
    )


def bright(head: Head, plane: Plane) -> Field:
    """Signed distance to what enhances in health: sinuses, arteries, choroid plexus, normal pituitary gland."""
    r = head.vessels
    rim = plane.ellipsoid((0, 0, 10), (400, 86, 64), whole=True)  # the vault's outline in the midline
    sinus = 3.4 + r - np.hypot(plane.x, rim - 1.5) - np.maximum(plane.y - 55, 0) - 4 * np.maximum(-plane.z - 12, 0)
    return _union(
        sinus,
        plane.ellipsoid(SELLA, (6.5, 4.5, head.gland)),
        plane.capsule((4, -80, -14), (48, -46, -34), 3.2 + r, 3.0 + r),  # transverse sinus
        plane.capsule((48, -46, -34), (40, -22, -54), 3.0 + r, 3.4 + r),  # sigmoid sinus
        plane.capsule((0, -80, -12), (0, -34, 4), 2.2 + r, 1.8 + r, mirrored=False),  # straight sinus
        plane.capsule((11, 4, -29), (12, 12, -16), 2.6 + r, 2.2 + r),  # carotid
        plane.capsule((12, 12, -16), (27, 15, -13), 1.4 + r, 1.1 + r),  # middle cerebral artery, in two parts
        plane.capsule((27, 15, -13), (40, 5, -9), 1.1 + r, 0.8 + r),
        plane.capsule((2, 18, -14), (1.5, 40, 8), 1.3 + r, 1.0 + r),  # anterior cerebral artery
        plane.capsule((0, -0.5, -46), (0, 2, -20), 1.4 + r, 1.1 + r, mirrored=False),  # basilar artery
        plane.capsule((14, -24, 15), (24, -34, 5), 1.6 + r, 2.4 + r),  # choroid plexus
        plane.ellipsoid((0, -24, 2), (2.5, 3.5, 2.5)),  # pineal gland
        plane.capsule((0, 9, -25), (0, 4, -14), 1.3, 1.1, mirrored=False),  # pituitary stalk
    )


def folia(plane: Plane, bend: Field) -> Field:
    """Stripes of the cerebellar folia, 0 to 1: bent shells around the fourth ventricle, about 6 mm apart."""
    away = np.sqrt(plane.x**2 * 0.5 + (plane.y + 26) ** 2 + (plane.z + 30) ** 2)
    inner = 1 - ramp(away, 12, 26)  # the white core
    stripes = 0.5 + 0.5 * np.cos(away * 1.0 + 0.12 * plane.z + 3.2 * bend)
    return np.asarray(stripes * (1 - inner) + 1.1 * inner, np.float32)


def face(plane: Plane, bend: Field) -> tuple[Field, Field, Field, Field, Field]:
    """Signed distances to air, fat, eyes, mucosa and marrow at and below the skull's base."""
    side, y, z = np.abs(plane.x), plane.y + 2.0 * bend, plane.z - 1.5 * bend
    nasal = plane.ellipsoid((0, 64, -56), (16, 32, 20)) + bend
    spaces = _union(
        nasal,
        plane.ellipsoid((29, 60, -58), (13, 17, 17), mirrored=True) + 1.5 * bend,  # maxillary sinus
        plane.ellipsoid((0, 24, -40), (14, 12, 9)) + 1.5 * bend,  # sphenoid sinus
        plane.ellipsoid((8, 87, -10), (12, 5, 11), mirrored=True) + bend,  # frontal sinus
        plane.capsule((0, 22, -66), (0, 4, -150), 7, 6, mirrored=False),  # throat
    )
    cells = np.minimum(plane.ellipsoid((52, -24, -48), (12, 14, 12), mirrored=True), 2.2 * bend)
    turbinates = 0.5 + 2.0 * np.sin(side * 0.8 + 1.2 * bend) * np.cos(z * 0.40 + 1.5 * bend)
    mucosa = np.minimum(spaces + 2.0, 9 - spaces)
    air = np.minimum(spaces, -np.maximum(np.minimum(turbinates, nasal + 2), np.minimum(nasal, 1.2 - side)))
    air = np.maximum(air, cells)
    axis = np.hypot(side - 32 + 0.42 * np.maximum(66 - y, 0), z + 28)  # mm from the optic nerve
    muscles = np.abs(axis - 10 + 0.22 * np.maximum(66 - y, 0)) - 1.2
    fat = np.minimum(plane.capsule((32, 66, -28), (17, 30, -26), 16, 4), np.minimum(axis - 2.0, muscles))
    globe = plane.ellipsoid((32, 70, -28), (12, 12, 12), mirrored=True)
    marrow = _union(
        np.minimum(plane.ellipsoid((0, -13, -112), (10, 8, 48)), 3 + 5 * np.sin(z * 0.34)),  # spine
        plane.capsule((0, 8, -38), (0, -3, -56), 4, 4, mirrored=False),  # clivus
        plane.capsule((16, -8, -42), (46, -30, -42), 1, 3),  # petrous bone
        plane.capsule((0, 76, -80), (0, 40, -82), 3, 3, mirrored=False),  # palate
    )
    return air, fat, globe, mucosa, marrow


def _union(*shapes: Field) -> Field:
    return np.asarray(reduce(np.maximum, shapes))
