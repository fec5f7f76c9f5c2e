"""What the user names → files, one by one: paths, folders, lists of names, and standard input."""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from tumorlens.core.errors import ConfigError
from tumorlens.core.text import shown
from tumorlens.readers.formats import read_stream
from tumorlens.readers.types import (
    Plane,
    ReadLimits,
    SeriesNames,
    Slice,
    Unreadable,
)
from tumorlens.readers.zips import is_hidden, visible_files

_DEFAULT = ReadLimits()
_PIECE = 1 << 16  # bytes


def read_inputs(
    inputs: Sequence[str],
    *,
    plane: Plane = "axial",
    limits: ReadLimits = _DEFAULT,
    stdin: BinaryIO | None = None,
    written: Collection[Path] = (),
) -> Iterator[Slice | Unreadable]:
    """Every picture in what the user names, in order, as a stream: nothing is held longer than its file.

    JPEG, PNG, TIFF, BMP, WebP, DICOM, NIfTI (.nii, .nii.gz) and zips of them are told by their content.

    Parameters
    ----------
    inputs
        Files; folders (all files inside, sorted, without hidden ones; links to folders are not followed);
        `-` for one file of any format on standard input; `@list.txt` for a file of names, one a line, and `@-`
        for such names on standard input. Names in a list are relative to the current folder; `./-` and `./@x`
        name files that are called so.
    plane
        Which slices of NIfTI volumes are taken. Other formats are shown as stored.
    limits
        What is read at most.
    stdin
        Instead of standard input.
    written
        Files and folders that folders are read without: the reader's own results.

    Yields
    ------
    Slice or Unreadable
        One for each image, frame or slice, or why there is none.
    """
    names = SeriesNames()
    for found in _files(inputs, stdin, _real(written)):
        if isinstance(found, Unreadable):
            yield found
        elif found == "-":
            yield from _read_standard_input(stdin or standard_input(), plane, limits, names)
        else:
            source = shown(found)
            try:
                if not stat.S_ISREG(os.stat(found).st_mode):  # noqa: PTH116 - `./x` would become `x`
                    yield Unreadable(source, None, "no regular file", "Pipe its content to `-`.")
                    continue
                file = open(found, "rb")  # noqa: PTH123, SIM115 - closed below, whatever the reader does
            except (OSError, ValueError) as error:
                yield _unopened(source, error)
                continue
            with file:
                yield from read_stream(file, source, plane, limits, names)


def read_bytes(
    data: bytes, name: str, *, plane: Plane = "axial", limits: ReadLimits = _DEFAULT
) -> Iterator[Slice | Unreadable]:
    """Every picture in one file's content.

    Parameters
    ----------
    data
        A file of any format that `read_inputs` reads.
    name
        What results call it.
    """
    if len(data) > limits.bytes:
        yield _too_long(shown(name), limits)
    else:
        yield from read_stream(io.BytesIO(data), shown(name), plane, limits, SeriesNames())


def count_inputs(inputs: Sequence[str], written: Collection[Path] = ()) -> int | None:
    """How many files `read_inputs` will come by, entries of zips counted; None where only reading them tells.

    Folders are walked and zips recognised by their suffix, so that no other file is opened.
    """
    # A list that comes through a pipe can be read once only.
    if any(name in ("-", "@-") or (name.startswith("@") and not Path(name[1:]).is_file()) for name in inputs):
        return None
    total = 0
    for found in _files(inputs, None, _real(written)):
        total += _zip_length(found) if isinstance(found, str) and found.lower().endswith(".zip") else 1
    return total


def _zip_length(path: str) -> int:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - a pipe would be waited for
            return 1
        with zipfile.ZipFile(path) as archive:
            return max(1, len(visible_files(archive)))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
        return 1  # which read_inputs will give the reason for


def _real(paths: Collection[Path]) -> frozenset[str]:
    return frozenset(os.path.realpath(path) for path in paths)


def _files(inputs: Sequence[str], stdin: BinaryIO | None, without: frozenset[str]) -> Iterator[str | Unreadable]:
    """Files behind the names, `-` among them."""
    for name in inputs:
        if name == "-":
            yield name
        elif name.startswith("@"):
            yield from _listed(name, stdin, without)
        else:
            yield from _below(name, without)


def _listed(name: str, stdin: BinaryIO | None, without: frozenset[str]) -> Iterator[str | Unreadable]:
    empty = True
    try:
        with nullcontext(stdin or _raw_standard_input()) if name == "@-" else Path(name[1:]).open("rb") as file:
            for line in _lines(file):
                if listed := os.fsdecode(line.rstrip(b"\r\n")):
                    empty = False
                    yield from _below(listed, without)
    except (OSError, ValueError) as error:
        yield _unopened(shown(name), error)
        return
    if empty:
        yield Unreadable(shown(name), None, "a list without names", "Check the path.")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines, without the mark that some editors begin a file with."""
    first, rest = True, b""
    while piece := file.read(_PIECE):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.removeprefix(BOM_UTF8) if first else line
            first = False
    yield rest.removeprefix(BOM_UTF8) if first else rest


def _raw_standard_input() -> BinaryIO:
    """Without its buffer: a thread that waits in that one would hold its lock when the program is to end."""
    return standard_input().raw  # type: ignore[attr-defined, no-any-return]


def standard_input() -> BinaryIO:
    """What `-` stands for.

    Raises
    ------
    ConfigError
        It is closed.
    """
    if sys.stdin is None:
        raise ConfigError("Standard input is closed.", cure="Pipe something into it, or name a file.")
    return sys.stdin.buffer


def _below(name: str, without: frozenset[str]) -> Iterator[str | Unreadable]:
    """The file, or all files below the folder."""
    if not os.path.isdir(name):  # noqa: PTH112 - the name is shown as it was given
        yield name
        return
    failures: list[OSError] = []
    empty = True
    for folder, folders, files in os.walk(name, onerror=failures.append):
        here = os.path.realpath(folder)
        for found in (folders, files):
            found[:] = sorted(
                f for f in found
                if not is_hidden(f) and os.path.join(here, f) not in without  # noqa: PTH118
            )  # fmt: skip
        for file in files:
            empty = False
            yield os.path.join(folder, file)  # noqa: PTH118
        while failures:
            error = failures.pop()
            empty = False
            yield _unopened(shown(str(error.filename)), error)
    for error in failures:
        empty = False
        yield _unopened(shown(str(error.filename)), error)
    if empty:
        yield Unreadable(shown(name), None, "a folder without files", "Check the path.")


def _read_standard_input(
    stdin: BinaryIO, plane: Plane, limits: ReadLimits, names: SeriesNames
) -> Iterator[Slice | Unreadable]:
    try:
        data = stdin.read(limits.bytes + 1)
    except OSError as error:
        yield _unopened("-", error)
        return
    if len(data) > limits.bytes:
        yield _too_long("-", limits)
    else:
        yield from read_stream(io.BytesIO(data), "-", plane, limits, names)


def _too_long(source: str, limits: ReadLimits) -> Unreadable:
    return Unreadable(source, None, f"longer than the limit of {limits.bytes:,} bytes", "Split it, or name a file.")


def _unopened(source: str, error: OSError | ValueError) -> Unreadable:
    if isinstance(error, FileNotFoundError):
        return Unreadable(source, None, "no such file", "Check the path.")
    if isinstance(error, PermissionError):
        return Unreadable(source, None, "may not be read", "Change its permissions.")
    why = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable name"
    return Unreadable(source, None, f"cannot be opened ({why})", "Check the path.")
