"""Deep and transparent pictures: scaled by percentiles, and laid on black."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from input_files import only, reason, seeds
from PIL import Image

from tumorlens.readers import read_bytes

png16, tiff16 = seeds.png16, seeds.tiff16
PICTURE = seeds.picture(90, 60)
DEEP = PICTURE.astype(np.uint16) * 16  # 12 of 16 bits
RGB = np.stack([DEEP, DEEP[::-1], 4095 - DEEP], axis=-1)
ALPHA = np.full(DEEP.shape, 65535, np.uint16)
ALPHA[:30] = 0


def pixels(content: bytes) -> np.ndarray:
    return only(read_bytes(content, "x")).pixels


def wanted(eight_bits: np.ndarray) -> np.ndarray:
    return pixels(seeds.raster("PNG", eight_bits))


def scaled(values: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    low, high = np.percentile(values if seen is None else seen, (0.5, 99.5))
    return np.rint(np.clip((values - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


@pytest.mark.case(21)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_hot_pixel_does_not_blacken_a_16_bit_picture(kind: str) -> None:
    hot = DEEP.copy()
    hot[5, 7] = 65535
    assert np.array_equal(pixels(seeds.raster(kind, hot)), wanted(scaled(hot)))
    assert pixels(seeds.raster(kind, hot)).mean() > 80


@pytest.mark.case(21)
@pytest.mark.parametrize("dtype", ["u2", ">u2", "i4", "f4"])
def test_every_deep_grey_is_scaled_by_percentiles(dtype: str) -> None:
    deep = DEEP.astype(dtype)
    assert np.array_equal(pixels(seeds.raster("TIFF", deep)), wanted(scaled(DEEP)))
    constant = np.full((40, 40), 700, dtype)
    assert pixels(seeds.raster("TIFF", constant)).max() == 0


@pytest.mark.case(21)
def test_values_that_are_no_numbers_are_black_and_set_no_contrast() -> None:
    deep = DEEP.astype(np.float32)
    deep[:3], deep[3:6], deep[6:9] = np.nan, np.inf, -np.inf
    expected = scaled(np.nan_to_num(deep, nan=-1e9, posinf=1e9, neginf=-1e9), seen=DEEP[9:])
    assert np.array_equal(pixels(seeds.raster("TIFF", deep)), wanted(expected))
    nothing = np.full((40, 40), np.nan, np.float32)
    assert "no numbers" in reason(read_bytes(seeds.raster("TIFF", nothing), "x"))


@pytest.mark.case(21)
@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "<", ">", "< planar", "> planar", "< packed", "> packed"])
def test_colours_of_16_bits_keep_them(kind: str, alpha: bool, hot: bool) -> None:
    colours = RGB.copy()
    if hot:
        colours[50, 7] = 65535
    stored = np.dstack([colours, ALPHA]) if alpha else colours
    content = (
        png16(stored) if kind == "PNG" else tiff16(stored, kind[0], planar="planar" in kind, packed="packed" in kind)
    )
    expected = scaled(colours, seen=colours[30:] if alpha else None)
    if alpha:
        expected[:30] = 0
    assert np.array_equal(pixels(content), wanted(expected))


@pytest.mark.case(21)
def test_grey_with_alpha_and_a_transparent_value_of_16_bits() -> None:
    expected = scaled(DEEP, seen=DEEP[30:])
    expected[:30] = 0
    assert np.array_equal(pixels(png16(np.dstack([DEEP, ALPHA]))), wanted(expected))
    value = int(DEEP[80, 50])
    for stored, clear in ((DEEP[..., None], struct.pack(">H", value)), (RGB, struct.pack(">3H", *RGB[80, 50]))):
        seen = (stored != stored[80, 50]).any(axis=2)
        expected = scaled(stored, seen=stored[seen])
        expected[~seen] = 0
        assert np.array_equal(pixels(png16(stored, clear)), wanted(expected.squeeze()))


@pytest.mark.case(21)
@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("PNG", mode) for mode in ("RGBA", "LA", "P", "L", "RGB")), ("WEBP", "RGBA"), ("TIFF", "RGBA"), ("TIFF", "LA")],
)
def test_what_is_transparent_lies_on_black(kind: str, mode: str) -> None:
    picture = np.where(np.indices((60, 60))[0] < 20, 255, 90).astype(np.uint8)  # white where it is transparent
    opacity = np.where(picture == 255, 0, 255).astype(np.uint8)
    options = {}
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(picture).convert(mode)
        image.putalpha(Image.fromarray(opacity))
    else:
        image = Image.fromarray(picture).convert(mode)
        options["transparency"] = (255, 255, 255) if mode == "RGB" else 255
    file = io.BytesIO()
    image.save(file, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(file.getvalue()), wanted(np.where(opacity == 0, 0, 90).astype(np.uint8)))


@pytest.mark.case(21)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_opacity_of_nowhere_counts_as_unused(dtype: type) -> None:
    rgb = RGB.astype(dtype)
    stored = np.dstack([rgb, np.zeros(rgb.shape[:2], dtype)])
    content = seeds.raster("PNG", stored) if dtype == np.uint8 else png16(stored)
    assert np.array_equal(pixels(content), wanted(rgb if dtype == np.uint8 else scaled(RGB)))


@pytest.mark.case(21)
def test_half_transparent_is_half_as_bright() -> None:
    half = np.dstack([np.full((40, 40, 3), 200, np.uint8), np.full((40, 40), 128, np.uint8)])
    assert set(np.unique(pixels(seeds.raster("PNG", half)))) == {100}
