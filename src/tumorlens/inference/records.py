"""One prediction record (image, slice, volume or error): its fields, and its form as JSON, CSV and table row."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tumorlens.core.errors import TumorlensError
from tumorlens.core.files import csv_line
from tumorlens.readers.types import Place

if TYPE_CHECKING:
    from pandas import DataFrame

Format = Literal["table", "json", "csv"]
Kind = Literal["image", "slice", "volume"]
REFUSED, ERROR = "refused", "error"  # how these verdicts begin

_COLUMNS = ("kind", "file", "series", "slice", "instance", "class", "set", "verdict", "reason", "score", "seconds",
            "model")  # fmt: skip
_SET_SEPARATOR = "|"  # in CSV; class names may contain spaces
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet would run such text as a formula
_FILE_WIDTH, _CLASS_WIDTH, _SET_WIDTH = 22, 10, 14  # of the table, which has 80 columns
_details = textwrap.TextWrapper(width=80, initial_indent="    ", subsequent_indent="    ")


@dataclass(frozen=True, slots=True)
class Record:
    """The prediction for one image, slice or volume. If it was refused or failed, it has no class or probabilities."""

    kind: Kind
    """`slice` of a volume, DICOM series or multi-frame file; `volume` for all of its slices together; else `image`."""
    file: str
    """Path as given, with escapes for characters that cannot be printed; the folder, for a series of several files."""
    _: KW_ONLY
    series: str | None = None
    """Running name of the volume or series: `series-1`, …"""
    slice: int | None = None
    """0-based: voxel index along the axis of a NIfTI volume, frame or page, InstanceNumber - 1 of a DICOM file."""
    instance: int | None = None
    """InstanceNumber of a DICOM file with one frame, as viewers show it."""
    label: str = ""
    """The most probable class (`class` in JSON and CSV); empty if refused or failed, or if a volume is undecided."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """Calibrated probability of each class, 0 to 1; empty if refused or failed."""
    set: tuple[str, ...] = ()
    """Classes of the prediction set; empty if refused or failed, and for volumes."""
    verdict: str
    """`ok`, `uncertain`, `refused: not a brain MRI` or `error: <reason>`."""
    reason: str = ""
    """Why it is not ok; the cure of an error; how many slices decided for a volume."""
    score: float | None = None
    """Distance from the training data, in standard deviations above the validation mean; None for volumes, errors."""
    seconds: float = 0.0
    """Time of inference and verdict: that of the batch, shared equally, without decoding."""
    model: str = ""
    """Configuration, precision, first digits of the checkpoint's SHA-256, plane and coverage."""
    place: Place = field(default=Place(), repr=False, compare=False)
    """Where a DICOM image lies; not written to files."""

    @property
    def failed(self) -> bool:
        """Whether the file could not be read."""
        return self.verdict.startswith(ERROR)

    @property
    def refused(self) -> bool:
        """Whether the image was refused."""
        return self.verdict.startswith(REFUSED)

    def to_dict(self) -> dict[str, Any]:
        """The record for JSON: probabilities and score to 6 significant digits, seconds to 4; None if empty."""
        return {
            "kind": self.kind, "file": self.file, "series": self.series, "slice": self.slice,
            "instance": self.instance, "class": self.label or None, "set": list(self.set), "verdict": self.verdict,
            "reason": self.reason, "score": None if self.score is None else float(f"{self.score:.6g}"),
            "seconds": float(f"{self.seconds:.4g}"), "model": self.model,
            "probabilities": {name: float(f"{p:.6g}") for name, p in self.probabilities.items()} or None,
        }  # fmt: skip


@dataclass
class Counts:
    """Records of a job, with those of an interrupted run that it continues."""

    records: int = 0
    files: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    """Images and slices by verdict: ok, uncertain, refused, error."""
    _last_file: str = field(default="", repr=False, compare=False)

    @property
    def failed(self) -> int:
        """Images and slices that could not be read."""
        return self.verdicts[ERROR]

    def add(self, record: Record) -> None:
        self.records += 1
        if record.kind != "volume":
            self.verdicts[record.verdict.partition(":")[0]] += 1
            self.files += record.file != self._last_file
            self._last_file = record.file


