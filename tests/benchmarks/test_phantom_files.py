"""Generated patients as files: DICOM and NIfTI agree, and repeat to the byte."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import phantom_files
import pydicom
import pytest
from PIL import Image

from tumorlens.core.errors import ConfigError


def test_contact_sheet(tmp_path: Path) -> None:
    phantom_files.contact_sheet(tmp_path / "sheet.png", seed=0, n_per_class=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 384
        rows = np.asarray(sheet).reshape(4, -1)
    assert (rows.mean(1) > 15).all()
    with pytest.raises(ConfigError):
        phantom_files.contact_sheet(tmp_path / "sheet.png", n_per_class=0)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_dicom_and_nifti_agree(tmp_path: Path, suffix: str) -> None:
    paths = phantom_files.write_dicom(tmp_path / "series", 0, "meningioma", 4)
    series = [pydicom.dcmread(path) for path in paths]
    assert len({image.SOPInstanceUID for image in series}) == len(series) == 37
    assert len({image.SeriesInstanceUID for image in series}) == 1
    assert {image.SOPClassUID.name for image in series} == {"MR Image Storage"}
    assert all(image.SOPInstanceUID.is_valid for image in series)
    first = series[0]
    assert (first.PhotometricInterpretation, first.BitsAllocated, first.PatientPosition) == ("MONOCHROME2", 16, "HFS")
    assert "PHANTOM" in first.PatientID

    volume, mask = phantom_files.write_nifti(tmp_path / f"case{suffix}", 0, "meningioma", 4)
    assert mask.name == f"case_mask{suffix}"
    image, lesion = nibabel.load(volume), nibabel.load(mask)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.shape == lesion.shape == (192, 192, 37)
    assert np.allclose(image.header.get_zooms(), (1.25, 1.25, 4.0))
    assert np.array_equal(image.affine, lesion.affine)
    inside = np.asanyarray(lesion.dataobj) > 0
    assert inside.any()
    values = np.asanyarray(image.dataobj)
    assert values[inside].mean() > 2 * values.mean()

    # The same point in space has the same value in both, through each format's own geometry.
    rng = np.random.default_rng(0)
    for i, j, k in zip(*(rng.integers(0, n, 50) for n in image.shape), strict=True):
        right, front, up = (image.affine @ [i, j, k, 1])[:3]
        slab = next(one for one in series if one.ImagePositionPatient[2] == pytest.approx(up))
        column = (-right - slab.ImagePositionPatient[0]) / slab.PixelSpacing[1]
        row = (-front - slab.ImagePositionPatient[1]) / slab.PixelSpacing[0]
        stored = slab.pixel_array[round(row), round(column)]
        shown = stored * slab.RescaleSlope + slab.RescaleIntercept
        assert shown == pytest.approx(values[i, j, k], abs=2)
        assert (row, column) == pytest.approx((round(row), round(column)), abs=1e-3)


def test_volumes_repeat_and_notumor_has_an_empty_mask(tmp_path: Path) -> None:
    once = [phantom_files.write_nifti(tmp_path / f"{n}.nii.gz", 1, "notumor", 2) for n in "ab"]
    assert once[0][0].read_bytes() == once[1][0].read_bytes()
    assert not np.asanyarray(nibabel.load(once[0][1]).dataobj).any()
    again = [phantom_files.write_dicom(tmp_path / n, 1, "pituitary", 2)[5].read_bytes() for n in "ab"]
    assert again[0] == again[1]
    with pytest.raises(ConfigError, match=r"\.nii"):
        phantom_files.write_nifti(tmp_path / "a.mgz", 1, "notumor", 2)
