"""Generated brain slices: four classes, lesion masks, nothing downloaded, the same from the same seed.

An image depends on (seed, label, patient, slice) alone, however many are made. Head, view, position and
everything of the scanner (size, rotation, field of view, border, brightness, contrast, bias, noise) are drawn
from (seed, patient) before the label is looked at, so none of them tells the class. Only the depth does a
little, as in patients: pituitary tumours lie in the sella, where 45 % of the other patients are cut too.

The slices show that software works. They say nothing about patients.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import (
    Json,
    disk_error,
    read_json,
    write_json,
    writing,
)
from tumorlens.core.progress import Bar
from tumorlens.data.phantom.anatomy import Head, make_head
from tumorlens.data.phantom.lesions import (
    LABELS,
    Lesion,
    draw,
    make_lesion,
)
from tumorlens.data.phantom.planes import SIDE, STEP, VIEWS
from tumorlens.data.phantom.scanner import (
    Scan,
    acquire,
    make_scan,
    slice_depth,
)

__all__ = ["LABELS", "VIEWS", "PhantomSlice", "contact_sheet", "make_slice", "write_dataset", "write_dicom",
           "write_nifti"]  # fmt: skip

GENERATOR = 2  # raised when pixels or numbers change: a data set of another generator is made anew
SLICES = 2  # of one patient in a data set
N_TRAIN, N_TEST = 1600, 400  # enough heads that a fine-tuned network tells small meningiomas
_UID_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, free for anyone to derive identifiers from
_STACK = np.arange(-64.0, 81.0, 4.0)  # mm, heights of a volume's axial slices


@dataclass(frozen=True)
class PhantomSlice:
    """One generated image."""

    pixels: npt.NDArray[np.uint8]
    """[rows, columns], 0 to 255."""
    mask: npt.NDArray[np.bool_]
    """[rows, columns], true on the tumour (oedema not counted); empty for notumor."""
    label: str
    patient: str
    view: str
    """axial, coronal or sagittal. Axial and coronal: the patient's right is on the left."""
    depth: float
    """mm from the origin between the thalami: upwards (axial), forwards (coronal), to the right (sagittal)."""


def make_slice(seed: int, label: str, patient: int, slice_number: int) -> PhantomSlice:
    """Make one image.

    Parameters
    ----------
    seed, patient, slice_number
        0 or more. Slices of a patient share head, view and scanner, and lie within 9 mm.
    label
        glioma, meningioma, notumor or pituitary.

    Raises
    ------
    ConfigError
        An unknown label or a negative number.
    """
    _check(label, seed=seed, patient=patient, slice_number=slice_number)
    head, scan, lesion = _patient(seed, label, patient)
    depth = slice_depth(scan, label, slice_number)
    rng = np.random.default_rng([seed, 4, patient, slice_number])
    pixels, mask = acquire(scan, *draw(head, lesion, scan.view, depth), rng)
    return PhantomSlice(pixels, mask, label, _name(label, patient), scan.view, depth)


