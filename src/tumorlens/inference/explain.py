"""The explain job: a picture per slice that shows where the evidence for a class is.

The heatmap is the class activation map, which for this network equals Grad-CAM on `layer4` up to the constant 1/49
(Selvaraju et al., ICCV 2017, section 3.1), so no backward pass is needed. It shows the evidence that the network used,
on a grid of 7 x 7 cells of 32 pixels; it does not outline a tumour.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import writing
from tumorlens.core.progress import log
from tumorlens.inference.classifier import Classifier
from tumorlens.inference.heatmap import (
    HeatArray,
    class_heatmap,
    picture,
)
from tumorlens.inference.predict import OnSlice, PredictSettings, predict
from tumorlens.inference.records import Counts, Record
from tumorlens.inference.secondary_capture import SecondaryCaptures
from tumorlens.readers import Slice


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are drawn."""

    opacity: float = 0.6
    """Opacity of the heatmap at its maximum, 0 to 1."""
    contrast: str | None = None
    """A class: show the evidence for the predicted class over this one."""

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ConfigError(
                f"--opacity {self.opacity} is out of range.", cure="Use a number from 0 to 1, such as 0.6."
            )


_SETTINGS, _OPTIONS = PredictSettings(), PictureOptions()


def explain_all(
    inputs: Sequence[str],
    classifier: Classifier,
    out: Path,
    settings: PredictSettings = _SETTINGS,
    options: PictureOptions = _OPTIONS,
    *,
    dicom: bool = False,
) -> Counts:
    """Write a picture for each slice of the inputs, and log what could not be read.

    Parameters
    ----------
    out
        Folder for the pictures: PNG, named after the file.
    dicom
        For DICOM input also write a secondary capture (.dcm), which holds nothing of the original header.

    Returns
    -------
    Counts
        Slices, and files that could not be read; volumes are not counted.

    Raises
    ------
    ConfigError
        `options.contrast` is not a class of the classifier.
    RunError
        A picture cannot be written.
    """
    write = picture_writer(classifier, out, options, SecondaryCaptures() if dicom else None)
    counts = Counts()
    for record in predict(inputs, classifier, settings, on_slice=write, written=[out]):
        if record.failed:
            log.warning(f"{record.file}: {record.verdict}" + (f". {record.reason}" if record.reason else ""))
        if record.kind != "volume":
            counts.add(record)
    return counts


def picture_writer(
    classifier: Classifier, out: Path, options: PictureOptions = _OPTIONS, captures: SecondaryCaptures | None = None
) -> OnSlice:
    """A callback for `predict` that writes the picture of each slice into the folder `out`."""
    if options.contrast is not None and options.contrast not in classifier.classes:
        raise ConfigError(
            f"--contrast {options.contrast!r} is not a class of {classifier.path}.",
            cure=f"Use one of {', '.join(classifier.classes)}.",
        )

    def write(item: Slice, record: Record, heatmap: HeatArray) -> None:
        heat, caption = heat_and_caption(record, heatmap, classifier.classes, options.contrast)
        image = picture(item.pixels, heat, caption, options.opacity)
        target = out / f"{picture_name(item.source, item.index)}.png"
        with writing(target) as file:
            image.save(file, "PNG")
        if captures is not None and item.metadata.get("format") == "DICOM":
            with writing(target.with_suffix(".dcm")) as file:
                captures.write(file, np.asarray(image), item.series or item.source, item.index)

    return write


def heat_and_caption(
    record: Record, heatmap: HeatArray, classes: Sequence[str], contrast: str | None = None
) -> tuple[HeatArray | None, list[str]]:
    """Heat [224, 224] and caption of a record; no heat and no class if the image was refused."""
    if not record.label:
        return None, [record.verdict, "Research, not diagnosis"]
    p = record.probabilities[record.label]
    share = f"{p:.1%}" if p < 0.999 else "> 99.9%"  # nothing is 100 % certain
    caption = [f"{record.label} {share}" + ("" if record.verdict == "ok" else f" ({record.verdict})")]
    against = None
    if contrast is not None:
        if contrast == record.label:  # a class against itself shows nothing: the second most probable one is used
            contrast = max((name for name in classes if name != record.label), key=record.probabilities.__getitem__)
        against = classes.index(contrast)
        caption.append(f"{record.label} rather than {contrast}")
    return class_heatmap(heatmap, classes.index(record.label), against), [*caption, "Research, not diagnosis"]


def picture_name(source: str, index: int | None) -> str:
    """A file name for the picture of a slice: letters of its own name, and a hash that keeps equal names apart."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source).name).strip("._")[:60] or "image"
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{stem}-{digest}" + ("" if index is None else f"-{index:04d}")
