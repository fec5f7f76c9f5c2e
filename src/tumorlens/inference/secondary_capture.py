"""DICOM secondary captures of explanations, which hold nothing of the original header."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from tumorlens.core.version import __version__
from tumorlens.readers.pixels import Pixels

#: Required by the standard, but may be empty.
_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
          "ReferringPhysicianName", "StudyID", "AccessionNumber", "PatientOrientation")  # fmt: skip


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
        elements = dict.fromkeys(_EMPTY, "") | {
            "SOPClassUID": SecondaryCaptureImageStorage,
            "SOPInstanceUID": generate_uid(),
            "StudyInstanceUID": study,
            "SeriesInstanceUID": row,
            # Not PatientIdentityRemoved: names may be burned into the original pixels.
            "DeidentificationMethod": "Nothing of the original header was copied",
            "Modality": "OT",
            "ConversionType": "WSD",
            "ImageType": ["DERIVED", "SECONDARY"],
            "SeriesDescription": "Explanation of a classifier; research, not diagnosis",
            "Manufacturer": "tumorlens",
            "SoftwareVersions": __version__,
            "SeriesNumber": "1",
            "InstanceNumber": str((index or 0) + 1),
            "BurnedInAnnotation": "YES",
        }
        data = Dataset()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.set_pixel_data(pixels, "RGB", bits_stored=8, generate_instance_uid=False)
        data.save_as(file, enforce_file_format=True)  # which completes file_meta
