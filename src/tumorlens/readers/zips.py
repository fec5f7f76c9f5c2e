"""Guards for zip archives: what a zip may cost, checked before a byte is decompressed.

Both inputs of `predict` and archives of data sets go through these functions. Each raises an ImageError whose message
reads well after the name of the archive or the entry; callers that report a whole archive wrap it in their own error:

    with open_zip(file, limits) as archive:
        for info in archive.infolist():
            check_entry(info, limits)
            for piece in entry_content(archive, info):
                ...
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from tumorlens.core.errors import ImageError
from tumorlens.readers.types import ReadLimits

HIDDEN = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})  # beside names that start with a dot
_CHUNK = 1 << 18  # bytes; also bounds what one read may decompress
_DIRECTORY_ENTRY = 300  # bytes of the central directory per file: 46 and its name
_END_RECORDS = 22 + 65_535 + 76  # bytes of the end record with the longest comment, and of the records of zip64
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)
_UNPACK = "Unpack the zip yourself, look at it, and name the folder."


def open_zip(file: BinaryIO, limits: ReadLimits) -> zipfile.ZipFile:
    """Open a zip whose central directory is readable and small enough to be held in memory.

    Parameters
    ----------
    file
        Seekable.
    limits
        `entries` is used.

    Raises
    ------
    ImageError
        The central directory is damaged, or larger than 300 bytes per file allowed.
    """
    most = limits.entries * _DIRECTORY_ENTRY
    if (size := _directory_bytes(file)) > most:  # zipfile reads all of it before it reports the number of files
        raise ImageError(f"a zip whose list of files has {size:,} bytes, over the limit of {most:,}", cure="Split it.")
    try:
        return zipfile.ZipFile(file)
    except _DAMAGED:
        raise ImageError(
            "a damaged zip: its table of contents cannot be read", cure="Download or copy it again."
        ) from None


def visible_files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries that are files, without hidden ones."""
    # Not is_dir(), which fails on an entry without a name.
    return [
        info for info in archive.infolist()
        if not info.filename.endswith(("/", "\\")) and not any(map(is_hidden, entry_path(info.filename).parts))
    ]  # fmt: skip


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name is skipped."""
    return part.startswith(".") or part in HIDDEN


def entry_path(name: str) -> PurePosixPath:
    r"""A relative path for an entry's name that stays below the archive: roots, `..` and empty parts are dropped.

    A backslash separates folders. An extractor should refuse a name that differs from its path here.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return PurePosixPath(*parts or ["(no name)"])


def check_entry(info: zipfile.ZipInfo, limits: ReadLimits) -> None:
    """Refuse an entry by its record in the central directory.

    Parameters
    ----------
    limits
        `bytes`, `ratio` and `ratio_from` are used.

    Raises
    ------
    ImageError
        It is encrypted, compressed by another method than deflate, or over a limit when decompressed.
    """
    if info.flag_bits & 0x1:
        raise ImageError("encrypted", cure="Unpack the zip with its password and name the folder.")
    # Only these two decompress in bounded steps: a few bytes of bzip2 can fill the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"packed by method {info.compress_type} of zip; stored and deflated are read", cure=_UNPACK)
    if info.file_size > limits.bytes:
        raise ImageError(f"{info.file_size:,} bytes, over the limit of {limits.bytes:,}", cure=_UNPACK)
    if limits.is_bomb(info.file_size, info.compress_size):
        raise ImageError(f"inflates to over {limits.ratio:g} times its size", cure=_UNPACK)


def entry_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of an entry that passed `check_entry`, in pieces of at most 256 KiB; its CRC is checked at the end.

    Never more bytes than `info.file_size`, which is what `check_entry` has checked.

    Raises
    ------
    ImageError
        It is damaged, or shorter than the central directory says.
    """
    cure = "Download or copy the zip again."
    done = 0
    try:
        with archive.open(info) as file:
            # In pieces: zipfile stops at the size promised, but only after decompressing all that was asked for.
            while piece := file.read(_CHUNK):
                done += len(piece)
                yield piece
    except _DAMAGED:
        raise ImageError("damaged inside its zip", cure=cure) from None
    if done != info.file_size:
        raise ImageError("shorter than its zip says", cure=cure)


def _directory_bytes(file: BinaryIO) -> int:
    """Size of the central directory by its end record (APPNOTE 4.3.14 to 4.3.16); 0 without an end record."""
    at = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - _END_RECORDS))
    tail = file.read(_END_RECORDS)
    file.seek(at)
    # As zipfile looks for it: without a comment first.
    plain = tail[-22:].startswith(b"PK\5\6") and tail.endswith(b"\0\0")
    found = len(tail) - 22 if plain else tail.rfind(b"PK\5\6")
    zip64 = tail[max(0, found - 76) : max(0, found - 20)]
    size = int.from_bytes(zip64[40:48], "little") if zip64.startswith(b"PK\6\6") else 0
    return max(size, int.from_bytes(tail[found + 12 : found + 16], "little")) if found >= 0 else 0
