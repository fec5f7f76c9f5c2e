"""The record of a volume or series, from the records of its slices.

A volume or series with two or more slices, at least one of them readable, gets a record of its own. The rule is fixed
and has no fitted parameters; the first of these that applies is the result:

1. `refused`, if more than half of the readable slices are refused.
2. `uncertain`, if the model has no class `notumor`.
3. A tumour class, if at least 3 neighbouring slices have it with the verdict `ok` and a probability of at least 0.9
   each; of several such runs the one with the greatest sum of probabilities.
4. `notumor`, if no 2 neighbouring slices have the same tumour class as in 3, and more than half of the slices have
   `notumor` with the verdict `ok`; refused slices are not counted, slices that cannot be read are.
5. `uncertain` otherwise.

Neighbours have consecutive slice numbers: a slice that is missing, unreadable, refused or uncertain ends a run. Slices
without numbers come after all others, in the order in which they were read. Images with the same number, such as copies
of a file, count as one slice, the one with the strongest evidence for a tumour. A DICOM file whose header cannot be
read belongs to no series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import PurePath

import numpy as np

from tumorlens.core.errors import RunError
from tumorlens.inference.records import Record
from tumorlens.inference.uncertainty.verdicts import NO_TUMOR

NEIGHBOURS = 3
PROBABILITY = 0.9
#: The rule in one sentence, for whoever reads a volume's result.
VOLUME_RULE = (
    f"A volume has a class if {NEIGHBOURS} neighbouring slices predict the same tumour class with {PROBABILITY:.0%} or "
    "more each, or if over half of its slices show no tumour and no two neighbours predict one; otherwise it is "
    "uncertain."
)
_UNNUMBERED = 1 << 32  # added to the position of a slice without a number: above all numbers


def call_volume(slices: Sequence[Record], classes: Sequence[str]) -> Record:
    """The record of a volume, whose probabilities are means over the slices that decide.

    Parameters
    ----------
    slices
        Slices of one volume or series in any order, at least one of them readable.
    classes
        K names.
    """
    seconds = sum(record.seconds for record in slices)
    slices = sorted(_one_per_number(slices, classes), key=lambda record: (record.slice is None, record.slice or 0))
    readable = [record for record in slices if not record.failed]
    accepted = [record for record in readable if not record.refused]
    unreadable = _count_unreadable(slices, len(readable))
    n = len(readable) + unreadable

    def called(verdict: str, reason: str, deciding: Sequence[Record] = (), label: str = "") -> Record:
        reason += f"; {unreadable} of {n} cannot be read" if unreadable else ""
        return Record(
            "volume", _file_or_folder(slices), series=slices[0].series, label=label, probabilities=_mean(deciding),
            verdict=verdict, reason=reason, seconds=seconds, model=slices[0].model,
        )  # fmt: skip

    if 2 * len(accepted) < len(readable):
        return called("refused: not a brain MRI", f"{len(readable) - len(accepted)} of {n} slices are refused")
    if NO_TUMOR not in classes:  # a healthy class with another name would count as a tumour
        return called("uncertain", f"the model has no class {NO_TUMOR!r}, which the rule for volumes needs", accepted)
    runs = _runs(slices, classes)
    if long := [run for run in runs if len(run) >= NEIGHBOURS]:
        best = max(long, key=lambda run: sum(record.probabilities[record.label] for record in run))
        return called("ok", f"{len(best)} neighbours of {n} slices", best, best[0].label)
    healthy = [record for record in accepted if record.label == NO_TUMOR and record.verdict == "ok"]
    pair = any(len(run) > 1 for run in runs)
    if 2 * len(healthy) > len(accepted) + unreadable and not pair:
        return called("ok", f"{len(healthy)} of {n} slices", healthy, NO_TUMOR)
    reason = "two neighbouring slices alone name" if pair else f"no {NEIGHBOURS} neighbouring slices name"
    return called("uncertain", f"{reason} one tumour class", accepted)


def with_volumes(
    records: Iterable[Record], classes: Sequence[str], previous: dict[str, list[Record]] | None = None
) -> Iterator[Record]:
    """The same records, and at the end one for each volume or series with two or more slices, if one is readable.

    A DICOM series can continue in any later file, so volumes come last.

    Parameters
    ----------
    previous
        Slices that an interrupted run wrote, by series; an empty list for a series whose volume is written too.

    Raises
    ------
    RunError
        There is a new slice of a series whose volume is written already.
    """
    series = {name: list(slices) for name, slices in (previous or {}).items()}
    closed = {name for name, slices in series.items() if not slices}
    for record in records:
        if record.series is not None:
            if record.series in closed:
                raise RunError(
                    f"{record.file} adds a slice to a series whose volume is written already.",
                    cure="The inputs have changed: name another file with --out.",
                )
            series.setdefault(record.series, []).append(record)
        yield record
    for slices in series.values():
        if len(slices) > 1 and not all(record.failed for record in slices):
            yield call_volume(slices, classes)


def _runs(slices: Sequence[Record], classes: Sequence[str]) -> list[list[Record]]:
    """Runs of neighbouring slices with the same tumour class, each with confidence."""
    tumours = [
        (record, i + _UNNUMBERED if record.slice is None else record.slice)
        for i, record in enumerate(slices)
        if _confident_tumour(record, classes)
    ]
    # Number minus position stays the same while the numbers are consecutive.
    runs = groupby(enumerate(tumours), lambda entry: (entry[1][0].label, entry[1][1] - entry[0]))
    return [[record for _, (record, _) in run] for _, run in runs]


def _confident_tumour(record: Record, classes: Sequence[str]) -> bool:
    sure = record.verdict == "ok" and record.label in classes and record.label != NO_TUMOR
    return sure and record.probabilities[record.label] >= PROBABILITY


def _one_per_number(slices: Sequence[Record], classes: Sequence[str]) -> list[Record]:
    """One image per slice number: a confident tumour before others, then accepted, then readable images."""

    def weight(record: Record) -> tuple[bool, bool, bool, float]:
        top = max(record.probabilities.values(), default=0.0)
        return (_confident_tumour(record, classes), not record.refused, not record.failed, top)

    kept: dict[object, Record] = {}
    for i, record in enumerate(slices):
        place = (i, "without a number") if record.slice is None else record.slice
        kept[place] = max(kept.get(place, record), record, key=weight)
    return list(kept.values())


def _mean(records: Sequence[Record]) -> dict[str, float]:
    if not records:
        return {}
    means = np.mean([list(record.probabilities.values()) for record in records], axis=0)
    return dict(zip(records[0].probabilities, means.tolist(), strict=True))


def _count_unreadable(slices: Sequence[Record], readable: int) -> int:
    """Number of slices that cannot be read."""
    failed = sum(record.failed for record in slices)
    if failed and len({record.file for record in slices}) == 1:
        # One record may stand for many frames; frames are numbered from 0, so the last number gives the count.
        return 1 + max(record.slice or 0 for record in slices) - readable
    return failed


def _file_or_folder(records: Sequence[Record]) -> str:
    """The file of a volume, or the folder of a series."""
    files = {record.file for record in records}
    return records[0].file if len(files) == 1 else str(PurePath(records[0].file).parent)
