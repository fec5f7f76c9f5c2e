"""The three tumours of the phantom: where they grow, how they look, and what they displace.

glioma: in the brain's substance, lumpy, a ring that enhances unevenly around a dark necrotic core, oedema in
the white matter. meningioma: outside the brain, broad on the dura or the falx, evenly bright, with a dural
tail and a dark cleft towards the brain. pituitary: in the sella, smooth, often with a bulge upwards.
All three draw brightness from one distribution. They draw size from one too, but a pituitary tumour's radius is scaled
by 0.72, and a tumour without room in its plane shrinks: size alone separates pituitary from the others to some degree.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tumorlens.data.phantom.anatomy import SELLA, Head, cavity
from tumorlens.data.phantom.planes import SIDE, Field, Plane, Point, make_plane, noise, ramp
from tumorlens.data.phantom.rendering import BONE, CSF, blend, draw_head, finer

LABELS = ("glioma", "meningioma", "notumor", "pituitary")


@dataclass(frozen=True)
class Lesion:
    """One tumour; lengths in mm, in the coordinates of the head's model."""

    label: str
    centre: Point
    radii: Point
    shift: float
    """Place in the noise lattice that shapes it."""
    signal: float
    """Of enhancing tissue, as a fraction of fat's."""
    rim: float
    """Thickness of the enhancing ring (glioma)."""
    core: float
    """Signal of necrosis (glioma)."""
    oedema: float
    """Width of the oedema (glioma)."""
    bulge: float
    """Size of the suprasellar part (pituitary), as a share of the radius."""

    @property
    def radius(self) -> float:
        return float(np.mean(self.radii))


def make_lesion(seed: int, label: str, patient: int, head: Head, view: str, depth: float) -> Lesion | None:
    """Let one patient's tumour grow where the plane of that view and depth (mm) cuts it; None for notumor."""
    if label == "notumor":
        return None
    rng = np.random.default_rng([seed, 2, LABELS.index(label), patient])
    radius = rng.uniform(13.0, 23.0)
    stretch = rng.uniform(0.85, 1.18, 3)
    plane = make_plane(head.scale, head.warp, view, depth)
    from_sella = np.sqrt(sum((at - c) ** 2 for at, c in zip((plane.x, plane.y, plane.z), SELLA, strict=True)))
    inside = cavity(plane)
    if label == "pituitary":
        radius *= 0.72
    while not (fits := _places(label, radius, plane, inside, from_sella)).any():
        radius *= 0.9  # a large tumour has no room in a plane that grazes the brain
    places = np.flatnonzero(fits)
    at = places[int(rng.integers(len(places)))]
    x, y, z = (float(coordinate.flat[at]) for coordinate in (plane.x, plane.y, plane.z))
    if label == "pituitary":
        z += 0.35 * radius  # it lifts out of the sella
    a, b, c = (float(r) for r in radius * stretch / stretch.mean())
    return Lesion(
        label=label,
        centre=(x, y, z),
        radii=(a, b, c),
        shift=rng.uniform(0, 24),
        signal=rng.uniform(0.76, 0.96),
        rim=rng.uniform(2.2, 4.2),
        core=rng.uniform(0.15, 0.27),
        oedema=rng.uniform(6, 16),
        bulge=rng.uniform(0.0, 0.75),
    )


def _places(label: str, radius: float, plane: Plane, inside: Field, from_sella: Field) -> npt.NDArray[np.bool_]:
    """Where a tumour of that class and radius (mm) may have its centre, on the plane's grid."""
    if label == "pituitary":
        return np.asarray(from_sella <= from_sella.min())
    elsewhere = from_sella > radius + 15
    if label == "glioma":
        return np.asarray((inside > 0.75 * radius) & elsewhere & (np.abs(plane.x) + inside > 10))
    convex = (inside > 0.25 * radius) & (inside < max(0.55 * radius, 0.25 * radius + 3)) & (plane.z > -52)
    on_falx = (np.abs(np.abs(plane.x) - 0.6 * radius) < 2) & (plane.z > 30) & (inside > 6)
    return np.asarray((convex | (on_falx & (plane.view != "sagittal"))) & elsewhere)


