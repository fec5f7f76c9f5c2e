"""Resuming an interrupted predict job: which records its file holds, and which inputs are still to do."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from tumorlens.core.errors import RunError
from tumorlens.inference.records import Counts, Format, Record, header, parse_record
from tumorlens.readers import Slice, Unreadable
from tumorlens.readers.types import Place

Item: TypeAlias = Slice | Unreadable

_LONGEST = 1 << 20  # bytes of a record
_JSON_START = b'{"kind": "'
_CURE = "Use the same --format, --model, --plane and --coverage to continue it, or name another file with --out."


@dataclass
class PreviousRecords:
    """Records that an interrupted run left in its file."""

    series_of: dict[int, str | None] = field(default_factory=dict)
    """Series of each slice or image, by the hash of its file and number; entries go as the inputs are read again."""
    repeats: Counter[int] = field(default_factory=Counter)
    """How many more times each was among the inputs."""
    slices: dict[str, list[Record]] = field(default_factory=dict)
    """Slices of each series, unreadable ones too."""
    volumes: Counter[str] = field(default_factory=Counter)
    """How many records of volumes each series has."""
    places: dict[int, Place] = field(default_factory=dict)
    """Place of each slice or image, by the same hash, as the inputs are read again."""
    bytes: int = 0
    """Length of the file without an incomplete last line."""
    counts: Counts = field(default_factory=Counts)

    def add(self, record: Record) -> None:
        self.counts.add(record)
        if record.kind == "volume":
            self.volumes[str(record.series)] += 1
            return
        key = _key(record.file, record.slice)
        if key in self.series_of:
            self.repeats[key] += 1
        self.series_of[key] = record.series
        if record.series is not None:
            self.slices.setdefault(record.series, []).append(record)

    def placed(self, series: str) -> list[Record]:
        """The slices of a series, with the places that were read again."""
        return [
            replace(record, place=self.places.get(_key(record.file, record.slice), record.place))
            for record in self.slices.get(series, ())
        ]


def read_previous(path: Path, form: Format, classes: Sequence[str], model: str) -> PreviousRecords:
    """Read the records of an interrupted run.

    Raises
    ------
    RunError
        The file cannot be read, or was written in another format, by an older version, or with other classes or
        another model, plane or coverage.
    """
    found = PreviousRecords()
    number = 0
    try:
        if not path.is_file():
            raise RunError(f"--out {path} is not a regular file.", cure="Name a file.")
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, _LONGEST), b""), 1):
                if len(line) == _LONGEST:
                    raise ValueError("the line is too long")
                if not line.endswith(b"\n"):  # the run ended while it was written
                    start = header(form, classes).encode() if form == "csv" else _JSON_START
                    if number == 1 and not start.startswith(line[: len(start)]):
                        raise ValueError("it begins differently")
                    break
                found.bytes += len(line)
                text = line.decode()
                if number == 1 and "slice" in text and "instance" not in text:
                    raise RunError(
                        f"{path} is from an older version of tumorlens: its records have no 'instance'.",
                        cure="Name another file with --out: records of an older version cannot be continued.",
                    )
                if number == 1 and form == "csv":
                    if text != header(form, classes):
                        raise RunError(f"{path} has the columns {text.strip()!r}.", cure=_CURE)
                    continue
                record = parse_record(text, form, classes)
                if record.model != model:
                    raise RunError(
                        f"{path}, line {number}: model, plane and coverage were {record.model}, now they are {model}.",
                        cure=_CURE,
                    )
                found.add(record)
    except (ValueError, TypeError, csv.Error) as error:
        raise RunError(f"{path}, line {number}, is not a record of tumorlens ({error}).", cure=_CURE) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None
    return found


def skip_finished(items: Iterator[Item], previous: PreviousRecords) -> Iterator[Item]:
    """The items that have no record yet.

    Raises
    ------
    RunError
        The inputs are not those of `previous`: a volume would be mixed from two.
    """
    seen: Counter[str | None] = Counter()
    for item in items:
        key = _key(item.source, item.index)
        if known := key in previous.series_of:
            series = previous.series_of[key]
            if previous.repeats[key]:
                previous.repeats[key] -= 1
            else:
                del previous.series_of[key]
            seen[series] += 1
            previous.places[key] = item.place
            other = isinstance(item, Slice) and series not in (None, item.series)
        else:
            # Series are numbered as they are read: while slices of the old one are missing, this may be another.
            written = item.series in previous.volumes
            other = not written and seen[item.series] < len(previous.slices.get(item.series or "", ()))
        if other:
            raise RunError(
                f"{item.source} does not belong to the series that the file to continue names.",
                cure="The inputs have changed: name another file with --out.",
            )
        if not known:
            yield item


def _key(file: str, number: int | None) -> int:
    return hash((file, number))
