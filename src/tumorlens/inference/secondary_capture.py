"""DICOM secondary captures of explanations, which hold nothing of the original header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from tumorlens.core.version import __version__
from tumorlens.readers.pixels import Pixels


@dataclass(frozen=True)
class SecondaryCaptures:
    """Writes captures. Those of one series share StudyInstanceUID and SeriesInstanceUID, which are new and random."""

    _uids: dict[str, tuple[str, str]] = field(default_factory=dict)

    def write(self, file: BinaryIO, pixels: Pixels, series: str, index: int | None) -> None:
        """Write one picture.

        Parameters
        ----------
        pixels
            uint8 [rows, columns, 3], RGB.
        series
            Key of pictures that belong together; it is not written.
        index
            0-based; InstanceNumber is index + 1.
        """
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

        study, row = self._uids.setdefault(series, (generate_uid(), generate_uid()))
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = Dataset()
        data.file_meta = meta
        data.SOPClassUID = SecondaryCaptureImageStorage
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = study, row
        # The standard requires these elements; they may be empty.
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
                     "ReferringPhysicianName", "StudyID", "AccessionNumber", "PatientOrientation"):  # fmt: skip
            setattr(data, name, "")
        # Not PatientIdentityRemoved: names may be burned into the original pixels.
        data.DeidentificationMethod = "Nothing of the original header was copied"
        data.Modality, data.ConversionType = "OT", "WSD"
        data.ImageType = ["DERIVED", "SECONDARY"]
        data.SeriesDescription = "Explanation of a classifier; research, not diagnosis"
        data.Manufacturer, data.SoftwareVersions = "tumorlens", __version__
        data.SeriesNumber, data.InstanceNumber = "1", str((index or 0) + 1)
        data.BurnedInAnnotation = "YES"
        data.Rows, data.Columns, data.SamplesPerPixel = *pixels.shape[:2], 3
        data.PhotometricInterpretation, data.PlanarConfiguration = "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        content = pixels.tobytes()
        data.PixelData = content + b"\0" * (len(content) % 2)
        data.save_as(file, enforce_file_format=True)
