"""Files that would cost far more than their size: refused before a library takes them up."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from input_files import only, reason, seeds
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from tumorlens.readers import ReadLimits, read_bytes

dicom = seeds.dicom
GREY = seeds.picture()
DEEP = GREY.astype(np.uint16) * 16
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
IMPLICIT = "1.2.840.10008.1.2"


def test_jpegs_of_endless_scans_or_segments_are_refused_before_pillow_opens_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jpeg = seeds.raster("JPEG", RGB, progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for content, wanted in (
        (jpeg[:last] + jpeg[last:-2] * 100 + b"\xff\xd9", "over 100 scans"),
        (jpeg[:2] + b"\xff\xe5\0\2" * 10_000 + jpeg[2:], "over 10,000 segments"),
    ):
        assert wanted in reason(read_bytes(content, "x"))


def tiff(*pages: list[tuple[int, int, int, int]], sign: str = "<") -> bytes:
    """A TIFF of tags (tag, type, count, value) alone."""
    made = struct.pack(f"{sign}2sHI", b"II" if sign == "<" else b"MM", 42, 8)
    for page in pages:
        after = 0 if page is pages[-1] else len(made) + 6 + 12 * len(page)
        entries = b"".join(struct.pack(f"{sign}HHII", *entry) for entry in page)
        made += struct.pack(f"{sign}H", len(page)) + entries + struct.pack(f"{sign}I", after)
    return made


SIDES = [(256, 4, 1, 64), (257, 4, 1, 64)]


@pytest.mark.parametrize("sign", ["<", ">"])
@pytest.mark.parametrize(
    ("pages", "wanted"),
    [
        ([[*SIDES, (273, 4, 400_000, 8)]], "over 144 strips"),
        ([SIDES, [*SIDES, (324, 4, 400_000, 8)]], "over 144 strips"),
        ([[*SIDES, (258, 3, 1_000_001, 8)]], "over 1,000,000 values"),
        ([[*SIDES] * 501], "over 1,000 tags"),
        ([[*SIDES, *((i, 7, 5_000, 8) for i in range(50_000, 50_400))]], "more bytes of tags than the file"),
    ],
)  # fmt: skip
def test_a_tiff_whose_tags_cost_too_much_is_refused_before_pillow_opens_it(
    pages: list[list[tuple[int, int, int, int]]], wanted: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert wanted in reason(read_bytes(tiff(*pages, sign=sign), "x"))


def test_a_jpeg_of_endless_scans_in_dicom_is_not_decoded() -> None:
    jpeg = seeds.raster("JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    content = dicom(GREY, syntax=seeds.JPEG, encapsulated=[jpeg[:last] + jpeg[last:-2] * 100 + b"\xff\xd9"])
    assert "over 100 scans" in reason(read_bytes(content, "x"))


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


def test_a_deflated_bomb_costs_no_memory() -> None:
    whole = dicom(DEEP, syntax=seeds.DEFLATED)
    start = 144 + struct.unpack("<I", whole[140:144])[0]
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1_000_000)
    bomb = whole[:start] + b"".join(pack.compress(zeros) for _ in range(100)) + pack.flush()
    tracemalloc.start()
    try:
        assert "inflates" in reason(read_bytes(bomb, "x", limits=ReadLimits(ratio_from=5_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 40_000_000  # pydicom's own import among them
    finally:
        tracemalloc.stop()
