"""One file's content → slices: which format it is, told by its first bytes and never by its name."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from tumorlens.core.errors import ImageError
from tumorlens.core.text import shown
from tumorlens.readers.dicom import is_dicom, read_dicom
from tumorlens.readers.nifti import HEADER, is_nifti, read_nifti
from tumorlens.readers.rasters import read_raster
from tumorlens.readers.types import (
    Limits,
    Plane,
    SeriesNames,
    Slice,
    Unreadable,
)

HIDDEN = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})  # beside names that start with a dot
_CHUNK = 1 << 18  # bytes
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_RASTERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ = "JPEG, PNG, TIFF, BMP, WebP, DICOM, NIfTI and zips of them"
_ENTRY_BYTES = 300  # of a zip's list of files: 46 and a name
_TAIL = 22 + 65_535 + 76  # bytes of a zip's end record with the longest comment, and of the records for zip64
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError)


def read_stream(
    stream: BinaryIO, source: str, plane: Plane, limits: Limits, names: SeriesNames, *, in_zip: bool = False
) -> Iterator[Slice | Unreadable]:
    """Everything in one file; what cannot be read is an Unreadable.

    Parameters
    ----------
    stream
        Seekable, at its start.
    in_zip
        Whether it comes out of a zip; a zip in a zip is not opened.
    """
    try:
        head = stream.read(HEADER)
        stream.seek(0)
        if head.startswith(ZIP):
            if in_zip:
                raise ImageError("a zip inside a zip", cure="Unpack the outer one and name the folder.")
            yield from _read_zip(stream, source, plane, limits, names)
        elif is_dicom(head):  # before TIFF, whose mark may stand in a DICOM file's preamble
            yield from read_dicom(stream, source, limits, names)
        elif head.startswith(b"\x1f\x8b") or is_nifti(head):
            yield from read_nifti(stream, source, plane, limits, names, packed=head.startswith(b"\x1f\x8b"))
        elif is_raster(head):
            yield from read_raster(stream, source, limits, names)
        elif not head:
            raise ImageError("empty file (0 bytes)", cure="Download or copy it again.")
        else:
            raise ImageError("of no format that is read", cure=f"These are read: {_READ}.")
    except ImageError as error:
        yield Unreadable(source, None, error.what, error.cure)
    except OSError as error:
        yield Unreadable(source, None, f"cannot be read ({error.strerror or 'input/output error'})", "Copy it again.")


def is_raster(head: bytes) -> bool:
    """Whether a file that begins so is a plain picture: JPEG, PNG, BMP, TIFF or WebP."""
    return head.startswith(_RASTERS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def zip_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in it, without hidden ones."""
    # Not is_dir(), which fails on an entry without a name.
    return [i for i in archive.infolist() if i.filename[-1:] != "/" and not any(map(_hidden, _parts(i.filename)))]


def _read_zip(
    stream: BinaryIO, source: str, plane: Plane, limits: Limits, names: SeriesNames
) -> Iterator[Slice | Unreadable]:
    most = limits.entries * _ENTRY_BYTES
    if (table := _table_bytes(stream)) > most:  # zipfile would hold all of it before it tells how many files there are
        raise ImageError(f"a zip whose list of files has {table:,} bytes, over the limit of {most:,}", cure="Split it.")
    try:
        archive = zipfile.ZipFile(stream)
    except _DAMAGED:
        raise ImageError(
            "a damaged zip: its table of contents cannot be read", cure="Download or copy it again."
        ) from None
    with archive:
        entries = zip_entries(archive)
        if len(entries) > limits.entries:
            raise ImageError(f"a zip of {len(entries):,} files, over the limit of {limits.entries:,}", cure="Split it.")
        if not entries:
            raise ImageError("a zip without files", cure="Leave it out.")
        for info in entries:
            name = shown(f"{source}/{'/'.join(_parts(info.filename))}")
            try:
                content = _entry(archive, info, limits)
            except ImageError as error:
                yield Unreadable(name, None, error.what, error.cure)
                continue
            yield from read_stream(io.BytesIO(content), name, plane, limits, names, in_zip=True)


def _table_bytes(stream: BinaryIO) -> int:
    """Size of a zip's central directory by its end record (APPNOTE 4.3.14 to 4.3.16); 0 where there is none."""
    at = stream.tell()
    length = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, length - _TAIL))
    tail = stream.read(_TAIL)
    stream.seek(at)
    # As zipfile looks for it: without a comment first.
    plain = tail[-22:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")
    found = len(tail) - 22 if plain else tail.rfind(b"PK\5\6")
    large = tail[max(0, found - 76) : max(0, found - 20)]  # the zip64 record, if there is one
    size = int.from_bytes(large[40:48], "little") if large.startswith(b"PK\6\6") else 0
    return max(size, int.from_bytes(tail[found + 12 : found + 16], "little")) if found >= 0 else 0


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> bytes:
    """Content of an entry, refused by what the archive says of it before a byte is inflated."""
    unpack = "Unpack the zip yourself, look at it, and name the folder."
    if info.flag_bits & 0x1:
        raise ImageError("encrypted", cure="Unpack the zip with its password and name the folder.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"packed by method {info.compress_type} of zip; stored and deflated are read", cure=unpack)
    if info.file_size > limits.bytes:
        raise ImageError(f"{info.file_size:,} bytes, over the limit of {limits.bytes:,}", cure=unpack)
    if info.file_size > limits.ratio_from and info.file_size > limits.ratio * info.compress_size:
        raise ImageError(f"inflates to over {limits.ratio:g} times its size", cure=unpack)
    try:
        content = bytearray()
        with archive.open(info) as file:
            # In pieces: zipfile stops at the size promised, but only after inflating all that was asked for.
            while piece := file.read(_CHUNK):
                content += piece
    except _DAMAGED:
        raise ImageError("damaged inside its zip", cure="Download or copy the zip again.") from None
    if len(content) != info.file_size:
        raise ImageError("shorter than its zip says", cure="Download or copy the zip again.")
    return bytes(content)


def _parts(name: str) -> list[str]:
    """Folders and file of an entry's name; roots and steps upwards are dropped, so that none leads out."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")] or ["(no name)"]


def _hidden(part: str) -> bool:
    return part.startswith(".") or part in HIDDEN
