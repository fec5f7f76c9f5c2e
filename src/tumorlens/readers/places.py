"""Images of one DICOM series → its volumes, each with its places in the order in which they lie in space.

A series may hold several volumes: orientations (a localizer's three planes), echoes, b-values, repetitions. Images with
one orientation lie at *places*, by their position along the normal. While a place holds several images, the series is
parted by the first element of `TRAITS` that differs at a place and takes no more values than a place has images; images
that nothing tells apart are parted by their time and number. Copies of one image stay together.

Without positions, InstanceNumber or the number of the frame takes their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median_low

from tumorlens.core.errors import ImageError
from tumorlens.core.progress import log
from tumorlens.readers.types import Place, Slice, Unreadable

#: What may tell apart images at one place.
TRAITS = ("stack", "image type", "echo time", "echo", "b-value", "inversion time", "flip angle", "temporal position",
          "acquisition", "trigger time", "time")  # fmt: skip
_HIDDEN = "time"  # of day: its values are not shown
_SAME_PLACE = 0.1  # mm; slices lie further apart
_SAME_ORIENTATION = 0.02  # difference of direction cosines, about a degree
_MOST_ORIENTATIONS = 100  # that an image is compared with: a hostile file may have one per frame
_GAP = 1.5  # times the usual distance of two slices: from there on one is missing between them
_UNNUMBERED = 1 << 32  # added to the position of an image without a number: above all numbers

Image = tuple[Place, int | None]


@dataclass(frozen=True)
class Volume:
    """Images of one volume."""

    name: str
    """What tells it from the other volumes of its series, such as `echo time 80`; empty if it is the only one."""
    spots: list[tuple[int, list[int]]]
    """For each place, in order, a number, and the indices of its images (several if there are copies). Neighbours have
    consecutive numbers."""
    placed: bool
    """Whether the order is that of recorded positions."""

    @property
    def images(self) -> list[int]:
        """Indices of all its images."""
        return [i for _, found in self.spots for i in found]


def part(images: Sequence[Image]) -> list[Volume]:
    """The volumes of a series, in an order that does not depend on that of the images.

    Parameters
    ----------
    images
        Place and number (of the instance, frame or slice) of each.
    """
    groups: dict[tuple[bool, tuple[float, ...]], list[int]] = {}
    for i, (place, _) in enumerate(images):
        placed = place.position is not None
        mine = place.orientation if placed else ()
        near = (k for k in islice(groups, _MOST_ORIENTATIONS) if k[0] == placed and _close(k[1], mine))
        key = next(near, (placed, mine))
        groups.setdefault(key, []).append(i)
    volumes = []
    order = sorted(groups, key=lambda key: (not key[0], not key[1], _plane(key[1]), key[1]))
    labels = [_plane(orientation) or ("no orientation" if placed else "no position") for placed, orientation in order]
    for k, (placed, orientation) in enumerate(order):
        label = labels[k] if len(groups) > 1 else ""
        if labels.count(label) > 1:
            label += f" {1 + labels[:k].count(label)}"
        for name, found in _parted(images, groups[placed, orientation]):
            volumes.append(Volume(", ".join(filter(None, (label, name))), _numbered(images, found, placed), placed))
    return volumes


def choose_volume(
    images: Iterable[Slice | Unreadable], number: int
) -> tuple[set[tuple[str, int | None]], list[Unreadable]]:
    """Source and index of the images of each series' volume of this number, from 1, and the series without one."""
    series: dict[str | None, list[Slice]] = {}
    for image in images:
        if isinstance(image, Slice):
            series.setdefault(image.series, []).append(image)
    chosen: set[tuple[str, int | None]] = set()
    lacking, left = [], 0
    for found in series.values():
        volumes = part([(image.place, image.index) for image in found])
        if number > len(volumes):
            error = no_such_volume(len(volumes), number)
            lacking.append(Unreadable(found[0].source, None, error.what, error.cure))
        else:
            kept = [found[i] for i in volumes[number - 1].images]
            chosen.update((image.source, image.index) for image in kept)
            left += len(found) - len(kept)
    if left:
        log.info(f"--volume {number}: {left:,} DICOM images of other volumes are left out.")
    return chosen, lacking


