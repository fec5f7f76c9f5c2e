"""One file's content → slices: which format it is, told by its first bytes and never by its name."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from tumorlens.core.errors import ImageError
from tumorlens.core.text import shown
from tumorlens.readers.dicom import is_dicom, read_dicom
from tumorlens.readers.nifti import HEADER, is_nifti, read_nifti
from tumorlens.readers.rasters import read_raster
from tumorlens.readers.types import (
    Plane,
    ReadLimits,
    SeriesNames,
    Slice,
    Unreadable,
)
from tumorlens.readers.zips import check_entry, entry_content, entry_path, open_zip, visible_files

ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_RASTERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ = "JPEG, PNG, TIFF, BMP, WebP, DICOM, NIfTI and zips of them"


def read_stream(
    stream: BinaryIO, source: str, plane: Plane, limits: ReadLimits, names: SeriesNames, *, in_zip: bool = False
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


def _read_zip(
    stream: BinaryIO, source: str, plane: Plane, limits: ReadLimits, names: SeriesNames
) -> Iterator[Slice | Unreadable]:
    with open_zip(stream, limits) as archive:
        entries = visible_files(archive)
        if len(entries) > limits.entries:
            raise ImageError(f"a zip of {len(entries):,} files, over the limit of {limits.entries:,}", cure="Split it.")
        if not entries:
            raise ImageError("a zip without files", cure="Leave it out.")
        for info in entries:
            name = shown(f"{source}/{entry_path(info.filename)}")
            try:
                check_entry(info, limits)
                content = b"".join(entry_content(archive, info))
            except ImageError as error:
                yield Unreadable(name, None, error.what, error.cure)
                continue
            yield from read_stream(io.BytesIO(content), name, plane, limits, names, in_zip=True)
