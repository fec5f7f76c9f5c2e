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
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of JPEG; 0 is stuffed into data, D0 to D7 restart within it
_MAX_SEGMENTS, _MAX_SCANS = 10_000, 100
_PIECE = 1 << 14  # bytes
_NO_FRAME = frozenset([0xC4, 0xC8, 0xCC])  # tables whose markers lie among those of frame headers
_MAX_TILES = 4096
_CURE = "Export it again."


def check_jpeg(file: BinaryIO) -> None:
    """Refuse a JPEG of more segments or scans than any picture needs; a file of another format passes.

    A scan of a progressive JPEG takes some 40 bytes, and as long to decode as the picture is large.

    Parameters
    ----------
    file
        Seekable, at its start, where it is left.

    Raises
    ------
    ImageError
        The message is a reason that reads well after the file's name.
    """
    jpeg = file.read(2) == _SOI
    at, segments, scans = 2, 0, 0
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
        if marker >= 0xC0 and marker not in (0xD8, 0xD9):  # the others have no content
            file.seek(at)
            at += max(2, int.from_bytes(file.read(2), "big"))
    file.seek(0)


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
    if codestream.startswith(_SOI):
        check_jpeg(io.BytesIO(codestream))
        width, height, components, tiles = *_jpeg_size(codestream), 1
    else:
        width, height, components, tiles = _jpeg2000_size(codestream)
    if (height, width) != (rows, columns):
        raise ImageError(f"holds {width}x{height} pixels, but its header says {columns}x{rows}", cure=_CURE)
    if not 1 <= components <= 4 or tiles > _MAX_TILES:
        raise ImageError(f"has {components} components in {tiles} tiles, which no image needs", cure=_CURE)


def _jpeg_size(codestream: bytes) -> tuple[int, int, int]:
    """Width, height and components of the first frame header."""
    at = 2
    while at + 10 <= len(codestream) and codestream[at] == 0xFF:
        marker = codestream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME):
            height, width, components = struct.unpack(">HHB", codestream[at + 5 : at + 10])
            return width, height, components
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            at += 2
        else:
            at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    raise _no_size()


def _jpeg2000_size(codestream: bytes) -> tuple[int, int, int, int]:
    """Width, height, components and tiles of the SIZ marker segment."""
    at = codestream.find(_J2K, 0, 4096)  # some wrap it in a JP2 file
    if at < 0 or at + 42 > len(codestream):
        raise _no_size()
    # After the markers: length, capabilities, then these.
    x, y, x0, y0, tile_x, tile_y, _tile_x0, _tile_y0 = struct.unpack(">8I", codestream[at + 8 : at + 40])
    components = int.from_bytes(codestream[at + 40 : at + 42], "big")
    if min(tile_x, tile_y) < 1:
        raise _no_size()
    return x - x0, y - y0, components, -(-x // tile_x) * -(-y // tile_y)


def _no_size() -> ImageError:
    return ImageError("has no readable size of its own", cure=_CURE)
