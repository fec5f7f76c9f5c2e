"""The records of the volumes of a file or series, from the records of their slices.

A file or series may hold several volumes, such as echoes or orientations (`readers.places`). Each with two or more
places gets a record of its own, if one of its slices is readable. The rule is fixed and has no fitted parameters; the
first of these that applies is the result:

1. `refused`, if more than half of the readable slices are refused.
2. `uncertain`, if the model has no class `notumor`.
3. A tumour class, if at least 3 neighbouring slices have it with the verdict `ok` and a probability of at least 0.9
   each; of several such runs the one with the greatest sum of probabilities.
4. `notumor`, if no 2 neighbouring slices have the same tumour class as in 3, and more than half of the slices have
   `notumor` with the verdict `ok`; refused slices are not counted, slices that cannot be read are.
5. `uncertain` otherwise.

Neighbours lie next to each other in space, by the positions in the DICOM header; without them (and in other formats)
they have consecutive slice numbers. A slice that is missing, unreadable, refused or uncertain ends a run. Slices
without numbers come after all others, in the order in which they were read. Copies of one image count as one slice, the
one with the strongest evidence for a tumour. A DICOM file whose header cannot be read belongs to no series. Images of a
single place are no volume: they are `uncertain` together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import PurePath

import numpy as np

from tumorlens.core.errors import RunError
from tumorlens.core.progress import log
from tumorlens.inference.records import Record
from tumorlens.inference.resume import PreviousRecords
from tumorlens.inference.uncertainty.verdicts import NO_TUMOR
from tumorlens.readers.places import Volume, part

NEIGHBOURS = 3
PROBABILITY = 0.9
#: The rule in one sentence, for whoever reads a volume's result.
VOLUME_RULE = (
    f"A volume has a class if {NEIGHBOURS} neighbouring slices predict the same tumour class with {PROBABILITY:.0%} or "
    "more each, or if over half of its slices show no tumour and no two neighbours predict one; otherwise it is "
    "uncertain."
)


def call_volumes(images: Sequence[Record], classes: Sequence[str]) -> list[Record]:
    """The records of the volumes among the images, whose probabilities are means over the slices that decide.

    Parameters
    ----------
    images
        Slices of one file or series in any order, at least one of them readable.
    classes
        K names.
    """
    placed = any(record.place.position is not None for record in images)
    # Among placed images, one without a position that cannot be read may belong to any volume.
    known = [r for r in images if not (placed and r.failed and r.place.position is None)]
    lost = len(images) - len(known)
    if any(record.failed for record in images) and len({record.file for record in images}) == 1:
        # One record may stand for many frames; frames are numbered from 0, so the last number gives the count.
        lost = 1 + max(record.slice or 0 for record in images) - len(known)
    volumes = part([(record.place, record.slice) for record in known])
    several = [volume for volume in volumes if len(volume.spots) > 1]
    if len(volumes) == 1:
        return [_call(known, volumes[0], classes, lost)]
    if not several:
        flat = Volume("", [(2 * k, volume.images) for k, volume in enumerate(volumes)], placed=True)
        together = _call(known, flat, classes, lost)
        what = f"{len(known)} images of {len(volumes)} volumes with a single place each ({_names(volumes)})"
        return [together if together.refused else replace(together, label="", verdict="uncertain", reason=what)]
    log.warning(
        f"{images[0].series} holds {len(volumes)} volumes ({_names(volumes)}), {len(several)} of them with two or more "
        "slices, which get a result each. --volume N reads only one of them."
    )
    found = []
    for number, volume in enumerate(volumes, 1):
        if volume in several and not all(known[i].failed for i in volume.images):
            record = _call(known, volume, classes, lost)
            which = f"volume {number} of {len(volumes)} ({volume.name}): "
            found.append(replace(record, reason=which + record.reason))
    return found


def _names(volumes: Sequence[Volume]) -> str:
    """Names of the volumes; of many, the first and the last."""
    names = [volume.name for volume in volumes]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"


def _call(images: Sequence[Record], volume: Volume, classes: Sequence[str], lost: int) -> Record:
    """The record of one volume; `lost` slices of it, at most, have no record of their own that can be placed."""
    spots = [(number, _strongest([images[i] for i in members], classes)) for number, members in volume.spots]
    slices = [record for _, record in spots]
    readable = [record for record in slices if not record.failed]
    accepted = [record for record in readable if not record.refused]
    unreadable = len(slices) - len(readable) + lost
    n = len(slices) + lost

    def called(verdict: str, reason: str, deciding: Sequence[Record] = (), label: str = "") -> Record:
        if not volume.placed and slices[0].place.traits and not verdict.startswith("refused"):
            reason += "; in the order of their numbers, as the header has no positions"
        reason += f"; {unreadable} of {n} cannot be read" if unreadable else ""
        return Record(
            "volume", _file_or_folder(slices), series=slices[0].series, label=label, probabilities=_mean(deciding),
            verdict=verdict, reason=reason, seconds=sum(images[i].seconds for i in volume.images),
            model=slices[0].model,
        )  # fmt: skip

    if 2 * len(accepted) < len(readable):
        return called("refused: not a brain MRI", f"{len(readable) - len(accepted)} of {n} slices are refused")
    if NO_TUMOR not in classes:  # a healthy class with another name would count as a tumour
        return called("uncertain", f"the model has no class {NO_TUMOR!r}, which the rule for volumes needs", accepted)
    runs = _runs(spots, classes)
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
    records: Iterable[Record], classes: Sequence[str], previous: PreviousRecords | None = None
) -> Iterator[Record]:
    """The same records, and at the end those of the volumes of each file or series with two or more slices.

    A DICOM series can continue in any later file, so volumes come last.

    Parameters
    ----------
    previous
        What an interrupted run wrote.

    Raises
    ------
    RunError
        There is a new slice of a series of which a volume is written already.
    """
    previous = previous or PreviousRecords()
    fresh: dict[str, list[Record]] = {}
    for record in records:
        if record.series is not None:
            if record.series in previous.volumes:
                raise RunError(
                    f"{record.file} adds a slice to a series whose volume is written already.",
                    cure="The inputs have changed: name another file with --out.",
                )
            fresh.setdefault(record.series, []).append(record)
        yield record
    for name in dict.fromkeys([*previous.slices, *fresh]):
        slices = [*previous.placed(name), *fresh.get(name, ())]
        if len(slices) > 1 and not all(record.failed for record in slices):
            yield from call_volumes(slices, classes)[previous.volumes[name] :]


def _runs(spots: Sequence[tuple[int, Record]], classes: Sequence[str]) -> list[list[Record]]:
    """Runs of neighbouring slices with the same tumour class, each with confidence."""
    tumours = [(number, record) for number, record in spots if _confident_tumour(record, classes)]
    # Number minus position stays the same while the numbers are consecutive.
    runs = groupby(enumerate(tumours), lambda entry: (entry[1][1].label, entry[1][0] - entry[0]))
    return [[record for _, (_, record) in run] for _, run in runs]


def _confident_tumour(record: Record, classes: Sequence[str]) -> bool:
    sure = record.verdict == "ok" and record.label in classes and record.label != NO_TUMOR
    return sure and record.probabilities[record.label] >= PROBABILITY


def _strongest(copies: Sequence[Record], classes: Sequence[str]) -> Record:
    """One of the copies of an image: a confident tumour before others, then accepted, then readable ones."""

    def weight(record: Record) -> tuple[bool, bool, bool, float]:
        top = max(record.probabilities.values(), default=0.0)
        accepted = not record.refused and not record.failed
        return (_confident_tumour(record, classes), accepted, not record.failed, top)

    return max(copies, key=weight)


def _mean(records: Sequence[Record]) -> dict[str, float]:
    if not records:
        return {}
    means = np.mean([list(record.probabilities.values()) for record in records], axis=0)
    return dict(zip(records[0].probabilities, means.tolist(), strict=True))


def _file_or_folder(records: Sequence[Record]) -> str:
    """The file of a volume, or the folder of a series."""
    files = {record.file for record in records}
    return records[0].file if len(files) == 1 else str(PurePath(records[0].file).parent)
