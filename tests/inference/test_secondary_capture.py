"""DICOM secondary captures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
from classifier_fixture import fake_classifier, grey
from phantom_files import write_dicom
from PIL import Image

from tumorlens.inference.explain import (
    explain_all,
)
from tumorlens.inference.predict import PredictSettings
from tumorlens.inference.secondary_capture import SecondaryCaptures


class TestSecondaryCapture:
    def test_it_is_whole_and_carries_nothing_of_the_patient(self, tmp_path: Path):
        (source, *_) = write_dicom(tmp_path / "in", 0, "glioma", 0)
        original = pydicom.dcmread(source)
        names = {"PatientName": "Doe^Jane", "PatientID": "ID4711", "InstitutionName": "Hospital X",
                 "AccessionNumber": "ACC99", "PatientBirthDate": "19700102",
                 "StudyDescription": "Brain of Doe"}  # fmt: skip
        for key, value in names.items():
            setattr(original, key, value)
        secret = tmp_path / "in" / "s.dcm"
        original.save_as(secret)
        explain_all([str(secret)], fake_classifier(), tmp_path / "out", dicom=True)
        (written,) = (tmp_path / "out").glob("*.dcm")
        content = written.read_bytes()
        for value in (*names.values(), str(original.StudyInstanceUID), str(original.SOPInstanceUID)):
            assert value.encode() not in content
        found = pydicom.dcmread(written)
        assert found.SOPClassUID.name == "Secondary Capture Image Storage"
        assert (found.PatientName, found.PatientID) == ("", "")
        assert "PatientIdentityRemoved" not in found
        (png,) = (tmp_path / "out").glob("*.png")
        np.testing.assert_array_equal(found.pixel_array, np.asarray(Image.open(png)))

    def test_a_series_stays_together(self):
        captures, files = SecondaryCaptures(), [io.BytesIO() for _ in range(3)]
        for file, series, index in zip(files, ("a", "a", "b"), (0, 1, None), strict=True):
            captures.write(file, np.zeros((3, 3, 3), np.uint8), series, index)
        one, two, other = (pydicom.dcmread(io.BytesIO(file.getvalue())) for file in files)
        assert one.SeriesInstanceUID == two.SeriesInstanceUID != other.SeriesInstanceUID
        assert one.SOPInstanceUID != two.SOPInstanceUID
        assert (one.InstanceNumber, two.InstanceNumber) == (1, 2)

    def test_other_formats_get_none(self, tmp_path):
        grey("glioma").save(tmp_path / "a.png")
        explain_all([str(tmp_path / "a.png")], fake_classifier(), tmp_path / "out", PredictSettings(), dicom=True)
        assert not list((tmp_path / "out").glob("*.dcm"))