def draw(head: Head, lesion: Lesion | None, view: str, depth: float) -> tuple[Field, Field]:
    """Draw a head, with its tumour if there is one, in a plane.

    Returns
    -------
    signal
        float32 [192, 192], 0 (air) to about 1 (fat); orientation as in `make_plane`.
    lesion
        float32 [192, 192], signed distance in mm to the tumour's outline (oedema not counted), positive
        inside; -1000 everywhere for a healthy head.
    """
    plane = make_plane(head.scale, head.warp, view, depth)
    if lesion is None:
        return draw_head(head, plane)[0], np.full((SIDE, SIDE), -1000, np.float32)
    if lesion.label == "pituitary":
        head = dataclasses.replace(head, gland=0.1)  # the tumour takes the gland's place
    signal, fields = draw_head(head, plane, _pushed(plane, lesion))
    lumps = finer(noise(head.folds, view, depth, 8.5, lesion.shift))
    grain = finer(noise(head.folds, view, depth, 3.2, lesion.shift + 9.4))
    body = plane.ellipsoid(lesion.centre, lesion.radii, whole=True)
    if lesion.label == "pituitary":
        x, y, z = lesion.centre
        r = lesion.radius * lesion.bulge + 0.1
        body = np.maximum(body, plane.ellipsoid((x, y - 2, z + 0.85 * lesion.radius), (r, r, r)))
    paint = {"glioma": _glioma, "meningioma": _meningioma, "pituitary": _pituitary}[lesion.label]
    return signal, paint(signal, lesion, finer(body), lumps, grain, fields)


def _pushed(plane: Plane, lesion: Lesion) -> Plane:
    """Mass effect: the model is read nearer to the tumour's centre, so that structures appear farther out."""
    strength = {"glioma": 0.40, "meningioma": 0.35, "pituitary": 0.25}[lesion.label]
    away = [at - c for at, c in zip((plane.x, plane.y, plane.z), lesion.centre, strict=True)]
    reach = 2 * (1.4 * lesion.radius) ** 2
    pull = strength * np.exp(-(away[0] ** 2 + away[1] ** 2 + away[2] ** 2) / np.float32(reach))
    x, y, z = (at - pull * a for at, a in zip((plane.x, plane.y, plane.z), away, strict=True))
    return Plane(plane.view, plane.depth, x, y, z)


def _glioma(image: Field, lesion: Lesion, body: Field, lumps: Field, grain: Field, fields: dict[str, Field]) -> Field:
    outline = np.minimum(body + 2.6 * lumps + 0.9 * grain, fields["cavity"] - 1.5)
    spread = ramp(outline + lesion.oedema * (1 + 0.45 * fields["texture"] - 0.3 * grain), 0, 5)
    spread *= ramp(fields["pial"], 1.5, 4.0)  # oedema follows the white matter and spares the cortex
    image += 0.85 * spread * (0.31 - image) * (fields["cavity"] > 0)
    rim = lesion.rim * np.maximum(1 + 0.45 * grain - 0.35 * lumps, 0.35)
    blend(image, outline, lesion.signal * (0.90 + 0.10 * grain), 2.0)
    blend(image, outline - rim, lesion.core + 0.045 * grain + 0.03 * lumps, 2.2)
    blend(image, np.minimum(3.5 * (lumps - 0.75), outline - 1.0), lesion.signal * (0.85 + 0.1 * grain), 2.0)
    return np.asarray(outline)


def _meningioma(
    image: Field, lesion: Lesion, body: Field, lumps: Field, grain: Field, fields: dict[str, Field]
) -> Field:
    dura = fields["cavity"] - 0.3
    outline = np.minimum(body + 0.9 * lumps + 0.2 * grain, dura)
    tail = np.minimum(1.5 - np.abs(dura - 1.0), body + 0.55 * lesion.radius)
    blend(image, np.minimum(outline + 1.8, dura), CSF, 1.4, 0.7)
    blend(image, tail, lesion.signal * 0.92, 1.4, 0.9)
    blend(image, outline, lesion.signal * (1 + 0.025 * grain + 0.02 * lumps), 1.6)
    return np.asarray(outline)


def _pituitary(
    image: Field, lesion: Lesion, body: Field, lumps: Field, grain: Field, fields: dict[str, Field]
) -> Field:
    outline: Field = np.minimum(body + 0.6 * lumps, fields["head"] - 8)
    blend(image, outline + 1.3, np.where(fields["cavity"] > 0, np.float32(CSF), np.float32(BONE)), 1.4, 0.7)
    blend(image, outline, lesion.signal * (1 + 0.03 * grain + 0.03 * lumps), 1.6)
    return np.asarray(outline)
