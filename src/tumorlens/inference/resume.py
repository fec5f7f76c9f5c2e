"""Going on with an interrupted predict job: what its file holds, and what of the inputs is still to do."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tumorlens.core.errors import RunError
from tumorlens.inference.records import (
    Format,
    Row,
    header,
    parse,
)
from tumorlens.readers import Slice, Unreadable

Item: TypeAlias = Slice | Unreadable

_LONGEST = 1 << 20  # bytes of a row
_JSON_START = b'{"kind": "'


@dataclass(frozen=True)
class Finished:
    """What an interrupted run left in its file."""

    series_of: dict[int, str | None] = field(default_factory=dict)
    """Of each slice or image, by the hash of its file and number; used up as they are met again."""
    again: Counter[int] = field(default_factory=Counter)
    """How many more times one was named."""
    slices: dict[str, list[Row]] = field(default_factory=dict)
    """By series, unreadable ones too; an empty list where the row for the whole is there."""
    bytes: int = 0
    """Length of the file without a line that was cut off."""
    files: int = 0
    rows: int = 0
    failed: int = 0


def finished(path: Path, form: Format, classes: Sequence[str], model: str) -> Finished:
    """Read the rows of an interrupted run.

    Raises
    ------
    RunError
        The file cannot be read, or was written in another format, or with other classes or another model, plane or
        coverage.
    """
    series_of: dict[int, str | None] = {}
    again: Counter[int] = Counter()
    slices: dict[str, list[Row]] = {}
    end = files = rows = failed = number = 0
    last = None
    cure = "Go on with the same --format, --model, --plane and --coverage, or name another file."
    try:
        if not path.is_file():
            raise RunError(f"--out {path} is no regular file.", cure="Name a file.")
        with path.open("rb") as file:
            for number, content in enumerate(iter(partial(file.readline, _LONGEST), b""), 1):
                if len(content) == _LONGEST:
                    raise ValueError("a long line")
                if not content.endswith(b"\n"):  # cut off while it was written
                    start = header(form, classes).encode() if form == "csv" else _JSON_START
                    if number == 1 and not start.startswith(content[: len(start)]):
                        raise ValueError("another beginning")
                    break
                end += len(content)
                text = content.decode()
                if number == 1 and form == "csv":
                    if text != header(form, classes):
                        raise RunError(f"{path} has the columns {text.strip()!r}.", cure=cure)
                    continue
                row, by = parse(text, form, classes)
                if by != model:
                    raise RunError(
                        f"{path}, line {number}: model, plane and coverage were {by}, and are {model} now.", cure=cure
                    )
                rows, failed = rows + 1, failed + row.failed
                if row.kind == "volume":
                    slices[str(row.series)] = []
                    continue
                files, last = files + (row.file != last), row.file
                key = _key(row.file, row.slice)
                if key in series_of:
                    again[key] += 1
                series_of[key] = row.series
                if row.series is not None:
                    slices.setdefault(row.series, []).append(row)
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path}, line {number}, is no row of ours ({error}).", cure=cure) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None
    return Finished(series_of, again, slices, end, files, rows, failed)


def unfinished(items: Iterator[Item], before: Finished) -> Iterator[Item]:
    """Those that have no row yet.

    Raises
    ------
    RunError
        The inputs are not those that `before` was made from: a volume would be mixed of two.
    """
    met: Counter[str | None] = Counter()
    for item in items:
        key = _key(item.source, item.index)
        if known := key in before.series_of:
            series = before.series_of[key]
            if before.again[key]:
                before.again[key] -= 1
            else:
                del before.series_of[key]
            met[series] += 1
            other = isinstance(item, Slice) and series not in (None, item.series)
        else:
            # Series are numbered as they come: while slices of the old one are missing, this may be another.
            other = met[item.series] < len(before.slices.get(item.series or "", ()))
        if other:
            raise RunError(
                f"{item.source} does not belong to the series that the file to go on with tells of.",
                cure="Name another file with --out, as the inputs changed.",
            )
        if not known:
            yield item


def _key(file: str, number: int | None) -> int:
    return hash((file, number))
