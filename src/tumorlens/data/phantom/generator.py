"""Generated brain slices (a phantom): four classes with lesion masks, reproducible from a seed, without a download.

An image depends on (seed, label, patient, slice) alone, however many are generated. Head, view, position and
everything of the scanner (size, rotation, field of view, border, brightness, contrast, bias, noise) are drawn
from (seed, patient) independently of the label, so none of them predicts the class. Only the depth is slightly
informative, as in patients: pituitary tumours lie in the sella, which is also cut in 45 % of the other patients.

The slices show that the software works. They say nothing about patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import disk_error, write_json
from tumorlens.core.progress import Bar
from tumorlens.data.phantom.anatomy import Head, make_head
from tumorlens.data.phantom.lesions import LABELS, Lesion, draw, make_lesion
from tumorlens.data.phantom.planes import VIEWS
from tumorlens.data.phantom.scanner import Scan, acquire, make_scan, slice_depth

__all__ = ["LABELS", "VIEWS", "PhantomSlice", "make_slice", "write_dataset"]

GENERATOR = 2  # raised when pixels or counts change: data sets of another generator are generated again
SLICES = 2  # per patient in a data set
N_TRAIN, N_TEST = 1600, 400  # enough heads for a fine-tuned network to recognise small meningiomas


@dataclass(frozen=True)
class PhantomSlice:
    """One generated image."""

    pixels: npt.NDArray[np.uint8]
    """[rows, columns], 0 to 255."""
    mask: npt.NDArray[np.bool_]
    """[rows, columns], true on the tumour (oedema excluded); all false for notumor."""
    label: str
    view: str
    """axial, coronal or sagittal. Axial and coronal: the patient's right is on the left."""
    depth: float
    """mm from the origin between the thalami: upwards (axial), forwards (coronal), to the right (sagittal)."""


def make_slice(seed: int, label: str, patient: int, slice_number: int) -> PhantomSlice:
    """Generate one image.

    Parameters
    ----------
    seed, patient, slice_number
        0 or more. Slices of a patient share head, view and scanner, and lie within 9 mm.
    label
        glioma, meningioma, notumor or pituitary.

    Raises
    ------
    ConfigError
        The label is unknown or a number is negative.
    """
    check_arguments(label, seed=seed, patient=patient, slice_number=slice_number)
    head, scan, lesion = make_patient(seed, label, patient)
    depth = slice_depth(scan, label, slice_number)
    rng = np.random.default_rng([seed, 4, patient, slice_number])
    pixels, mask = acquire(scan, *draw(head, lesion, scan.view, depth), rng)
    return PhantomSlice(pixels, mask, label, scan.view, depth)


def write_dataset(folder: Path, *, n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 0) -> Path:
    """Write a data set in the layout of the real one, with the lesion masks beside it.

    `Training/<class>/Tr-gl_p0000_s0.jpg`, `Testing/<class>/Te-gl_p0001_s0.jpg` (greyscale, quality 95),
    `masks/<the same>.png` (0 or 255), and, written last, `phantom.json` with the arguments. Classes alternate;
    Training takes patients of even number and Testing those of odd number.

    Parameters
    ----------
    folder
        A new or empty folder.
    n_train, n_test
        Total number of images, at least 4 each: one per class.

    Returns
    -------
    Path
        `folder`, absolute.

    Raises
    ------
    ConfigError
        `seed` is negative.
    RunError
        The folder is not empty or cannot be written.
    """
    check_arguments(LABELS[0], seed=seed)
    plan = [*_plan("Training", n_train), *_plan("Testing", n_test)]
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunError(f"{folder} is not empty.", cure="Name a new or empty folder.")
        with Bar("Generating slices", len(plan)) as bar:
            for path, label, patient, slice_number in plan:
                _write_pair(folder, path, make_slice(seed, label, patient, slice_number))
                bar.advance()
        write_json(
            folder / "phantom.json", {"generator": GENERATOR, "seed": seed, "n_train": n_train, "n_test": n_test}
        )
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder


@lru_cache(maxsize=8)
def make_patient(seed: int, label: str, patient: int) -> tuple[Head, Scan, Lesion | None]:
    """Anatomy, scanner and, except for notumor, the tumour of one patient."""
    head, scan = make_head(seed, patient), make_scan(seed, patient)
    return head, scan, make_lesion(seed, label, patient, head, scan.view, slice_depth(scan, label, 0))


def check_arguments(label: str, **numbers: int) -> None:
    """Check a label and numbers by name; ConfigError if the label is unknown or a number is negative."""
    if label not in LABELS:
        raise ConfigError(f"{label!r} is not a class of the phantom.", cure=f"Use one of {', '.join(LABELS)}.")
    for name, value in numbers.items():
        if value < 0:
            raise ConfigError(f"{name} is {value}.", cure="Use 0 or more.")


def _plan(subset: str, n: int) -> Iterator[tuple[str, str, int, int]]:
    """Path, label, patient and slice of the n images of Training or Testing; the first ones do not depend on n."""
    classes = len(LABELS)
    for i in range(n):
        which = i % classes
        group, slice_number = divmod(i // classes, SLICES)
        patient = 2 * (classes * group + which) + (subset == "Testing")
        label = LABELS[which]
        name = f"{subset[:2]}-{label[:2]}_p{patient:04d}_s{slice_number}"
        yield f"{subset}/{label}/{name}", label, patient, slice_number


def _write_pair(root: Path, path: str, made: PhantomSlice) -> None:
    image, mask = root / f"{path}.jpg", root / "masks" / f"{path}.png"
    for target, content in ((image, Image.fromarray(made.pixels)), (mask, Image.fromarray(made.mask))):
        target.parent.mkdir(parents=True, exist_ok=True)
        content.save(target, quality=95)
