"""What parsing a DICOM header may cost: its items and its long elements, refused before pydicom makes objects of them.

An empty item of 8 bytes takes pydicom 700 bytes and 30 µs, a number as text of 2 bytes takes 200.
"""

from __future__ import annotations

from typing import Any

from tumorlens.core.errors import ImageError
from tumorlens.readers.types import ReadLimits

_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # the tag of an item, little and big endian
_LONG = frozenset(["OW", "US or OW", "OV"])  # tables; all other elements that are looked at are short
_CURE = "Export it again."


class ItemCounter:
    """Counts sequence items, and fragments of compressed pixels, in a file that comes in pieces."""

    def __init__(self, stored: int, limits: ReadLimits) -> None:
        # An enhanced file has some 25 items a frame, of over 100 bytes with what is in them and with its pixels.
        self._most = 10_000 + min(stored // 100, 40 * limits.frames)
        self._found = 0
        self._tail = b""

    def add(self, piece: bytes) -> None:
        """Count on in the next piece.

        Raises
        ------
        ImageError
            There are more than the file's size and the limit of frames explain.
        """
        joined = self._tail + piece
        self._found += sum(joined.count(tag) for tag in _ITEMS)
        self._tail = joined[-3:]
        if self._found > self._most:
            raise ImageError(f"has over {self._most:,} items in its header, which no image needs", cure=_CURE)


def check_length(element: Any) -> None:
    """Refuse an element that is longer than its kind ever is, before pydicom makes numbers of it.

    Parameters
    ----------
    element
        One that is looked at by name, as pydicom holds it; one that is no longer raw passes.

    Raises
    ------
    ImageError
        It is too long.
    """
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import RawDataElement

    if not isinstance(element, RawDataElement):
        return
    kind = dictionary_VR(element.tag)
    if kind == "SQ" and element.VR in (None, "SQ", "UN"):  # its items are counted
        return
    most = 1 << 20 if kind in _LONG else 1 << 16
    if len(element.value or b"") > most:
        raise ImageError(f"has over {most:,} bytes in an element that is short in every image", cure=_CURE)
