"""What the user names → files, one by one: paths, folders, lists of names, and standard input."""

import io
import os
import stat
import sys
import zipfile
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tumorlens.core.errors import ConfigError, ImageError
from tumorlens.core.text import shown
from tumorlens.readers.companions import Skipped, is_companion, may_be_companion
from tumorlens.readers.formats import read_stream
from tumorlens.readers.pixels import SUFFIXES, open_error
from tumorlens.readers.places import choose_volume
from tumorlens.readers.signatures import HEADER, ZIP
from tumorlens.readers.types import Plane, ReadContext, ReadLimits, SeriesNames, Slice, Unreadable
from tumorlens.readers.zips import is_hidden, visible_files

_DEFAULT = ReadLimits()


def read_inputs(
    inputs: Sequence[str],
    *,
    plane: Plane = "axial",
    limits: ReadLimits = _DEFAULT,
    stdin: BinaryIO | None = None,
    written: Collection[Path] = (),
    volume: int | None = None,
) -> Iterator[Slice | Unreadable]:
    """Every picture in what the user names, in order, as a stream: nothing is held longer than its file.

    Files in one of `formats.FORMATS` and zips of them are recognized by their content.

    Parameters
    ----------
    inputs
        Files; folders (all files inside, sorted, except those that lie beside pictures, which one line in the log
        counts; links to folders are not followed);
        `-` for one file of any format on standard input; `@list.txt` for a file of names, one per line, and `@-`
        for such names on standard input. Names in a list are relative to the current folder; `./-` and `./@x`
        are files of those names.
    plane
        Which slices of NIfTI volumes are taken. Other formats are shown as stored.
    limits
        What is read at most.
    stdin
        Read instead of standard input.
    written
        Files and folders that are skipped within folders: this job's own results.
    volume
        Which volume is read of a file or DICOM series with several, from 1; by default the first of a NIfTI file, and
        all of a DICOM series. To choose, the headers of all files are read first.

    Yields
    ------
    Slice or Unreadable
        One for each image, frame or slice, or the reason why there is none.

    Raises
    ------
    ConfigError
        Standard input is named, but closed.
    """
    context = ReadContext(io.BytesIO(), "", plane, limits, SeriesNames(), volume=volume)
    yield from _chosen(context, partial(_read_all, inputs, stdin, written))


def read_file(context: ReadContext) -> Iterator[Slice | Unreadable]:
    """Everything in one file, or the chosen volume of each series in it; what cannot be read is an Unreadable."""
    yield from _chosen(context, read_stream)


def _chosen(
    context: ReadContext, read: Callable[[ReadContext], Iterator[Slice | Unreadable]]
) -> Iterator[Slice | Unreadable]:
    if context.volume is not None:
        survey = replace(context, survey=True, series=SeriesNames())
        chosen, lacking = choose_volume(read(survey), context.volume)
        yield from lacking
        context.stream.seek(0)
        context = replace(context, chosen=chosen)
    yield from read(context)


def _read_all(
    inputs: Sequence[str], stdin: BinaryIO | None, written: Collection[Path], context: ReadContext
) -> Iterator[Slice | Unreadable]:
    if stdin is not None and stdin.seekable():
        stdin.seek(0)
    skipped = Skipped()
    context = replace(context, skipped=skipped)
    for found in _files(inputs, stdin, written, skipped):
        if isinstance(found, Unreadable):
            yield found
            continue
        try:
            file = _open(found, stdin, context.limits)
        except ImageError as error:
            yield Unreadable(shown(found), None, error.what, error.cure)
            continue
        with file:
            yield from read_stream(replace(context, stream=file, source=shown(found)))
    if not context.survey:
        skipped.report()


def read_bytes(
    data: bytes, name: str, *, plane: Plane = "axial", limits: ReadLimits = _DEFAULT
) -> Iterator[Slice | Unreadable]:
    """Every picture in one file's content.

    Parameters
    ----------
    data
        A file of any format that `read_inputs` reads.
    name
        Its name in results.
    plane, limits
        As in `read_inputs`.
    """
    yield from read_stream(ReadContext(io.BytesIO(data), shown(name), plane, limits))


def _open(name: str, stdin: BinaryIO | None, limits: ReadLimits) -> BinaryIO:
    """A file, or what standard input holds; ImageError if it cannot be opened."""
    try:
        if name == "-":
            return io.BytesIO((stdin or standard_input()).read(limits.bytes + 1))  # refused if over the limit
        if not _is_regular(name):
            raise ImageError("no regular file", cure="Pipe its content to `-`.")
        return open(name, "rb")  # noqa: PTH123 - `./x` would become `x`
    except (OSError, ValueError) as error:
        raise open_error(error) from None


