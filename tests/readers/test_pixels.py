"""Reading image files: the published preprocessing, and a reason for each bad file."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from tumorlens.core.errors import ImageError
from tumorlens.data.image_stats import measure_image
from tumorlens.readers.pixels import SIZE, read_image
from tumorlens.training.model import normalise


def noise(mode: str, size: tuple[int, int] = (300, 200)) -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "RGBA":
        values[..., 3] = 255
    return Image.fromarray(values.squeeze())


def _encoded(kind: str) -> bytes:
    content = io.BytesIO()
    noise("L").save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pixels_are_what_the_published_pipeline_feeds(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.png"
    noise(mode).save(path)
    published = transforms.Compose(
        [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    )
    with Image.open(path) as image:
        wanted = published(image.convert("RGB"))
    pixels, facts = read_image(path)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert (facts.width, facts.height, facts.mode) == (300, 200, mode)
    ours = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    assert float((ours - wanted).abs().max()) < 1e-6


@pytest.mark.parametrize("colour", [0, 1, 12])
@pytest.mark.parametrize("more", [{}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}])
def test_a_colour_jpeg_of_a_grey_picture_is_read_as_pillow_reads_it(tmp_path: Path, colour: int, more: dict) -> None:
    """Only luminance is decoded if there is no colour; with a little colour, everything is."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(20, 236, (301, 255, 1), dtype=np.uint8), 3, axis=2)
    pixels[40:90, 30:80, 0] += np.uint8(colour)
    path = tmp_path / "x.jpg"
    Image.fromarray(pixels).save(path, quality=90, **more)
    with Image.open(path) as image:
        wanted = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    pixels, facts = read_image(path)
    assert facts.mode == "RGB"
    np.testing.assert_array_equal(pixels, wanted)


def test_16_bit_greyscale_keeps_its_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    pixels, _ = read_image(tmp_path / "x.png")
    assert pixels.min() < 5
    assert pixels.max() > 250
    assert len(np.unique(pixels)) > 200  # clipping at 255 would leave a white image


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_bytes(tmp_path: Path) -> bytes:
    noise("RGB").save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


def test_each_bad_file_has_its_reason(tmp_path: Path) -> None:
    whole = jpeg_bytes(tmp_path)
    cases = {
        "empty.jpg": (b"", "empty"),
        "cut.jpg": (whole[: len(whole) // 2], "truncated"),
        "text.jpg": (b"This is a text file.\n" * 50, "not an image"),
        # Pillow would start Ghostscript for the first, and read the second, which no other reader here takes.
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n", "not an image"),
        "gif.png": (_encoded("GIF"), "not an image"),
        "huge.png": (png_of(30_000, 30_000), "900,000,000 pixels"),
        "bomb.png": (png_of(7_999, 7_999), "cannot be decoded"),
        "tiny.png": (png_of(2, 2), "2x2"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ImageError, match=reason) as caught:
            read_image(path)
        assert caught.value.cure
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "absent.png")


def test_pillow_says_nothing_beside_our_reason(tmp_path: Path) -> None:
    tiff = io.BytesIO()
    noise("RGB", (16, 16)).save(tiff, "TIFF")
    content = bytearray(tiff.getvalue())
    samples = content.find(struct.pack("<HH", 277, 3))  # SamplesPerPixel, a SHORT
    content[samples + 8 : samples + 10] = struct.pack("<H", 32256)
    path = tmp_path / "x.tif"
    path.write_bytes(content)
    code = f"from pathlib import Path; from tumorlens.readers.pixels import read_image; read_image(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # pytest's logging hides it
    assert "ImageError: not an image" in done.stderr
    assert "samples per pixel" not in done.stderr


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(jpeg_bytes(folder))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "x.jpg"
    path.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    with contextlib.suppress(ImageError):  # any other error fails the test
        assert read_image(path)[0].shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("mode", ["L", "grey RGB", "nearly grey RGB"])
def test_a_grey_picture_is_resized_as_its_three_channels_would_be(tmp_path: Path, mode: str) -> None:
    image = noise("L")
    if mode != "L":
        image = image.convert("RGB")
    if mode == "nearly grey RGB":
        image.putpixel((150, 100), (255, 0, 0))
    image.save(tmp_path / "x.png")
    wanted = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert np.array_equal(read_image(tmp_path / "x.png")[0], wanted)


def test_pixels_count_as_identical_however_a_file_holds_them(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    tinted = np.repeat(grey[..., None], 3, axis=2)
    tinted[3, 5, 0] ^= 1
    pictures = {
        "l.png": Image.fromarray(grey), "rgb.png": Image.fromarray(grey).convert("RGB"),
        "palette.png": Image.fromarray(grey).convert("P"), "turned.png": Image.fromarray(grey.T.copy()),
        "reshaped.png": Image.fromarray(grey.reshape(60, 40)), "tinted.png": Image.fromarray(tinted),
    }  # fmt: skip
    found = {}
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        found[name] = measure_image(tmp_path / name)[0].pixels
    assert found["l.png"] == found["rgb.png"] == found["palette.png"]
    assert len(set(found.values())) == 4