def no_such_volume(volumes: int, number: int) -> ImageError:
    """The error for a file or series with fewer volumes than the chosen number."""
    held = "one volume" if volumes == 1 else f"{volumes:,} volumes"
    cure = "Use --volume 1." if volumes == 1 else f"Use --volume 1 to --volume {volumes}."
    return ImageError(f"holds {held}, so there is no volume {number:,}", cure=cure)


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    near = (abs(a - b) <= _SAME_ORIENTATION for a, b in zip(one, other, strict=False))
    return len(one) == len(other) and all(near)


def _plane(orientation: tuple[float, ...]) -> str:
    """`axial`, `coronal` or `sagittal`, the nearest plane; empty without an orientation."""
    if not orientation:
        return ""
    (a, b, c), (d, e, f) = orientation[:3], orientation[3:]
    normal = {"axial": a * e - b * d, "coronal": c * d - a * f, "sagittal": b * f - c * e}
    return max(normal, key=lambda plane: abs(normal[plane]))


def _parted(images: Sequence[Image], members: list[int]) -> list[tuple[str, list[int]]]:
    """Names and members of the volumes among images of one orientation."""
    spots = [_distinct(images, spot) for spot in _spots(images, members)]
    most = max(map(len, spots))
    if most == 1:
        return [("", members)]
    for t, label in enumerate(TRAITS):
        value = {i: (images[i][0].traits or ("",) * len(TRAITS))[t] for i in members}
        values = sorted(set(value.values()), key=_natural)
        if 1 < len(values) <= most and any(len({value[same[0]] for same in spot}) > 1 for spot in spots):
            found = []
            for k, one in enumerate(values, 1):
                name = f"{label} {k}" if label == _HIDDEN else f"{label} {one}" if one else f"no {label}"
                rest = _parted(images, [i for i in members if value[i] == one])
                found += [(", ".join(filter(None, (name, inner))), inside) for inner, inside in rest]
            return found
    ordered = [sorted(spot, key=lambda same: _age(images[same[0]], same[0])) for spot in spots]
    return [(f"repetition {k + 1}", [i for spot in ordered if k < len(spot) for i in spot[k]]) for k in range(most)]


def _natural(value: str) -> tuple[float, str]:
    """Sorts numbers by size, before text."""
    try:
        return float(value), ""
    except ValueError:
        return (float("inf") if value else float("-inf")), value


def _age(image: Image, i: int) -> tuple[tuple[float, ...], int, int]:
    place, number = image
    return place.times, _UNNUMBERED if number is None else number, i


def _distinct(images: Sequence[Image], spot: list[int]) -> list[list[int]]:
    """The different images at a place, each with its copies. Without a DICOM header, equal numbers mean copies."""
    found: dict[object, list[int]] = {}
    for i in spot:
        place = images[i][0]
        found.setdefault(place.image if place.image is not None or not place.traits else ("file", i), []).append(i)
    return list(found.values())


def _coordinate(images: Sequence[Image], i: int) -> float:
    place, number = images[i]
    if place.position is not None:
        return place.position
    return _UNNUMBERED + i if number is None else number


def _spots(images: Sequence[Image], members: list[int]) -> list[list[int]]:
    """Members at each place, in order."""
    spots: list[list[int]] = []
    for i in sorted(members, key=lambda i: _coordinate(images, i)):
        if spots and _coordinate(images, i) - _coordinate(images, spots[-1][0]) <= _SAME_PLACE:
            spots[-1].append(i)
        else:
            spots.append([i])
    return spots


def _numbered(images: Sequence[Image], members: list[int], placed: bool) -> list[tuple[int, list[int]]]:
    """The places with numbers, which are consecutive for neighbours."""
    spots = _spots(images, members)
    at = [_coordinate(images, spot[0]) for spot in spots]
    if not placed:
        return [(int(n), spot) for n, spot in zip(at, spots, strict=True)]
    steps = [b - a for a, b in pairwise(at)]
    widest = _GAP * median_low(steps) if steps else 0.0
    numbers = [0]
    for step in steps:
        numbers.append(numbers[-1] + (1 if step <= widest else 2))
    return list(zip(numbers, spots, strict=True))
