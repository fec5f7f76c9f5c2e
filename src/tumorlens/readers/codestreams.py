"""The size and cost that a JPEG, JPEG-LS or JPEG 2000 codestream declares, checked before a decoder allocates memory.

Markers as in ITU-T T.81 (JPEG, table B.1), T.87 (JPEG-LS, SOF55) and T.800 (JPEG 2000, A.5.1).
"""

from __future__ import annotations

import io
import re
import struct
from typing import BinaryIO

from tumorlens.core.errors import ImageError

_SOI, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"
# Of segments. In scan data JPEG stuffs 0 after FF, JPEG-LS a bit of 0 (so 00 to 7F follow); D0 to D7 restart it.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_MAX_SEGMENTS, _MAX_SCANS = 10_000, 100
_PIECE = 1 << 14  # bytes
# Markers of frame headers: SOF0 to SOF15 without the tables between them, and SOF55.
_FRAMES = frozenset([*range(0xC0, 0xD0), 0xF7]) - {0xC4, 0xC8, 0xCC}
_MAX_TILES = 4096
_CURE = "Export it again."


def check_jpeg(file: BinaryIO) -> tuple[int, int, int] | None:
    """Width, height and components of a JPEG's or JPEG-LS file's first frame; None if it has none, or is no JPEG.

    A scan of a progressive JPEG takes some 40 bytes, and as long to decode as the picture is large.

    Parameters
    ----------
    file
        Seekable, at its start, where it is left.

    Raises
    ------
    ImageError
        It has more segments or scans than any picture needs. The message reads well after the file's name.
    """
    jpeg = file.read(2) == _SOI
    at, segments, scans, size = 2, 0, 0, None
    while jpeg:
        file.seek(at)
        piece = file.read(_PIECE)
        found = _MARKER.search(piece)
        if found is None:
            if len(piece) < 2:  # cut off: the decoder will report it
                break
            at += len(piece) - 1  # a marker may lie across two pieces
            continue
        at += found.end()
        marker = piece[found.end() - 1]
        if marker == 0xD9 and scans:  # what follows, such as a phone's video, is not decoded
            break
        segments, scans = segments + 1, scans + (marker == 0xDA)
        if segments > _MAX_SEGMENTS or scans > _MAX_SCANS:
            what = f"over {_MAX_SCANS} scans" if scans > _MAX_SCANS else f"over {_MAX_SEGMENTS:,} segments"
            raise excessive_header("JPEG", what)
        if marker not in (0xD8, 0xD9):  # which have no content
            file.seek(at)
            content = file.read(8)  # length, bits, then the size of a frame header
            if size is None and len(content) == 8 and marker in _FRAMES:
                height, width, components = struct.unpack(">HHB", content[3:])
                size = width, height, components
            at += max(2, int.from_bytes(content[:2], "big"))
    file.seek(0)
    return size


def excessive_header(kind: str, what: str) -> ImageError:
    """The error for a file whose headers ask for more than any picture does."""
    return ImageError(f"a {kind} of {what}, which no picture needs", cure="Save it again from a viewer.")


def check_codestream(codestream: bytes, rows: int, columns: int) -> None:
    """Refuse a frame that would decode to another size than the DICOM header declares.

    Raises
    ------
    ImageError
        Another size, more than 4 components, over 4,096 tiles or 100 scans, or no size at all.
    """
    jpeg = codestream.startswith(_SOI)
    size = (*found, 1) if jpeg and (found := check_jpeg(io.BytesIO(codestream))) else _jpeg2000_size(codestream)
    if size is None:
        raise ImageError("has no readable size of its own", cure=_CURE)
    width, height, components, tiles = size
    if (height, width) != (rows, columns):
        raise ImageError(f"holds {width}x{height} pixels, but its header says {columns}x{rows}", cure=_CURE)
    if not 1 <= components <= 4 or tiles > _MAX_TILES:
        raise ImageError(f"has {components} components in {tiles} tiles, which no image needs", cure=_CURE)


def _jpeg2000_size(codestream: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, components and tiles of the SIZ marker segment."""
    at = codestream.find(_J2K, 0, 4096)  # some wrap it in a JP2 file
    if at < 0 or at + 42 > len(codestream):
        return None
    # After the markers: length, capabilities, then these.
    x, y, x0, y0, tile_x, tile_y, _, _, components = struct.unpack(">8IH", codestream[at + 8 : at + 42])
    return (x - x0, y - y0, components, -(-x // tile_x) * -(-y // tile_y)) if tile_x and tile_y else None
