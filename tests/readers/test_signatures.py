"""Formats are recognized by their first bytes."""

from __future__ import annotations

import gzip

import pytest
from input_files import seeds

from tumorlens.readers.signatures import GZIP, HEADER, ZIP, is_dicom, is_nifti, is_raster


@pytest.mark.parametrize("name", list(seeds.seeds()))
def test_each_format_is_recognized_as_itself_only(name: str) -> None:
    for content in seeds.seeds()[name]:
        head = content[:HEADER]
        found = (is_raster(head), is_dicom(head), is_nifti(head), head.startswith(GZIP), head.startswith(ZIP))
        kinds = ("raster", "DICOM", "NIfTI", "NIfTI gz", "zip")
        expected = name if name in kinds else "DICOM" if name.startswith("DICOM") else "raster"
        assert [kind for kind, yes in zip(kinds, found, strict=True) if yes] == [expected]


def test_other_content_is_not_recognized() -> None:
    for head in (b"", b"PK", b"RIFF....WAVE", b"\x08\0\x05\0..", b"%PDF-1.7" + bytes(600), bytes(HEADER)):
        assert not is_raster(head)
        assert not is_dicom(head)
        assert not is_nifti(head)
        assert not head.startswith((GZIP, *ZIP))
    assert gzip.compress(b"").startswith(GZIP)
