"""Generated patients as files that benchmarks and tests read: DICOM series, NIfTI volumes, a contact sheet."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import writing
from tumorlens.data.phantom.generator import check_arguments, make_patient, make_slice
from tumorlens.data.phantom.lesions import LABELS, draw
from tumorlens.data.phantom.planes import SIDE, STEP

_UID_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's prefix, free for anyone to derive identifiers from
_HEIGHTS = np.arange(-64.0, 81.0, 4.0)  # mm, of a volume's axial slices


def contact_sheet(path: Path, seed: int = 0, n_per_class: int = 8) -> None:
    """Write a PNG with a row of slices per class, one patient each.

    Raises
    ------
    ConfigError
        A number is out of range.
    RunError
        The file cannot be written.
    """
    check_arguments(LABELS[0], seed=seed)
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
    signal, _ = _volume(seed, label, patient)
    slope, intercept = 2.0, -64.0
    stored = np.round((1500 * signal - intercept) / slope).astype("<u2")
    name = f"{label[:2]}_p{patient:04d}"

    def uid(*what: object) -> UID:
        return generate_uid(_UID_ROOT, entropy_srcs=["tumorlens phantom", str(seed), name, *map(str, what)])

    paths = []
    for i, (height, plane) in enumerate(zip(_HEIGHTS, stored, strict=True)):
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
        image.PixelSpacing, image.SliceThickness = [STEP, STEP], float(_HEIGHTS[1] - _HEIGHTS[0])
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
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else ".nii"
    stem = path.name.removesuffix(suffix)
    if not path.name.endswith(suffix) or not stem:
        raise ConfigError(f"{path} is no name for a NIfTI file.", cure="End it in .nii or .nii.gz.")
    signal, lesion = _volume(seed, label, patient)
    affine = np.diag([STEP, STEP, _HEIGHTS[1] - _HEIGHTS[0], 1.0])
    affine[:3, 3] = [-(SIDE / 2 - 1) * STEP, -(SIDE / 2 - 1) * STEP, _HEIGHTS[0]]
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
    check_arguments(label, seed=seed, patient=patient)
    head, scan, lesion = make_patient(seed, label, patient)
    planes, inside = zip(*(draw(head, lesion, "axial", float(height)) for height in _HEIGHTS), strict=True)
    signal = np.stack(planes)
    noise = scan.noise * np.random.default_rng([seed, 5, patient]).standard_normal((2, *signal.shape), np.float32)
    return np.hypot(signal + noise[0], noise[1]).astype(np.float32), np.stack(inside) > 0
