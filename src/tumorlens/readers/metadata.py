"""A JPEG or PNG without its metadata, and the orientation that the metadata records.

Text, colour profiles, thumbnails and EXIF do not change the pixels that we read, but a decoder that fails on them, or
inflates them, loses the picture. So they are removed before it sees the file: only what determines pixels is left.
The orientation is the only EXIF field that counts; a broken EXIF block counts as none.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from tumorlens.readers.codestreams import excessive_header

_PNG = b"\x89PNG\r\n\x1a\n"
_ANCILLARY = 0x20  # of the first letter of a PNG chunk's name: a decoder may skip it
_MARKER = re.compile(rb"\xff[^\0\xff]")  # of a JPEG
_EXIF = b"Exif\0\0"
_MOST_PIECES = 100_000  # chunks of a PNG, of which 25 million pixels in pieces of 8 kB take 10,000; segments of a JPEG
_LARGEST = 400_000_000  # bytes of a file that is copied
_ORIENTATION = 0x0112
_WIDTHS = {1: 1, 3: 2, 4: 4}  # bytes of a whole number, by its type in TIFF

Piece = tuple[int, int]  # start and end in the file


def without_metadata(file: BinaryIO) -> tuple[BinaryIO, bytes]:
    """The same picture without what does not determine its pixels, and its EXIF block, empty if it has none.

    Parameters
    ----------
    file
        Seekable. A format other than JPEG and PNG is returned as it is.

    Raises
    ------
    ImageError
        A PNG of more than 100,000 chunks.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(8)
    exif, kept = b"", [(0, length)]
    if length <= _LARGEST and head[:2] == b"\xff\xd8":
        kept, exif = _jpeg_pieces(file, length)
    elif length <= _LARGEST and head == _PNG:
        kept, exif = _png_pieces(file, length)
    if sum(end - start for start, end in kept) < length:
        file = io.BytesIO(b"".join(_bytes(file, *piece) for piece in kept))
    file.seek(0)
    return file, exif


def orientation(exif: bytes) -> int:
    """The orientation that an EXIF block records, 1 to 8; 1, upright, if it records none or is broken."""
    exif = exif.removeprefix(_EXIF)
    sign = {b"II": "<", b"MM": ">"}.get(exif[:2], "<")
    try:
        (at,) = struct.unpack_from(f"{sign}I", exif, 4)
        (fields,) = struct.unpack_from(f"{sign}H", exif, at)
        for field in range(at + 2, at + 2 + 12 * fields, 12):
            tag, kind = struct.unpack_from(f"{sign}HH", exif, field)
            if tag == _ORIENTATION:
                value = exif[field + 8 :][: _WIDTHS.get(kind, 0)]
                found = int.from_bytes(value, "little" if sign == "<" else "big")
                return found if 1 <= found <= 8 else 1
    except struct.error:  # cut off
        pass
    return 1


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _jpeg_pieces(file: BinaryIO, length: int) -> tuple[list[Piece], bytes]:
    """All but comments and application segments; JFIF's and Adobe's stay, as they determine the colours."""
    kept, exif, at = [(0, 2)], b"", 2
    for _ in range(_MOST_PIECES):
        found = _MARKER.search(_bytes(file, at, at + 65_536))
        at += found.start() if found else 0  # a decoder skips what lies between segments, too
        head = _bytes(file, at, at + 16)
        if found is None or len(head) < 16 or head[1] in (0xDA, 0xD9):  # the scans begin, or it is cut off
            break
        kind, content, end = head[1], head[4:], at + 2 + max(2, int.from_bytes(head[2:4], "big"))
        if kind == 0xE1 and content.startswith(_EXIF):
            exif = exif or _bytes(file, at + 4, end)
        jfif = kind == 0xE0 and content.startswith(b"JFIF\0") and end - at >= 18
        adobe = kind == 0xEE and content.startswith(b"Adobe") and end - at >= 16
        if jfif or adobe or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append((at, end))
        at = end
    return [*kept, (at, length)], exif


def _png_pieces(file: BinaryIO, length: int) -> tuple[list[Piece], bytes]:
    """The critical chunks, and transparency; the checksum of what a decoder may skip decides whether it counts."""
    kept, exif = [(0, 8)], b""
    for name, at, end in _png_chunks(file, length):
        if not name[0] & _ANCILLARY:
            kept.append((at, end))
        elif name in (b"tRNS", b"eXIf"):
            content = _bytes(file, at + 4, end)
            if zlib.crc32(content[:-4]) == int.from_bytes(content[-4:], "big"):
                kept += [(at, end)] if name == b"tRNS" else []
                exif = exif or (content[4:-4] if name == b"eXIf" else b"")
    return kept, exif


def _png_chunks(file: BinaryIO, length: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each chunk; what is cut off belongs to the last one."""
    at = 8
    for _ in range(_MOST_PIECES):
        head = _bytes(file, at, at + 8)
        if len(head) < 8:
            return
        end = at + 12 + int.from_bytes(head[:4], "big")
        yield head[4:], at, min(end, length)
        at = end
        if head[4:] == b"IEND":
            return
    raise excessive_header("PNG", f"over {_MOST_PIECES:,} chunks")
