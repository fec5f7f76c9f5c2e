"""The report's images: which of them each gallery shows, and the images themselves, each embedded once."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from tumorlens.core.errors import ImageError
from tumorlens.core.files import Json
from tumorlens.core.progress import Bar
from tumorlens.readers.single import read_single
from tumorlens.report.data import ConfigurationResult, ReportData

SIDE = 112  # pixels per side of a thumbnail
QUALITY = 75  # of its JPEG: about 3 kB for a grey slice
CAPS = (60, 40, 24, 16, 12, 8, 6, 4, 3, 2, 1)  # images per gallery: the largest number that keeps within the budget
BUDGET = 600  # distinct images in one report: about 3 MB


@dataclass(frozen=True)
class Thumbnail:
    """One image, embedded, or the reason why it is not."""

    id: str
    path: str
    uri: str
    """`data:image/jpeg;base64,…`; empty if the file could not be read."""
    reason: str


@dataclass(frozen=True)
class Gallery:
    """Images of one kind; the first of them if there are many."""

    id: str
    total: int
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Galleries:
    """All galleries of a report, and the thumbnails in them."""

    cells: dict[tuple[int, int, int], Gallery]
    """Errors by configuration, true class and predicted class, as indices."""
    pairs: Sequence[dict[str, Gallery]]
    """For each pair in the comparison: `corrected`, `introduced`, `both_wrong`; without a pair, `errors`."""
    thumbnails: Sequence[Thumbnail]
    cap: int


def make_galleries(data: ReportData, root: Path) -> Galleries:
    """Choose the images, and read them from `root`, the data set's folder.

    A gallery shows up to 60 images. If that would embed more than BUDGET distinct ones, every gallery shows fewer.
    The most confident errors come first.
    """
    cells = _cells(data)
    # A single configuration has no pair: all of its errors are one gallery.
    pairs = [_pair(data, pair) for pair in data.comparison["pairs"]] or [{"errors": _errors(data.results[0])}]
    everything = [*cells.values(), *(paths for pair in pairs for paths in pair.values())]
    cap = next(n for n in CAPS if n == 1 or len({path for paths in everything for path in paths[:n]}) <= BUDGET)
    wanted = list(dict.fromkeys(path for paths in everything for path in paths[:cap]))
    thumbnails: dict[str, Thumbnail] = {}
    with Bar("Reading the report's images", len(wanted)) as bar:
        for i, path in enumerate(wanted):
            thumbnails[path] = read_thumbnail(f"image-{i}", root, path)
            bar.advance()

    def gallery(name: str, paths: Sequence[str]) -> Gallery:
        return Gallery(name, len(paths), [thumbnails[path] for path in paths[:cap]])

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
    """Embed one image as a JPEG of SIDE pixels, in grey if it has no colour."""
    inside = PurePosixPath(path)
    if inside.is_absolute() or ".." in inside.parts:
        return Thumbnail(name, path, "", "lies outside the data set's folder")
    try:
        pixels, _ = read_single(root / inside, size=SIDE)  # uint8 [SIDE, SIDE, 3]
    except (ImageError, ValueError) as error:  # ValueError: not a possible file name
        return Thumbnail(name, path, "", error.what if isinstance(error, ImageError) else "no such file")
    grey = bool(np.all(pixels == pixels[:, :, :1]))
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return Thumbnail(name, path, "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii"), "")


def _errors(one: ConfigurationResult) -> list[str]:
    """Paths of misclassified test images, the most confident first."""
    wrong = [path for path, found in one.predictions.items() if found.label != one.labels[path]]
    return sorted(wrong, key=lambda path: (-one.predictions[path].probability, path))


def _cells(data: ReportData) -> dict[tuple[int, int, int], list[str]]:
    """Paths of the images that each off-diagonal cell counts."""
    index = {name: i for i, name in enumerate(data.classes)}
    found: dict[tuple[int, int, int], list[str]] = {}
    for i, one in enumerate(data.results):
        for path in _errors(one):
            found.setdefault((i, index[one.labels[path]], index[one.predictions[path].label]), []).append(path)
    return dict(sorted(found.items()))


def _pair(data: ReportData, pair: Json) -> dict[str, list[str]]:
    """Paths of the images that exactly one of two configurations misclassifies, and of those that both do."""
    first, second = (next(one for one in data.results if one.name == pair[key]) for key in ("first", "second"))
    wrong_first = set(_errors(first))
    return {
        "corrected": [image["path"] for image in pair["corrected_images"]],
        "introduced": [image["path"] for image in pair["introduced_images"]],
        "both_wrong": [path for path in _errors(second) if path in wrong_first],
    }
