"""JPEG, JPEG-LS and JPEG 2000: declared sizes and costs are checked before anything is decoded."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from input_files import reason, seeds
from PIL import Image

from tumorlens.core.errors import ImageError
from tumorlens.readers import read_bytes
from tumorlens.readers.codestreams import check_jpeg
from tumorlens.readers.pixels import read_image

dicom = seeds.dicom
GREY = seeds.picture()
DEEP = GREY.astype(np.uint16) * 16
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def scans_of(number: int) -> bytes:
    """A progressive JPEG whose last scan is repeated, its real 10 among them; a phone's video follows."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    assert content.count(b"\xff\xda") == 10
    return content[:last] + content[last:-2] * (number - 9) + b"\xff\xd9" + b"\xff\xda" * 500


def test_a_jpeg_of_endless_scans_or_segments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(scans_of(100))
    read_image(path)
    path.write_bytes(scans_of(101))
    with pytest.raises(ImageError, match="over 100 scans"):
        read_image(path)
    content = seeds.raster("JPEG", RGB)
    path.write_bytes(content[:2] + b"\xff\xe5\0\2" * 10_000 + content[2:])
    with pytest.raises(ImageError, match="over 10,000 segments"):
        read_image(path)


@pytest.mark.parametrize("offset", range(4))
def test_jpeg_markers_across_pieces_are_found(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tumorlens.readers.codestreams._PIECE", 37 + offset)
    check_jpeg(io.BytesIO(scans_of(100)))
    with pytest.raises(ImageError, match="over 100 scans"):
        check_jpeg(io.BytesIO(scans_of(101)))


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


def test_a_jpeg_of_endless_scans_in_dicom_is_not_decoded() -> None:
    jpeg = seeds.raster("JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    content = dicom(GREY, syntax=seeds.JPEG, encapsulated=[jpeg[:last] + jpeg[last:-2] * 100 + b"\xff\xd9"])
    assert "over 100 scans" in reason(read_bytes(content, "x"))


def test_a_codestream_larger_than_the_header_says_is_not_decoded() -> None:
    for syntax, mark, at in ((seeds.JPEG_2000, b"\xff\x4f\xff\x51", 8), (seeds.JPEG_LS, b"\xff\xf7", 5)):
        data = bytearray(dicom(DEEP, syntax=syntax))
        place = data.rfind(mark) + at
        size = struct.pack(">II", 60_000, 60_000) if syntax == seeds.JPEG_2000 else struct.pack(">HH", 60_000, 60_000)
        data[place : place + len(size)] = size
        assert "holds 60000x60000 pixels" in reason(read_bytes(bytes(data), "x"))


@pytest.mark.case(15)
def test_data_of_jpeg_ls_are_not_counted_as_segments() -> None:
    """A bit of 0 is stuffed after FF, so FF 00 to FF 7F are data."""
    jpeg = b"\xff\xd8\xff\xf7\0\x0b\x08\0\x20\0\x20\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\0\0"
    assert check_jpeg(io.BytesIO(jpeg + b"\xff\x7f\xff\x01" * 20_000 + b"\xff\xd9")) == (32, 32, 1)
    noise = np.random.default_rng(0).integers(0, 4096, (512, 512), dtype=np.uint16)
    assert noise.size
    found = list(read_bytes(dicom(noise, syntax=seeds.JPEG_LS, BitsStored=12, HighBit=11), "x"))
    assert [type(one).__name__ for one in found] == ["Slice"]
