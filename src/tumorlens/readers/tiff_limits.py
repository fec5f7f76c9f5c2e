"""The cost of a TIFF's tags, checked before Pillow makes objects of them (TIFF 6.0 section 2, and BigTIFF)."""

import io
from typing import BinaryIO, Literal

import numpy as np

from tumorlens.readers.codestreams import excessive_header
from tumorlens.readers.scaling import Values
from tumorlens.readers.types import ReadLimits

_BYTES = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8], np.float64)  # per value, by its type
_PLAIN = (1, 2, 7)  # types that Pillow keeps as bytes
_WIDTH, _HEIGHT, _SAMPLES, _STRIPS, _TILES = 256, 257, 277, 273, 324
_MOST_TAGS = 1_000  # per page; some 100 exist
_MOST_VALUES = 1_000_000  # per tag
_MOST_PARTS = 100_000  # strips or tiles per page: 5,000 x 5,000 in tiles of 16 x 16
_SHARED = 1_000  # bytes that each page may share with other pages


def check_tiff(file: BinaryIO, limits: ReadLimits) -> None:
    """Refuse a TIFF of too many tags, values, strips or tiles, or whose tags share their bytes.

    A file of another format passes. Parameters and errors as in `codestreams.check_jpeg`.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _walk(file, head, length, limits)
    file.seek(0)


def _walk(file: BinaryIO, head: bytes, length: int, limits: ReadLimits) -> None:
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    sign = "<" if order == "little" else ">"
    big = b"+" in head[2:4]
    counted, wide = (8, 8) if big else (2, 4)  # bytes of the number of tags, of an offset
    entry = np.dtype([("tag", f"{sign}u2"), ("type", f"{sign}u2"), ("count", f"{sign}u{wide}"),
                      ("value", "u1", wide)])  # fmt: skip

    def number(raw: bytes) -> int:
        return int.from_bytes(raw, order)

    at, total, seen = number(head[8:16] if big else head[4:8]), 0.0, set[int]()
    while at and at not in seen and len(seen) <= limits.frames:
        seen.add(at)
        file.seek(min(at, length))
        tags = number(file.read(counted))
        if tags > _MOST_TAGS:
            raise excessive_header("TIFF", f"over {_MOST_TAGS:,} tags")
        table = file.read(tags * entry.itemsize)
        whole = len(table) // entry.itemsize  # fewer if the file is cut off, which Pillow will report
        total += len(table) + _checked(np.frombuffer(table, entry, whole), order, wide, length)
        if total > 2 * length + _SHARED * len(seen):  # twice: one tag's length may be damaged
            raise excessive_header("TIFF", "more bytes of tags than the file has")
        at = number(file.read(wide))


def _checked(entries: Values, order: Literal["little", "big"], wide: int, length: int) -> float:
    """Check a page's tags; returns the bytes of values that lie elsewhere in the file."""
    if (entries["count"][~np.isin(entries["type"], _PLAIN)] > _MOST_VALUES).any():
        raise excessive_header("TIFF", f"over {_MOST_VALUES:,} values of a tag")

    def value(tag: int) -> int:
        found = entries[entries["tag"] == tag]
        if not len(found):
            return 1
        used = 2 if found["type"][-1] == 3 else wide  # bytes; short values come first
        return int.from_bytes(found["value"][-1].tobytes()[:used], order)

    width, height, samples = value(_WIDTH), value(_HEIGHT), min(value(_SAMPLES), 6)
    # Strips have at least a row, tiles at least 16 x 16 pixels; each colour may have its own.
    most = min(_MOST_PARTS, samples * (height + width + width * height // 256))
    if (entries["count"][np.isin(entries["tag"], (_STRIPS, _TILES))] > most).any():
        raise excessive_header("TIFF", f"over {most:,} strips or tiles of a page")
    sizes = _BYTES[np.minimum(entries["type"], len(_BYTES) - 1)] * entries["count"]
    return float(np.minimum(sizes[sizes > wide], length).sum())