def _is_regular(path: str) -> bool:
    return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 - `./x` would become `x`


def count_inputs(inputs: Sequence[str], written: Collection[Path] = ()) -> int | None:
    """How many files `read_inputs` will read, entries of zips counted; None if that is unknown before reading them.

    Folders are walked; a file with the suffix of a picture is not opened.
    """
    # A list that comes through a pipe can be read only once.
    if any(name in ("-", "@-") or (name.startswith("@") and not Path(name[1:]).is_file()) for name in inputs):
        return None
    return sum(
        _zip_length(found) if isinstance(found, str) and Path(found).suffix.lower() not in SUFFIXES else 1
        for found in _files(inputs, None, written, Skipped())
    )


def _zip_length(path: str) -> int:
    try:
        if not _head(path).startswith(ZIP):
            return 1
        with zipfile.ZipFile(path) as archive:
            return max(1, len(visible_files(archive)))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
        return 1  # for which read_inputs yields the reason


def _head(path: str) -> bytes:
    """The first bytes of a file; empty if it cannot be read or is a pipe, whose writer would be waited for."""
    try:
        if not _is_regular(path):
            return b""
        with open(path, "rb") as file:  # noqa: PTH123 - `./x` would become `x`
            return file.read(HEADER)
    except (OSError, ValueError):
        return b""


def _files(
    inputs: Sequence[str], stdin: BinaryIO | None, written: Collection[Path], skipped: Skipped
) -> Iterator[str | Unreadable]:
    """Files behind the names, `-` among them; what is skipped in folders is counted."""
    results = frozenset(os.path.realpath(path) for path in written)
    for name in inputs:
        if name == "-":
            yield name
        elif name.startswith("@"):
            yield from _unless_empty(_listed(name, stdin, results, skipped), name, "a list without names")
        else:
            yield from _below(name, results, skipped)


def _below(name: str, results: frozenset[str], skipped: Skipped) -> Iterator[str | Unreadable]:
    """The file, or all files below the folder."""
    if os.path.isdir(name):  # noqa: PTH112 - the name is shown as it was given
        yield from _unless_empty(_walk(name, results, skipped), name, "a folder without pictures")
    else:
        yield name


def _unless_empty(found: Iterator[str | Unreadable], name: str, reason: str) -> Iterator[str | Unreadable]:
    """The same, or the reason if there is nothing."""
    yield next(found, None) or Unreadable(shown(name), None, reason, "Check the path.")
    yield from found


def _listed(name: str, stdin: BinaryIO | None, results: frozenset[str], skipped: Skipped) -> Iterator[str | Unreadable]:
    try:
        with _open_list(name, stdin) as file:
            for number, line in enumerate(file):
                # Some editors write a byte order mark at the start of a file.
                listed = line.removeprefix(BOM_UTF8) if number == 0 else line
                if listed := listed.rstrip(b"\r\n"):
                    yield from _below(os.fsdecode(listed), results, skipped)
    except (OSError, ValueError) as error:
        yield _unopened(name, error)


def _open_list(name: str, stdin: BinaryIO | None) -> AbstractContextManager[BinaryIO]:
    if name != "@-":
        return Path(name[1:]).open("rb")
    # Not through sys.stdin's buffer: a thread that waits in it would hold its lock when the program is to end.
    return nullcontext(stdin) if stdin else open(standard_input().fileno(), "rb", closefd=False)


def standard_input() -> BinaryIO:
    """The stream that `-` reads.

    Raises
    ------
    ConfigError
        It is closed.
    """
    if sys.stdin is None:
        raise ConfigError("Standard input is closed.", cure="Pipe something into it, or name a file.")
    return sys.stdin.buffer


def _walk(top: str, results: frozenset[str], skipped: Skipped) -> Iterator[str | Unreadable]:
    errors: list[Unreadable] = []
    for folder, folders, files in os.walk(top, onerror=lambda e: errors.append(_unopened(str(e.filename), e))):
        here = os.path.realpath(folder)
        for found in (folders, files):
            found[:] = sorted(f for f in found if os.path.join(here, f) not in results)  # noqa: PTH118
        for file in files:
            path = os.path.join(folder, file)  # noqa: PTH118
            if is_hidden(file) or (may_be_companion(file) and is_companion(file, _head(path))):
                skipped.add(path)
            else:
                yield path
        for name in filter(is_hidden, folders):
            skipped.add(os.path.join(folder, name))  # noqa: PTH118
        folders[:] = [name for name in folders if not is_hidden(name)]
        while errors:
            yield errors.pop()
    yield from errors


def _unopened(name: str, error: OSError | ValueError) -> Unreadable:
    found = open_error(error)
    return Unreadable(shown(name), None, found.what, found.cure)
