"""What `predict` says of one image, slice or volume, and how a row of it is written and read back."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["table", "json", "csv"]
Kind = Literal["image", "slice", "volume"]
REFUSED, ERROR = "refused", "error"  # how such verdicts begin
_BETWEEN = "|"  # classes of a set in CSV; names may hold spaces
_WIDTH = 40  # of a file's name in the table
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # which a spreadsheet would run, and the mark that keeps it from that
_COLUMNS = ("kind", "file", "series", "slice", "class", "set", "verdict", "reason", "score", "seconds", "model")


@dataclass(frozen=True, slots=True)
class Row:
    """One answer. Where it was refused or failed, it names no class and tells no probability."""

    kind: Kind
    """`slice` of a volume, DICOM series or multi-frame file; `volume`, the whole of one; else `image`."""
    file: str
    """As `inputs` shows it, with escapes for what cannot be printed; the folder, for a series of several files."""
    series: str | None
    """Running name of the volume or series."""
    slice: int | None
    """Its number from 0 on: along the axis of a NIfTI volume, of a frame, InstanceNumber - 1 of a DICOM file."""
    label: str
    """The most probable class; empty where refused or failed, and for a volume that is not called."""
    probabilities: tuple[float, ...]
    """Calibrated, of each class in the classifier's order; empty where refused or failed."""
    set: tuple[str, ...]
    """Classes of the prediction set; empty where refused or failed, and for volumes."""
    verdict: str
    """`ok`, `uncertain`, `refused: not a brain MRI` or `error: <reason>`."""
    reason: str
    """Why it is not ok; what an error's cure is; how many slices decide for a volume."""
    score: float | None
    """Distance from the training data; None for volumes and errors."""
    seconds: float
    """Of inference and judgement: the batch's time, shared equally; decoding is not in it."""

    @property
    def failed(self) -> bool:
        return self.verdict.startswith(ERROR)

    @property
    def refused(self) -> bool:
        return self.verdict.startswith(REFUSED)


def header(form: Format, classes: Sequence[str]) -> str:
    """The line before the rows; empty for json."""
    if form == "json":
        return ""
    if form == "csv":
        return _csv([*_COLUMNS, *(f"p_{name}" for name in classes)])
    return f"{'file':<{_WIDTH}}  {'slice':>5}  {'class':<12}  {'prob.':>6}  {'set':<24}  verdict\n"


def line(row: Row, form: Format, classes: Sequence[str], model: str) -> str:
    """One row with its newline; `model` tells which classifier answered."""
    if form == "table":
        return _table_line(row)
    values: dict[str, Any] = {
        "kind": row.kind, "file": row.file, "series": row.series, "slice": row.slice, "class": row.label or None,
        "set": list(row.set), "verdict": row.verdict, "reason": row.reason,
        "score": None if row.score is None else float(f"{row.score:.6g}"),
        "seconds": float(f"{row.seconds:.4g}"), "model": model,
    }  # fmt: skip
    probabilities = [float(f"{p:.6g}") for p in row.probabilities]
    if form == "json":
        values["probabilities"] = dict(zip(classes, probabilities, strict=True)) if probabilities else None
        return json.dumps(values) + "\n"
    values["set"] = _BETWEEN.join(row.set)
    shown: list[Any] = [*probabilities] or [None] * len(classes)
    return _csv([_cell(v) for v in (*values.values(), *shown)])


def parse(text: str, form: Format, classes: Sequence[str]) -> tuple[Row, str]:
    """A row and its model, of a line that `line` wrote as json or csv; ValueError where it is damaged."""
    if form == "json":
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
        found, chosen = record.get("probabilities") or {}, record.get("set")
        if found and list(found) != list(classes):
            raise ValueError(f"classes {list(found)}")
        probabilities = tuple(float(p) for p in found.values())
    else:
        values = next(csv.reader([text], strict=True), [])
        if len(values) != len(_COLUMNS) + len(classes):
            raise ValueError(f"{len(values)} values")
        record = dict(zip(_COLUMNS, (_text(value) or None for value in values), strict=False))
        probabilities = tuple(float(p) for p in values[len(_COLUMNS) :] if p)
        chosen = record["set"].split(_BETWEEN) if record["set"] else ()
    if missing := [name for name in _COLUMNS if name not in record]:
        raise ValueError(f"no {missing[0]!r}")
    if record["kind"] not in ("image", "slice", "volume") or not record["file"]:
        raise ValueError(f"kind {record['kind']!r} of {record['file']!r}")
    score = record["score"]
    row = Row(
        record["kind"], record["file"], record["series"], None if record["slice"] is None else int(record["slice"]),
        record["class"] or "", probabilities, tuple(chosen or ()), record["verdict"] or "", record["reason"] or "",
        None if score is None else float(score), float(record["seconds"]),
    )  # fmt: skip
    return row, record["model"] or ""


def _table_line(row: Row) -> str:
    name = row.file if len(row.file) <= _WIDTH else "…" + row.file[1 - _WIDTH :]
    place = "all" if row.kind == "volume" else "" if row.slice is None else str(row.slice)
    top = f"{max(row.probabilities):.3f}" if row.label and row.probabilities else ""
    chosen = ",".join(row.set)
    why = f" ({row.reason})" if row.reason and not row.failed else ""
    return f"{name:<{_WIDTH}}  {place:>5}  {row.label:<12}  {top:>6}  {chosen:<24}  {row.verdict}{why}\n"


def _cell(value: Any) -> str:
    """Text of a CSV cell: names are anybody's, so one that begins as a formula gets a mark before it."""
    if isinstance(value, str) and _FORMULA.match(value):
        return f"'{value}"
    return "" if value is None else str(value)


def _text(cell: str) -> str:
    """What `_cell` was given, of a text; numbers have no mark."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _csv(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
