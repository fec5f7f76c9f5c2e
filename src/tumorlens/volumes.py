"""What a whole volume or series is called, from the answers for its slices.

The rule is a plain one, fixed beforehand and fitted to nothing:

1. Where over half of the slices are refused, the volume is refused.
2. A tumour class is called that at least 3 neighbouring slices name with the verdict `ok` and a probability of
   at least 0.9 each; of several such runs the one with the greatest sum of probabilities.
3. `notumor` is called where at least half of the slices that are not refused say notumor with `ok`, and no two
   neighbours name the same tumour class as in 2.
4. Otherwise the volume is `uncertain`.

Neighbours have numbers that follow each other; slices without numbers follow each other as they were read. So a
slice that is missing, unreadable, refused or uncertain ends a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from tumorlens.errors import RunError
from tumorlens.rows import Row

NO_TUMOUR = "notumor"
NEIGHBOURS = 3
PROBABILITY = 0.9


def call_volume(slices: Sequence[Row], classes: Sequence[str]) -> Row:
    """The row for the whole, whose probabilities are means over the slices that decide.

    Parameters
    ----------
    slices
        Readable slices of one volume or series in any order, one or more.
    classes
        K names.
    """
    if all(row.slice is not None for row in slices):
        slices = sorted(slices, key=lambda row: row.slice or 0)
    accepted = [row for row in slices if not row.refused]
    whole = Row("volume", _place(slices), slices[0].series, None, "", (), (), "uncertain", "", None,
                sum(row.seconds for row in slices))  # fmt: skip
    if 2 * len(accepted) < len(slices):
        reason = f"{len(slices) - len(accepted)} of {len(slices)} slices are refused"
        return replace(whole, verdict="refused: not a brain MRI", reason=reason)
    if NO_TUMOUR not in classes:  # a healthy class of another name would count as a tumour
        reason = f"the model has no class {NO_TUMOUR!r}, which the rule for volumes needs"
        return replace(whole, probabilities=_mean(accepted), reason=reason)
    runs = _runs(slices, classes)
    if long := [run for run in runs if len(run) >= NEIGHBOURS]:
        best = max(long, key=lambda run: sum(max(row.probabilities) for row in run))
        reason = f"{len(best)} neighbours of {len(slices)} slices"
        return replace(whole, label=best[0].label, probabilities=_mean(best), verdict="ok", reason=reason)
    healthy = [row for row in accepted if row.label == NO_TUMOUR and row.verdict == "ok"]
    pair = any(len(run) > 1 for run in runs)
    if 2 * len(healthy) >= len(accepted) and not pair:
        reason = f"{len(healthy)} of {len(slices)} slices"
        return replace(whole, label=NO_TUMOUR, probabilities=_mean(healthy), verdict="ok", reason=reason)
    reason = "two neighbouring slices alone name" if pair else f"no {NEIGHBOURS} neighbouring slices name"
    return replace(whole, probabilities=_mean(accepted), reason=f"{reason} one tumour class")


def with_volumes(
    rows: Iterable[Row], classes: Sequence[str], before: dict[str, list[Row]] | None = None
) -> Iterator[Row]:
    """The same rows, and at the end a row for the whole of each volume or series with two slices or more.

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
        if row.series is not None and not row.failed:
            if row.series in over:
                raise RunError(
                    f"{row.file} adds a slice to a series whose row for the whole is already written.",
                    cure="Name another file with --out, as the inputs changed.",
                )
            series.setdefault(row.series, []).append(row)
        yield row
    for slices in series.values():
        if len(slices) > 1:
            yield call_volume(slices, classes)


def _runs(slices: Sequence[Row], classes: Sequence[str]) -> list[list[Row]]:
    """Runs of neighbours that name the same tumour class with confidence."""
    runs: list[list[Row]] = []
    before: Row | None = None
    for row in slices:
        sure = row.verdict == "ok" and row.label in classes and row.label != NO_TUMOUR
        if not sure or max(row.probabilities) < PROBABILITY:
            before = None
            continue
        if before is not None and row.label == before.label and _follows(before, row):
            runs[-1].append(row)
        else:
            runs.append([row])
        before = row
    return runs


def _follows(before: Row, row: Row) -> bool:
    return before.slice is None or row.slice is None or row.slice == before.slice + 1


def _mean(rows: Sequence[Row]) -> tuple[float, ...]:
    return tuple(np.mean([row.probabilities for row in rows], axis=0).tolist())


def _place(rows: Sequence[Row]) -> str:
    """The file of a volume, or the folder of a series."""
    files = {row.file for row in rows}
    return rows[0].file if len(files) == 1 else str(PurePath(rows[0].file).parent)
