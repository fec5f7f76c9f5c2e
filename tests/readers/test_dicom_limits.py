"""DICOM: headers that would cost far more than their file are refused before pydicom parses them."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from input_files import only, reason, seeds
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tumorlens.readers import read_bytes

dicom = seeds.dicom
GREY = seeds.picture()
DEEP = GREY.astype(np.uint16) * 16
IMPLICIT = "1.2.840.10008.1.2"


def with_items(content: bytes, number: int) -> bytes:
    """A file of explicit VR with an undefined-length sequence of empty items before its pixels."""
    at = content.rindex(b"\xe0\x7f\x10\0OW")
    sequence = struct.pack("<HH2sHI", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * number
    return content[:at] + sequence + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0) + content[at:]


@pytest.mark.parametrize("deflated", [False, True])
def test_endless_empty_items_are_refused_before_they_are_parsed(
    deflated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(number: int) -> bytes:
        if not deflated:
            return with_items(dicom(DEEP), number)
        whole = dicom(DEEP, syntax=seeds.DEFLATED)
        start = 144 + struct.unpack("<I", whole[140:144])[0]
        pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        plain = with_items(zlib.decompress(whole[start:], -zlib.MAX_WBITS), number)
        return whole[:start] + pack.compress(plain) + pack.flush()

    assert np.array_equal(only(read_bytes(made(9_000), "x")).pixels, only(read_bytes(dicom(DEEP), "x")).pixels)
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("it was parsed"))
    assert "items in its header" in reason(read_bytes(made(20_000), "x"))


def test_a_window_of_a_million_numbers_costs_no_memory() -> None:
    text = "1\\" * 500_000
    for nested in (False, True):
        data = pydicom.dcmread(io.BytesIO(dicom(DEEP, syntax=IMPLICIT, WindowWidth=9)))
        place, group = Dataset(), Dataset()
        where = place if nested else data
        where.add(DataElement("WindowWidth", "DS", "9"))
        where.add(DataElement("WindowCenter", "UN", text.encode()))
        if nested:
            group.FrameVOILUTSequence = [place]
            data.SharedFunctionalGroupsSequence = [group]
        file = io.BytesIO()
        data.save_as(file)
        tracemalloc.start()
        try:
            assert "bytes in an element that is short" in reason(read_bytes(file.getvalue(), "x"))
            assert tracemalloc.get_traced_memory()[1] < 40_000_000
        finally:
            tracemalloc.stop()
