"""Which images the report shows, and the images themselves: each embedded once, however often it is shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tumorlens.core.errors import ImageError
from tumorlens.core.files import Json
from tumorlens.core.progress import Bar
from tumorlens.readers.pixels import read_image
from tumorlens.report.material import Answer, Material

SIDE = 112  # pixels a thumbnail
QUALITY = 75  # of its JPEG: about 3 kB for a grey slice
CAP = 60  # images a gallery
BUDGET = 600  # different images in one report: about 3 MB


@dataclass(frozen=True)
class Thumbnail:
    """One image, embedded, or the reason why it is not."""

    id: str
    path: str
    uri: str
    """`data:image/jpeg;base64,…`; empty where the file could not be read."""
    reason: str


@dataclass(frozen=True)
class Said:
    """What one configuration says about the image of a caption."""

    name: str
    predicted: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Picture:
    """One image in one gallery, with its caption."""

    path: str
    label: str
    said: Sequence[Said]
    thumbnail: Thumbnail


@dataclass(frozen=True)
class Gallery:
    """Images of one kind; the first of them where there are many."""

    id: str
    total: int
    pictures: Sequence[Picture]

    @property
    def left_out(self) -> int:
        """Images that belong here but are not shown."""
        return self.total - len(self.pictures)


@dataclass(frozen=True)
class Galleries:
    """All galleries of a report, and the thumbnails in them."""

    cells: dict[tuple[int, int, int], Gallery]
    """By configuration, true class and predicted class, as places in their lists; errors alone."""
    pairs: Sequence[dict[str, Gallery]]
    """Of each pair in the comparison: `corrected`, `introduced`, `both_wrong`; without a pair, `errors`."""
    thumbnails: Sequence[Thumbnail]
    cap: int


def make_galleries(material: Material, root: Path) -> Galleries:
    """Choose the images, and read them from `root`, the data set's folder.

    A gallery shows up to CAP images. Where that would embed more than BUDGET different ones, every
    gallery shows fewer. The most confident errors come first.
    """
    cells = _cells(material)
    pairs = [_pair(material, pair) for pair in material.comparison["pairs"]]
    if not pairs:  # a configuration alone: its errors together
        answers = material.measured[0].answers
        wrong = [p for p in _confident_first(answers) if answers[p].predicted != material.labels[p]]
        pairs = [{"errors": wrong}]
    everything = [*cells.values(), *(paths for pair in pairs for paths in pair.values())]
    cap = next(
        (n for n in (CAP, 40, 24, 16, 12, 8, 6, 4, 3, 2) if len({p for g in everything for p in g[:n]}) <= BUDGET), 1
    )
    wanted = list(dict.fromkeys(path for paths in everything for path in paths[:cap]))
    with Bar("Reading the report's images", len(wanted)) as bar:
        thumbnails: dict[str, Thumbnail] = {}
        for i, path in enumerate(wanted):
            thumbnails[path] = read_thumbnail(f"image-{i}", root, path)
            bar.advance()

    def gallery(name: str, paths: Sequence[str]) -> Gallery:
        return Gallery(name, len(paths), [_picture(material, path, thumbnails[path]) for path in paths[:cap]])

    return Galleries(
        {key: gallery("cell-{}-{}-{}".format(*key), paths) for key, paths in cells.items()},
        [
            {kind: gallery(f"pair-{i}-{kind.replace('_', '-')}", paths) for kind, paths in pair.items()}
            for i, pair in enumerate(pairs)
        ],
        list(thumbnails.values()),
        cap,
    )


def read_thumbnail(name: str, root: Path, path: str) -> Thumbnail:
    """Embed one image as a JPEG of SIDE pixels, in grey where it has no colour."""
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        return Thumbnail(name, path, "", "lies outside the data set's folder")
    try:
        pixels, _ = read_image(root / inside, size=SIDE)  # uint8 [SIDE, SIDE, 3]
    except (ImageError, ValueError) as error:  # ValueError: a name that no file can have
        return Thumbnail(name, path, "", error.what if isinstance(error, ImageError) else "no such file")
    grey = bool(np.all(pixels == pixels[:, :, :1]))
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return Thumbnail(name, path, "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"), "")


def _cells(material: Material) -> dict[tuple[int, int, int], list[str]]:
    """Paths behind each cell that counts errors."""
    place = {name: i for i, name in enumerate(material.classes)}
    found: dict[tuple[int, int, int], list[str]] = {}
    for i, one in enumerate(material.measured):
        for path in _confident_first(one.answers):
            label, predicted = material.labels[path], one.answers[path].predicted
            if predicted != label:
                found.setdefault((i, place[label], place[predicted]), []).append(path)
    return dict(sorted(found.items()))


def _confident_first(answers: Mapping[str, Answer]) -> list[str]:
    return sorted(answers, key=lambda path: (-answers[path].probability, path))


def _pair(material: Material, pair: Json) -> dict[str, list[str]]:
    """Paths of the images on which two configurations differ, and of those on which both err."""
    by_name = {one.name: one.answers for one in material.measured}
    first, second = by_name[pair["first"]], by_name[pair["second"]]
    labels = material.labels
    both = [p for p in _confident_first(second) if first[p].predicted != labels[p] != second[p].predicted]
    return {
        "corrected": [image["path"] for image in pair["corrected_images"]],
        "introduced": [image["path"] for image in pair["introduced_images"]],
        "both_wrong": both,
    }


def _picture(material: Material, path: str, thumbnail: Thumbnail) -> Picture:
    label = material.labels[path]
    said = [
        Said(one.name, one.answers[path].predicted, one.answers[path].probability, one.answers[path].predicted == label)
        for one in material.measured
    ]
    return Picture(path, label, said, thumbnail)
