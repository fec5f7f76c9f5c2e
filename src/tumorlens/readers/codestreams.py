"""What a JPEG, JPEG-LS or JPEG 2000 codestream says of its own size, read before a decoder allocates it.

Markers as in ITU-T T.81 (JPEG, table B.1), T.87 (JPEG-LS, SOF55) and T.800 (JPEG 2000, A.5.1).
"""

from __future__ import annotations

import io
import struct

from tumorlens.core.errors import ImageError
from tumorlens.readers.pixels import check_jpeg

_SOI, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"
_NO_FRAME = frozenset([0xC4, 0xC8, 0xCC])  # tables that share the range of the frame headers
_MAX_TILES = 4096
_CURE = "Export it again."


def check_codestream(codestream: bytes, rows: int, columns: int) -> None:
    """Refuse a frame that would decode to another size than the file's header says.

    Raises
    ------
    ImageError
        Another size, more than 4 components, absurdly many tiles or scans, or no size at all.
    """
    if codestream.startswith(_SOI):
        check_jpeg(io.BytesIO(codestream))
        width, height, components, tiles = *_jpeg(codestream), 1
    else:
        width, height, components, tiles = _jpeg2000(codestream)
    if (height, width) != (rows, columns):
        raise ImageError(f"holds {width}x{height} pixels, but its header says {columns}x{rows}", cure=_CURE)
    if not 1 <= components <= 4 or tiles > _MAX_TILES:
        raise ImageError(f"has {components} components in {tiles} tiles, which no image needs", cure=_CURE)


def _jpeg(codestream: bytes) -> tuple[int, int, int]:
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
    raise _sizeless()


def _jpeg2000(codestream: bytes) -> tuple[int, int, int, int]:
    at = codestream.find(_J2K, 0, 4096)  # some wrap it in a JP2 file
    if at < 0 or at + 42 > len(codestream):
        raise _sizeless()
    # After the markers: length, capabilities, then these.
    x, y, x0, y0, tile_x, tile_y, _tile_x0, _tile_y0 = struct.unpack(">8I", codestream[at + 8 : at + 40])
    components = int.from_bytes(codestream[at + 40 : at + 42], "big")
    if min(tile_x, tile_y) < 1:
        raise _sizeless()
    return x - x0, y - y0, components, -(-x // tile_x) * -(-y // tile_y)


def _sizeless() -> ImageError:
    return ImageError("has no readable size of its own", cure=_CURE)
