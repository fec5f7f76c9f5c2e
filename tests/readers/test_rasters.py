"""JPEG, PNG, TIFF, BMP and WebP: the pixels that the study sees, and the pages of a TIFF."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from input_files import only, reason, seeds, slices
from PIL import Image

from tumorlens.readers import ReadLimits, Slice, Unreadable, read_bytes, read_inputs
from tumorlens.readers.pixels import read_image

PICTURE = seeds.picture(90, 60)
RGB = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], axis=-1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("pixels", [PICTURE, RGB], ids=["grey", "colour"])
def test_pictures_are_what_the_study_sees_whatever_their_name(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    path = tmp_path / "wrong.dcm"
    path.write_bytes(seeds.raster(kind, pixels))
    found = only(read_inputs([str(path)]))
    assert np.array_equal(found.pixels, read_image(path)[0])
    assert (found.source, found.index, found.count, found.series) == (str(path), None, None, None)
    assert found.metadata == {"format": kind, "width": 60, "height": 90}


def test_pages_of_a_tiff_are_a_series() -> None:
    pages = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    content = seeds.raster("TIFF", PICTURE, save_all=True, append_images=pages)
    found = slices(read_bytes(content, "x"))
    assert [(s.index, s.count, s.series) for s in found] == [(i, 3, "series-1") for i in range(3)]
    assert np.array_equal(found[1].pixels, found[0].pixels)
    assert not np.array_equal(found[2].pixels, found[0].pixels)
    assert "more pages than the limit of 2" in reason(read_bytes(content, "x", limits=ReadLimits(frames=2)))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_deep_tiff_whose_white_is_zero_is_not_shown_inverted(dtype: type) -> None:
    deep = PICTURE.astype(dtype) * 100
    content = seeds.raster("TIFF", deep)
    tag = struct.pack("<HHIH", 262, 3, 1, 1)
    assert content.count(tag) == 1
    inverted = content.replace(tag, tag[:-2] + b"\0\0")
    plain = only(read_bytes(seeds.raster("TIFF", deep.max() - deep + deep.min()), "x")).pixels
    assert np.array_equal(only(read_bytes(inverted, "x")).pixels, plain)


def test_a_damaged_page_does_not_stop_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray(PICTURE)] * 2
    content = bytearray(seeds.raster("TIFF", PICTURE, compression="tiff_lzw", save_all=True, append_images=pages))
    start = 8  # of the first page's LZW codes
    content[start : start + 200] = b"\xff" * 200
    found = list(read_bytes(bytes(content), "x"))
    assert [(type(one), one.index, one.series) for one in found] == [
        (Unreadable, 0, "series-1"), (Slice, 1, "series-1"), (Slice, 2, "series-1"),
    ]  # fmt: skip
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") <= 1  # libtiff's own line
