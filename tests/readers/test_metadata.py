"""Metadata of JPEG and PNG: the orientation is applied once, and nothing else can lose or change the pixels."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from input_files import only, reason, seeds
from PIL import Image, ImageOps

from tumorlens.readers import read_bytes
from tumorlens.readers.pixels import decode

PICTURE = seeds.picture(90, 60)
PNG, JPEG = seeds.raster("PNG", PICTURE), seeds.raster("JPEG", PICTURE)
EXIF = b"Exif\0\0"


def exif(value: int, kind: str = "H", sign: str = "<") -> bytes:
    """An EXIF block with an orientation of the given type; other fields lie before and after it."""
    code = {"B": 1, "H": 3, "I": 4}[kind]
    fields = ((0x010F, 2, 4, b"abc\0"), (0x0112, code, 1, struct.pack(sign + kind, value).ljust(4, b"\0")),
              (0x8769, 4, 1, b"\xff\xff\xff\xff"))  # fmt: skip
    entries = b"".join(struct.pack(f"{sign}HHI", *field[:3]) + field[3] for field in fields)
    return {"<": b"II*\0", ">": b"MM\0*"}[sign] + struct.pack(f"{sign}IH", 8, 3) + entries + bytes(4)


def chunk(name: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_with(*chunks: bytes, at: int = 33) -> bytes:
    """The picture with these chunks after its header, or before the last chunk if `at` is negative."""
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """The picture with these segments after the first marker."""
    parts = (bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments)
    return JPEG[:2] + b"".join(parts) + JPEG[2:]


def pixels(content: bytes) -> np.ndarray:
    return only(read_bytes(content, "x")).pixels


@pytest.mark.case(3)
@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_orientation_is_applied_once(tmp_path: Path, kind: str, options: dict[str, object], value: int) -> None:
    stored = io.BytesIO()
    block = Image.Exif()
    block[0x0112] = value
    Image.fromarray(PICTURE).save(stored, kind, exif=block, **options)
    with Image.open(io.BytesIO(stored.getvalue())) as image:
        image.load()
        upright = image if kind == "TIFF" else ImageOps.exif_transpose(image)  # Pillow turns a TIFF on loading
    (tmp_path / "x").write_bytes(stored.getvalue())
    found, _ = decode(tmp_path / "x")
    assert found.size == ((90, 60) if value >= 5 else (60, 90)), "rows and columns change places from 5 on"
    assert np.array_equal(np.asarray(found.convert("L")), np.asarray(upright.convert("L")))
    wanted = np.asarray(upright.convert("L").resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels(stored.getvalue())[..., 0], wanted)


@pytest.mark.case(3)
@pytest.mark.parametrize("sign", "<>")
@pytest.mark.parametrize("kind", "BHI")
def test_orientation_is_read_whatever_its_type(kind: str, sign: str) -> None:
    turned = pixels(seeds.raster("PNG", PICTURE[::-1, ::-1]))
    block = exif(3, kind, sign)
    assert np.array_equal(pixels(png_with(chunk(b"eXIf", block))), turned)
    assert np.array_equal(pixels(png_with(chunk(b"eXIf", block), at=-12)), turned), "after the pixels"
    assert np.array_equal(pixels(jpeg_with((0xE1, EXIF + block))), pixels(JPEG)[::-1, ::-1])


@pytest.mark.case(3)
@pytest.mark.parametrize(
    "block",
    [
        b"", b"nothing of EXIF", bytes(40), exif(0), exif(9), exif(3)[:20], exif(70_003, "I"),
        exif(3).replace(b"\x08\0\0\0\x03\0", b"\xff\xff\xff\xff\x03\0"), b"II*\0" + struct.pack("<IH", 8, 65535),
    ],
)  # fmt: skip
def test_a_broken_exif_block_counts_as_none(block: bytes) -> None:
    assert np.array_equal(pixels(png_with(chunk(b"eXIf", block))), pixels(PNG))
    assert np.array_equal(pixels(jpeg_with((0xE1, EXIF + block))), pixels(JPEG))
    assert np.array_equal(
        pixels(seeds.raster("WEBP", PICTURE, exif=EXIF + block)), pixels(seeds.raster("WEBP", PICTURE))
    )


BOMB = zlib.compress(bytes(64 << 20), 9)  # 64 kB of 64 MB


@pytest.mark.case(14)
@pytest.mark.parametrize("at", [33, -12], ids=["before", "after"])
@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"Comment\0\0" + BOMB)],
        [chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)],
        [chunk(b"iCCP", b"icc\0\0" + BOMB)],
        [chunk(b"tEXt", b"Comment\0" + b"a" * 1_000_000)] * 70,
        [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))] * 70,
        [chunk(b"iCCP", b"icc\0\0cut off")],
        [chunk(b"iCCP", b"icc\0\7" + BOMB)],
        [chunk(b"tEXt", b"Comment\0abc", checksum=7)],
        [chunk(b"eXIf", exif(3), checksum=7)],
        [chunk(b"tRNS", b"\0\x50", checksum=7)],
        [chunk(b"gAMA", b""), chunk(b"cHRM", b"\1"), chunk(b"sRGB", b""), chunk(b"pHYs", b""), chunk(b"acTL", b"")],
        [chunk(b"prVt", b"private")],
    ],
    ids=["zTXt", "iTXt", "iCCP", "much text", "much packed text", "cut profile", "unknown method", "text checksum",
         "EXIF checksum", "transparency checksum", "short chunks", "private"],
)  # fmt: skip
def test_no_ancillary_chunk_of_a_png_loses_the_pixels(chunks: list[bytes], at: int) -> None:
    content = png_with(*chunks, at=at)
    tracemalloc.start()
    try:
        assert np.array_equal(pixels(content), pixels(PNG))
        assert tracemalloc.get_traced_memory()[1] < 2 * len(content) + 4_000_000
    finally:
        tracemalloc.stop()


def test_a_png_of_too_many_chunks_is_refused() -> None:
    assert "over 100,000 chunks" in reason(read_bytes(png_with(chunk(b"tEXt", b"") * 100_001), "x"))


@pytest.mark.case(14)
@pytest.mark.parametrize(
    "segments",
    [
        [(0xE0, b"JFIF\0")],
        [(0xEE, b"Adobe\0")],
        [(0xEE, b"Adobe")],
        [(0xE2, b"ICC_PROFILE\0\7\2cut off")],
        [(0xE2, b"MPF\0II*\0junk")],
        [(0xED, b"Photoshop 3.0\x008BIM\4\4")],
        [(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='3'>")],
        [(0xE1, EXIF + b"MM")],
        [(0xE5, bytes(range(256))), (0xFE, b"a comment")],
        [(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))] * 100,
        [(0xE1, EXIF + exif(1)), (0xFE, b"comment\xff")],
    ],
    ids=["JFIF", "Adobe", "shorter Adobe", "ICC", "MPF", "Photoshop", "XMP", "EXIF", "junk", "much", "comment"],
)
def test_no_application_segment_of_a_jpeg_loses_the_pixels(segments: list[tuple[int, bytes]]) -> None:
    assert np.array_equal(pixels(jpeg_with(*segments)), pixels(JPEG))


@pytest.mark.parametrize("junk", [b"\4\6\0\0", b"\xff\xff\xff", b"\xff\0\xff\0\7"])
def test_what_lies_between_segments_of_a_jpeg_is_skipped(junk: bytes) -> None:
    comment = b"\xff\xfe\0\4ab"
    assert np.array_equal(pixels(JPEG[:2] + comment + junk + comment + junk + JPEG[2:]), pixels(JPEG))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_segments_that_determine_the_colours_are_kept(mode: str) -> None:
    image = Image.fromarray(np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], axis=-1)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, comment=b"to be removed", exif=EXIF + exif(1), keep_rgb=mode == "RGB")
    with Image.open(io.BytesIO(file.getvalue())) as plain:
        wanted = np.asarray(plain.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(pixels(file.getvalue()), wanted)
