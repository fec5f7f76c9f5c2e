"""The explain job: pictures of where a class is seen, and how well such a map points at a known lesion.

The map is the class activation map, which for this network is Grad-CAM on `layer4` but for the constant 1/49
(Selvaraju et al., ICCV 2017, section 3.1), so no backward pass is needed. It tells what the network looked at,
on a grid of 7 x 7 cells of 32 pixels; it does not outline a tumour.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import writing
from tumorlens.core.progress import log
from tumorlens.inference.classifier import Classifier
from tumorlens.inference.heatmap import (
    Heat,
    check_opacity,
    heat_of,
    picture,
)
from tumorlens.inference.predict import Counts, OnSlice, PredictSettings, predict
from tumorlens.inference.records import Record
from tumorlens.inference.secondary_capture import Captures
from tumorlens.readers import Slice


@dataclass(frozen=True)
class Look:
    """How pictures are drawn."""

    opacity: float = 0.6
    """Of the hottest place, 0 to 1."""
    contrast: str | None = None
    """A class: show what speaks for the called class rather than for this one."""

    def __post_init__(self) -> None:
        check_opacity(self.opacity)


_JOB, _LOOK = PredictSettings(), Look()


def explain_all(
    inputs: Sequence[str],
    classifier: Classifier,
    out: Path,
    job: PredictSettings = _JOB,
    look: Look = _LOOK,
    *,
    dicom: bool = False,
) -> Counts:
    """Write a picture for each slice that the inputs hold, and say on stderr what could not be read.

    Parameters
    ----------
    out
        Folder of the pictures: PNG, named after the file.
    dicom
        For DICOM input also write a secondary capture (.dcm) without anything from the original's header.

    Returns
    -------
    Counts
        Of slices and unreadable files; the wholes of volumes are not counted.

    Raises
    ------
    ConfigError
        `look.contrast` is no class of the classifier.
    RunError
        A picture cannot be written.
    """
    write = pictures(classifier, out, look, Captures() if dicom else None)
    n = failed = 0
    for row in predict(inputs, classifier, job, on_slice=write, written=[out]):
        if row.failed:
            log.warning(f"{row.file}: {row.verdict}" + (f". {row.reason}" if row.reason else ""))
        n, failed = n + (row.kind != "volume"), failed + row.failed
    return Counts(n, failed)


def pictures(classifier: Classifier, out: Path, look: Look = _LOOK, captures: Captures | None = None) -> OnSlice:
    """A function for `predict` that writes each slice's picture into the folder `out`."""
    if look.contrast is not None and look.contrast not in classifier.classes:
        raise ConfigError(
            f"--contrast {look.contrast!r} is no class of {classifier.path}.",
            cure=f"Say one of {', '.join(classifier.classes)}.",
        )

    def write(item: Slice, row: Record, heatmap: Heat) -> None:
        heat, caption = drawn(row, heatmap, classifier.classes, look.contrast)
        image = picture(item.pixels, heat, caption, look.opacity)
        target = out / f"{picture_name(item.source, item.index)}.png"
        content = BytesIO()
        image.save(content, "PNG")
        with writing(target) as file:
            file.write(content.getbuffer())
        if captures is not None and item.metadata.get("format") == "DICOM":
            with writing(target.with_suffix(".dcm")) as file:
                captures.write(file, np.asarray(image), item.series or item.source, item.index)

    return write


def drawn(
    row: Record, heatmap: Heat, classes: Sequence[str], contrast: str | None = None
) -> tuple[Heat | None, list[str]]:
    """Heat and caption of a row: no heat, and no class, where the image was refused."""
    if not row.label:
        return None, [row.verdict, "Research, not diagnosis"]
    top = classes.index(row.label)
    sure = min(row.probabilities[row.label], 0.999)  # nothing is 100 % sure
    share = f"{sure:.1%}" if sure < 0.999 else "> 99.9%"
    caption = [f"{row.label} {share}" + ("" if row.verdict == "ok" else f" ({row.verdict})")]
    against = None
    if contrast is not None:
        others = np.argsort(list(row.probabilities.values()))[::-1].tolist()
        # The called class against itself is nothing: the runner-up stands in.
        against = classes.index(contrast) if contrast != row.label else next(i for i in others if i != top)
        caption.append(f"{row.label} rather than {classes[against]}")
    return heat_of(heatmap, top, against), [*caption, "Research, not diagnosis"]


def picture_name(source: str, index: int | None) -> str:
    """A file name for a slice's picture: letters of its own name, and a hash that keeps equal names apart."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).name).strip("._")[:60] or "image"
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{stem}-{digest}" + ("" if index is None else f"-{index:04d}")
