"""What a whole volume or series is called, from the answers for its slices.

The rule is a plain one, fixed beforehand and fitted to nothing:

1. Where over half of the readable slices are refused, the volume is refused.
2. A tumour class is called that at least 3 neighbouring slices name with the verdict `ok` and a probability of
   at least 0.9 each; of several such runs the one with the greatest sum of probabilities.
3. `notumor` is called where over half of the slices that are not refused say notumor with `ok`, and no two
   neighbours name the same tumour class as in 2. Slices that cannot be read count here as saying nothing.
4. Otherwise the volume is `uncertain`.

Neighbours have numbers that follow each other; slices without numbers come after all others, and follow each other as
they were read. So a slice that is missing, unreadable, refused or uncertain ends a run. Images of the same number, as
where a file was copied, are one slice, and the one that speaks most for a tumour counts. A DICOM file whose header
cannot be read tells no series, and counts in none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath

import numpy as np

from tumorlens.core.errors import RunError
from tumorlens.inference.records import Record
from tumorlens.inference.uncertainty.verdicts import HEALTHY

NEIGHBOURS = 3
PROBABILITY = 0.9


def call_volume(slices: Sequence[Record], classes: Sequence[str]) -> Record:
    """The row for the whole, whose probabilities are means over the slices that decide.

    Parameters
    ----------
    slices
        Slices of one volume or series in any order, one or more of them readable.
    classes
        K names.
    """
    seconds = sum(row.seconds for row in slices)
    slices = sorted(_one_a_number(slices, classes), key=lambda row: (row.slice is None, row.slice or 0))
    readable = [row for row in slices if not row.failed]
    accepted = [row for row in readable if not row.refused]
    lost = _lost(slices, len(readable))
    n = len(readable) + lost

    def called(verdict: str, reason: str, deciding: Sequence[Record] = (), label: str = "") -> Record:
        reason += f"; {lost} of {n} cannot be read" if lost else ""
        return Record(
            "volume", _place(slices), series=slices[0].series, label=label, probabilities=_mean(deciding),
            verdict=verdict, reason=reason, seconds=seconds, model=slices[0].model,
        )  # fmt: skip

    if 2 * len(accepted) < len(readable):
        return called("refused: not a brain MRI", f"{len(readable) - len(accepted)} of {n} slices are refused")
    if HEALTHY not in classes:  # a healthy class of another name would count as a tumour
        return called("uncertain", f"the model has no class {HEALTHY!r}, which the rule for volumes needs", accepted)
    runs = _runs(slices, classes)
    if long := [run for run in runs if len(run) >= NEIGHBOURS]:
        best = max(long, key=lambda run: sum(row.probabilities[row.label] for row in run))
        return called("ok", f"{len(best)} neighbours of {n} slices", best, best[0].label)
    healthy = [row for row in accepted if row.label == HEALTHY and row.verdict == "ok"]
    pair = any(len(run) > 1 for run in runs)
    if 2 * len(healthy) > len(accepted) + lost and not pair:
        return called("ok", f"{len(healthy)} of {n} slices", healthy, HEALTHY)
    reason = "two neighbouring slices alone name" if pair else f"no {NEIGHBOURS} neighbouring slices name"
    return called("uncertain", f"{reason} one tumour class", accepted)


def with_volumes(
    rows: Iterable[Record], classes: Sequence[str], before: dict[str, list[Record]] | None = None
) -> Iterator[Record]:
    """The same rows, and at the end a row for the whole of each volume or series with two slices or more, one of
    them readable.

    A DICOM series can go on in any later file, so the wholes come last.

    Parameters
    ----------
    before
        Slices that an earlier run wrote, by series; an empty list for a series whose whole is written too.

    Raises
    ------
    RunError
        There is a new slice of a series whose whole an earlier run wrote.
    """
    series = {name: list(slices) for name, slices in (before or {}).items()}
    over = {name for name, slices in series.items() if not slices}
    for row in rows:
        if row.series is not None:
            if row.series in over:
                raise RunError(
                    f"{row.file} adds a slice to a series whose row for the whole is already written.",
                    cure="Name another file with --out, as the inputs changed.",
                )
            series.setdefault(row.series, []).append(row)
        yield row
    for slices in series.values():
        if len(slices) > 1 and not all(row.failed for row in slices):
            yield call_volume(slices, classes)


def _runs(slices: Sequence[Record], classes: Sequence[str]) -> list[list[Record]]:
    """Runs of neighbours that name the same tumour class with confidence."""
    runs: list[list[Record]] = []
    before: Record | None = None
    for row in slices:
        if not _names_a_tumour(row, classes):
            before = None
            continue
        if before is not None and row.label == before.label and _follows(before, row):
            runs[-1].append(row)
        else:
            runs.append([row])
        before = row
    return runs


def _follows(before: Record, row: Record) -> bool:
    if before.slice is None or row.slice is None:
        return before.slice is row.slice
    return row.slice - before.slice == 1


def _names_a_tumour(row: Record, classes: Sequence[str]) -> bool:
    sure = row.verdict == "ok" and row.label in classes and row.label != HEALTHY
    return sure and row.probabilities[row.label] >= PROBABILITY


def _one_a_number(slices: Sequence[Record], classes: Sequence[str]) -> list[Record]:
    """Of images of the same number one: a sure tumour's before others, then what was accepted, then what was read."""

    def weight(row: Record) -> tuple[bool, bool, bool, float]:
        top = max(row.probabilities.values(), default=0.0)
        return (_names_a_tumour(row, classes), not row.refused, not row.failed, top)

    kept: dict[object, Record] = {}
    for i, row in enumerate(slices):
        place = (i, "without a number") if row.slice is None else row.slice
        kept[place] = max(kept.get(place, row), row, key=weight)
    return list(kept.values())


def _mean(rows: Sequence[Record]) -> dict[str, float]:
    if not rows:
        return {}
    means = np.mean([list(row.probabilities.values()) for row in rows], axis=0)
    return dict(zip(rows[0].probabilities, means.tolist(), strict=True))


def _lost(slices: Sequence[Record], readable: int) -> int:
    """How many slices cannot be read."""
    failed = sum(row.failed for row in slices)
    if failed and len({row.file for row in slices}) == 1:
        # One row may stand for many frames; those of one file are numbered from 0, so the last tells how many.
        return 1 + max(row.slice or 0 for row in slices) - readable
    return failed


def _place(rows: Sequence[Record]) -> str:
    """The file of a volume, or the folder of a series."""
    files = {row.file for row in rows}
    return rows[0].file if len(files) == 1 else str(PurePath(rows[0].file).parent)