def write_dataset(folder: Path, *, n_train: int = N_TRAIN, n_test: int = N_TEST, seed: int = 0) -> Path:
    """Write a data set in the layout of the real one, and masks beside it.

    `Training/<class>/Tr-gl_p0000_s0.jpg`, `Testing/<class>/Te-gl_p0001_s0.jpg` (greyscale, quality 95),
    `masks/<the same>.png` (0 or 255), and `phantom.json`, which tells what it is. Classes alternate;
    Training takes patients of even number and Testing those of odd number. Everything goes into a sibling
    folder that is renamed when whole; a folder that already holds this data set is left as it is.

    Parameters
    ----------
    n_train, n_test
        Images in all, at least 4 each: one a class.

    Returns
    -------
    Path
        `folder`, absolute.

    Raises
    ------
    ConfigError
        A number is out of range.
    RunError
        The folder cannot be written, or holds something else.
    """
    _check(LABELS[0], seed=seed)
    for option, n in (("n_train", n_train), ("n_test", n_test)):
        if n < len(LABELS):
            raise ConfigError(f"{option} is {n}.", cure=f"Give {len(LABELS)} or more: one image a class.")
    facts: Json = {"generator": GENERATOR, "seed": seed, "n_train": n_train, "n_test": n_test}
    plan = [*_plan("Training", n_train), *_plan("Testing", n_test)]
    folder = folder.absolute()
    if _holds(folder, facts, plan):
        return folder
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with Bar("Generating slices", len(plan)) as bar:
            for path, label, patient, slice_number in plan:
                _write_pair(part, path, make_slice(seed, label, patient, slice_number))
                bar.advance()
        write_json(part / "phantom.json", facts)
        _put(part, folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def contact_sheet(path: Path, seed: int = 0, n_per_class: int = 8) -> None:
    """Write a PNG with a row of slices per class, one patient each.

    Raises
    ------
    ConfigError
        A number is out of range.
    RunError
        The file cannot be written.
    """
    _check(LABELS[0], seed=seed)
    if not 1 <= n_per_class <= 64:
        raise ConfigError(f"n_per_class is {n_per_class}.", cure="Give 1 to 64.")
    tile, title = 192, 18
    sheet = Image.new("L", (n_per_class * tile, len(LABELS) * (tile + title)))
    pen = ImageDraw.Draw(sheet)
    for row, label in enumerate(LABELS):
        top = row * (tile + title)
        pen.text((6, top + 3), label, fill=220)
        for column in range(n_per_class):
            image = Image.fromarray(make_slice(seed, label, len(LABELS) * column + row, 0).pixels)
            image.thumbnail((tile, tile), Image.Resampling.LANCZOS)
            corner = (column * tile + (tile - image.width) // 2, top + title + (tile - image.height) // 2)
            sheet.paste(image, corner)
    with writing(path) as file:
        sheet.save(file, "PNG")


def write_dicom(folder: Path, seed: int, label: str, patient: int) -> list[Path]:
    """Write a patient as a DICOM series of axial MR slices.

    MONOCHROME2, 16 bits, 1.25 mm pixels every 4 mm; rescale and window are set. Rows run from front to
    back, columns from the patient's right to left. Names, dates and UIDs are invented, follow from the
    arguments, and say that they are a phantom's.

    Returns
    -------
    list of Path
        `IM0001.dcm`, …, from the lowest slice upwards.

    Raises
    ------
    ConfigError
        An unknown label or a negative number.
    RunError
        A file cannot be written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

    signal, _ = _volume(seed, label, patient)
    slope, intercept = 2.0, -64.0
    stored = np.round((1500 * signal - intercept) / slope).astype("<u2")
    name = _name(label, patient)

    def uid(*what: object) -> UID:
        return generate_uid(_UID_ROOT, entropy_srcs=["tumorlens phantom", str(seed), name, *map(str, what)])

    paths = []
    for i, (height, plane) in enumerate(zip(_STACK, stored, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = uid("image", i)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = Dataset()
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = uid("study"), uid("series")
        image.FrameOfReferenceUID = uid("frame")
        image.PatientName, image.PatientID = "Phantom^Synthetic", f"PHANTOM-{seed}-{name}"
        image.PatientBirthDate, image.PatientSex, image.PatientIdentityRemoved = "", "O", "YES"
        image.StudyDate = image.SeriesDate = image.ContentDate = "20000101"
        image.StudyTime = image.SeriesTime = image.ContentTime = "000000"
        image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
        image.Modality, image.Manufacturer = "MR", "tumorlens phantom"
        image.StudyDescription = "Synthetic brain, not a patient"
        image.SeriesDescription = "T1 axial, contrast-enhanced, generated"
        image.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "SE", "NONE", ""
        image.MRAcquisitionType, image.RepetitionTime, image.EchoTime, image.EchoTrainLength = "2D", 550, 12, 1
        image.SeriesNumber, image.AcquisitionNumber, image.InstanceNumber = 1, 1, i + 1
        image.PatientPosition, image.PositionReferenceIndicator = "HFS", ""
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        # DICOM counts to the left and backwards, the model to the right and forwards.
        image.ImagePositionPatient = [-SIDE / 2 * STEP, -SIDE / 2 * STEP, float(height)]
        image.PixelSpacing, image.SliceThickness = [STEP, STEP], float(_STACK[1] - _STACK[0])
        image.SpacingBetweenSlices, image.SliceLocation = image.SliceThickness, float(height)
        image.Rows, image.Columns, image.SamplesPerPixel = SIDE, SIDE, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = slope, intercept, "US"
        image.WindowCenter, image.WindowWidth = 620, 1250
        image.PixelData = plane.tobytes()
        path = folder / f"IM{i + 1:04d}.dcm"
        with writing(path) as file:
            image.save_as(file, enforce_file_format=True)
        paths.append(path)
    return paths


def write_nifti(path: Path, seed: int, label: str, patient: int) -> tuple[Path, Path]:
    """Write a patient as a NIfTI volume, and the tumour's mask beside it.

    int16 [192, 192, 37] and uint8 of the same shape, in RAS: the first axis runs to the patient's right,
    the second to the front, the third upwards; 1.25 x 1.25 x 4 mm. The origin lies between the thalami.

    Parameters
    ----------
    path
        `NAME.nii` or `NAME.nii.gz`.

    Returns
    -------
    tuple of Path
        The volume and `NAME_mask.nii` or `NAME_mask.nii.gz`.

    Raises
    ------
    ConfigError
        Another suffix, an unknown label or a negative number.
    RunError
        A file cannot be written.
    """
    import nibabel

    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    stem = path.name.removesuffix(suffix)
    if not path.name.endswith(suffix) or not stem:
        raise ConfigError(f"{path} is no name for a NIfTI file.", cure="End it in .nii or .nii.gz.")
    signal, lesion = _volume(seed, label, patient)
    affine = np.diag([STEP, STEP, _STACK[1] - _STACK[0], 1.0])
    affine[:3, 3] = [-(SIDE / 2 - 1) * STEP, -(SIDE / 2 - 1) * STEP, _STACK[0]]
    paths = (path, path.with_name(f"{stem}_mask{suffix}"))
    volumes: tuple[npt.NDArray[Any], ...] = (np.round(1500 * signal).astype(np.int16), lesion.astype(np.uint8))
    for target, values in zip(paths, volumes, strict=True):
        # From [slice, front to back, right to left] to [right, front, up].
        image: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
            np.ascontiguousarray(values.transpose(2, 1, 0)[::-1, ::-1]), affine
        )
        image.header.set_xyzt_units("mm")
        content = image.to_bytes()
        with writing(target) as file:
            file.write(gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content)
    return paths


def _volume(seed: int, label: str, patient: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Signal with noise, and tumour, [37, 192, 192] each: axial planes from the lowest upwards."""
    _check(label, seed=seed, patient=patient)
    head, scan, lesion = _patient(seed, label, patient)
    planes, inside = zip(*(draw(head, lesion, "axial", float(height)) for height in _STACK), strict=True)
    signal = np.stack(planes)
    noise = scan.noise * np.random.default_rng([seed, 5, patient]).standard_normal((2, *signal.shape), np.float32)
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32), np.stack(inside) > 0


@lru_cache(maxsize=8)
def _patient(seed: int, label: str, patient: int) -> tuple[Head, Scan, Lesion | None]:
    head, scan = make_head(seed, patient), make_scan(seed, patient)
    return head, scan, make_lesion(seed, label, patient, head, scan.view, slice_depth(scan, label, 0))


def _name(label: str, patient: int) -> str:
    return f"{label[:2]}_p{patient:04d}"


def _check(label: str, **numbers: int) -> None:
    if label not in LABELS:
        raise ConfigError(f"{label!r} is no class of the phantom.", cure=f"Say one of {', '.join(LABELS)}.")
    for name, value in numbers.items():
        if value < 0:
            raise ConfigError(f"{name} is {value}.", cure="Give 0 or more.")


def _plan(part: str, n: int) -> Iterator[tuple[str, str, int, int]]:
    """Path, label, patient and slice of the n images of a part; the first ones do not depend on n."""
    classes = len(LABELS)
    for i in range(n):
        which = i % classes
        group, slice_number = divmod(i // classes, SLICES)
        patient = 2 * (classes * group + which) + (part == "Testing")
        name = f"{part[:2]}-{_name(LABELS[which], patient)}_s{slice_number}"
        yield f"{part}/{LABELS[which]}/{name}", LABELS[which], patient, slice_number


def _write_pair(root: Path, path: str, made: PhantomSlice) -> None:
    image, mask = root / f"{path}.jpg", root / "masks" / f"{path}.png"
    for target, content in ((image, Image.fromarray(made.pixels)), (mask, Image.fromarray(made.mask))):
        target.parent.mkdir(parents=True, exist_ok=True)
        content.save(target, quality=95)


def _holds(folder: Path, facts: Json, plan: list[tuple[str, str, int, int]]) -> bool:
    """Whether the folder holds this very data set; an error if it holds something that is not ours."""
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return False
    except OSError as error:
        raise disk_error(error, folder) from error
    if not (folder / "phantom.json").is_file():
        raise RunError(f"{folder} holds something else.", cure="Name a new or empty folder.")
    return bool(read_json(folder / "phantom.json") == facts) and all(
        (folder / f"{path}.jpg").is_file() and (folder / "masks" / f"{path}.png").is_file() for path, *_ in plan
    )


def _put(part: Path, folder: Path) -> None:
    """Rename the finished folder to its name; an older one goes out of the way in one step first."""
    if folder.is_dir() and any(folder.iterdir()):
        old = part.with_name(f"{part.name}.old.part")
        folder.rename(old)
        part.replace(folder)
        shutil.rmtree(old)
    else:
        part.replace(folder)