class Predictions(list[Record]):
    """The records of `Classifier.predict`: a list, in the order of the inputs, volumes last."""

    def to_pandas(self) -> DataFrame:
        """The records as a pandas DataFrame, with the columns of `predict --format csv`.

        Returns
        -------
        DataFrame
            One row per record: `kind` (str) to `model` (str) as in `Record.to_dict`, with `class` for the label and
            `set` as a list of str, then one float column `p_CLASS` per class. Empty values are None or NaN.

        Raises
        ------
        TumorlensError
            pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise TumorlensError(
                "to_pandas() needs the Python package 'pandas', which is not installed.",
                cure="Install it: pip install pandas",
            ) from None
        rows = []
        for record in self:
            values = record.to_dict()
            probabilities = values.pop("probabilities") or {}
            rows.append(values | {f"p_{name}": p for name, p in probabilities.items()})
        return pandas.DataFrame(rows, columns=None if rows else list(_COLUMNS))


def header(form: Format, classes: Iterable[str]) -> str:
    """The line before the records; empty for json."""
    if form == "json":
        return ""
    if form == "csv":
        return csv_line([*_COLUMNS, *(f"p_{name}" for name in classes)])
    return _table_columns("file", "slice", "inst.", "class", "prob.") + f"{'verdict':<9}  set\n"


def format_record(record: Record, form: Format, classes: Sequence[str]) -> str:
    """One record with its newline; in a table, details follow on indented lines."""
    if form == "table":
        return _table_row(record)
    values = record.to_dict()
    if form == "json":
        return json.dumps(values) + "\n"
    probabilities = values.pop("probabilities") or {}
    values["set"] = _SET_SEPARATOR.join(record.set)
    return csv_line([_cell(value) for value in (*values.values(), *(probabilities.get(name) for name in classes))])


def parse_record(text: str, form: Format, classes: Sequence[str]) -> Record:
    """The record of a line that `format_record` wrote as json or csv; ValueError if the line is damaged."""
    if form == "json":
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        probabilities, chosen = found.get("probabilities") or {}, found.get("set") or ()
        if probabilities and list(probabilities) != list(classes):
            raise ValueError(f"classes {list(probabilities)}")
    else:
        cells = next(csv.reader([text], strict=True), [])
        if len(cells) != len(_COLUMNS) + len(classes):
            raise ValueError(f"{len(cells)} values")
        found = dict(zip(_COLUMNS, (_text(cell) or None for cell in cells), strict=False))
        probabilities = {name: p for name, p in zip(classes, cells[len(_COLUMNS) :], strict=True) if p}
        chosen = found["set"].split(_SET_SEPARATOR) if found["set"] else ()
    if missing := [name for name in _COLUMNS if name not in found]:
        raise ValueError(f"no {missing[0]!r}")
    if found["kind"] not in ("image", "slice", "volume") or not found["file"]:
        raise ValueError(f"kind {found['kind']!r} of {found['file']!r}")
    return Record(
        found["kind"],
        found["file"],
        series=found["series"],
        slice=found["slice"] and int(found["slice"]),
        instance=found["instance"] and int(found["instance"]),
        label=found["class"] or "",
        probabilities={name: float(p) for name, p in probabilities.items()},
        set=tuple(chosen),
        verdict=found["verdict"] or "",
        reason=found["reason"] or "",
        score=None if found["score"] is None else float(found["score"]),
        seconds=float(found["seconds"]),
        model=found["model"] or "",
    )


def _table_row(record: Record) -> str:
    place = "all" if record.kind == "volume" else "" if record.slice is None else str(record.slice)
    instance = "" if record.instance is None else str(record.instance)
    top = f"{record.probabilities[record.label]:.3f}" if record.label and record.probabilities else ""
    name = record.file if len(record.file) <= _FILE_WIDTH else "…" + record.file[1 - _FILE_WIDTH :]
    label = record.label if len(record.label) <= _CLASS_WIDTH else record.label[: _CLASS_WIDTH - 1] + "…"
    verdict, _, error = record.verdict.partition(": ") if record.failed else (record.verdict, "", "")
    chosen = ",".join(record.set)
    long = [f"class: {record.label}"] if label != record.label else []
    if len(chosen) > _SET_WIDTH:
        long, chosen = [*long, f"set: {chosen}"], ""
    reason = f"{error}. {record.reason}" if record.failed else record.reason
    line = _table_columns(name, place, instance, label, top) + f"{verdict:<9}  {chosen}".rstrip() + "\n"
    return line + "".join(_details.fill(text) + "\n" for text in (*long, reason) if text)


def _table_columns(file: str, place: str, instance: str, label: str, top: str) -> str:
    return f"{file:<{_FILE_WIDTH}} {place:>5} {instance:>5}  {label:<{_CLASS_WIDTH}}  {top:>5}  "


def _cell(value: Any) -> str:
    """Text of a CSV cell. File and class names come from others: text that begins as a formula gets an apostrophe."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return "" if value is None else str(value)


def _text(cell: str) -> str:
    """The inverse of `_cell` for text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
