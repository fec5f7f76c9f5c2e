"""What a data set gives away: twins across its splits, conflicting labels, shortcuts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.data.frozen import TWIN_FREE, VERSION
from tumorlens.data.index import ImageRecord
from tumorlens.data.near_duplicates import THRESHOLD, Bools
from tumorlens.data.protocols import Assignment
from tumorlens.data.sequences import sequence_tables
from tumorlens.data.shortcuts import shortcuts
from tumorlens.readers.pixels import Pixels

_SHOWN = 12  # worst leaks per class
_NEIGHBOURS = 10  # for label doubts
_AGREEING = 9  # of them with one other label
_BLOCK = 1024


def audit(assignment: Assignment, similarity: float, thumbnails: Pixels) -> Json:
    """The sections of audit.json on twins, groups, conflicting labels, leaks, shortcuts, sequences and planes.

    Parameters
    ----------
    assignment
        The split data set.
    similarity
        Thumbnail cosine, 0 to 1, from which its images were grouped.
    thumbnails
        uint8 [images, 32, 32], grey.
    """
    rows = assignment.split.rows
    return {
        "twins": leak_table(assignment),
        "groups": _groups(rows, assignment, similarity),
        "conflicts": assignment.frozen.conflicts() if assignment.frozen else conflicts(rows, assignment),
        "leaks": worst_leaks(rows),
        "shortcuts": shortcuts(rows),
        **sequence_tables(rows, thumbnails),
    }


def leak_table(assignment: Assignment) -> Json:
    """How many test images have a copy or a twin among those of training and validation, by class.

    Columns count images, each including the one before: `exact` (pixel-identical), `same_orientation`
    (cosine of at least 0.99 as it is), `direct_or_mirrored` (left to right), `any` (all eight orientations).
    `none` is the rest, which frozen lists fix if `frozen_lists` names their version. `others` counts in the same way
    the validation images with a twin in train, and the train images with a twin among the other train images.
    """
    others = {split: _counts(assignment, split, ("train",)) for split in ("validation", "train")}
    flags = assignment.frozen.test_flags() if assignment.frozen else None
    counts = _counts(assignment, "test", ("train", "validation"), None if flags is None else flags & TWIN_FREE == 0)
    version = None if flags is None else VERSION
    return {"threshold": THRESHOLD, "frozen_lists": version, **counts, "others": others}


def _counts(assignment: Assignment, split: str, among: tuple[str, ...], listed: Bools | None = None) -> Json:
    """The lines of `leak_table` for the images of `split`, with a twin in one of the splits `among`.

    `listed`, bool [n], says which images have one if lists fix it.
    """
    rows, twins = assignment.split.rows, assignment.twins
    own = np.array([row.split == split for row in rows], bool)
    reference = np.array([row.split in among for row in rows], bool)
    known = Counter(row.pixels for row, used in zip(rows, reference, strict=True) if used)
    exact = np.array([known[row.pixels] > used for row, used in zip(rows, reference, strict=True)], bool)
    orientations = {"same_orientation": slice(0, 1), "direct_or_mirrored": slice(0, 2), "any": slice(None)}
    columns = {"exact": exact} | {
        name: twins.having(reference, THRESHOLD, some) | exact for name, some in orientations.items()
    }
    if listed is not None:
        columns = {name: found & listed for name, found in columns.items()} | {"any": listed}
    labels = np.array([row.label for row in rows])

    def line(chosen: Bools) -> dict[str, int]:
        counts = {name: int(np.sum(found & chosen)) for name, found in columns.items()}
        n = int(chosen.sum())
        return {"n": n, **counts, "none": n - counts["any"]}

    by_class = {label: line(own & (labels == label)) for label in sorted(set(labels[own].tolist()))}
    return {"classes": by_class, "all": line(own)}


def twins_line(table: Json) -> str:
    """One line for the terminal about the last row of a leak table."""
    counts, lists = table["all"], f" (frozen lists {table['frozen_lists']})" if table["frozen_lists"] else ""
    n, twins = counts["n"], counts["any"]
    if not twins:
        return f"Twins: none of the {n:,} test images has one among the training images."
    return (
        f"Twins: {twins:,} of {n:,} test images ({twins / n:.1%}) have one among the training images{lists}, "
        f"{counts['exact']:,} of them pixel-identical."
    )


def _groups(rows: Sequence[ImageRecord], assignment: Assignment, similarity: float) -> Json:
    names, counts = np.unique([row.group for row in rows], return_counts=True)
    found = assignment.groups
    return {
        "from": assignment.patients.source if assignment.patients else "twins",
        "similarity": similarity,
        "frozen_lists": found.version,
        "n": len(names),
        "alone": int(np.sum(counts == 1)),
        "largest": int(counts.max()),
        "outgrown": found.oversized,
        "cut_pairs": found.cut_pairs,
    }


def conflicts(rows: Sequence[ImageRecord], assignment: Assignment) -> list[Json]:
    """Pairs of twins with different labels, nearest first.

    A pair of distinct thumbnails represents all images that share them; one image of each label is named.
    """
    twins = assignment.twins
    by_thumbnail: dict[int, dict[str, int]] = defaultdict(dict)
    for i, row in enumerate(rows):
        by_thumbnail[int(twins.distinct[i])].setdefault(row.label, i)
    found: list[tuple[float, int, int]] = []
    for held in by_thumbnail.values():
        first, *others = held.values()
        found += [(1.0, first, other) for other in others]
    similarity = twins.similarities.max(1, initial=-1)
    for k in np.flatnonzero(similarity >= THRESHOLD):
        one, two = (by_thumbnail[int(d)] for d in twins.pairs[k])
        if other := next(((i, j) for a, i in one.items() for b, j in two.items() if a != b), None):
            found.append((float(similarity[k]), *other))
    found.sort(key=lambda item: (-item[0], rows[item[1]].path))
    return [
        {"paths": [rows[i].path, rows[j].path], "labels": [rows[i].label, rows[j].label], "similarity": round(s, 4)}
        for s, i, j in found
    ]


def worst_leaks(rows: Sequence[ImageRecord]) -> dict[str, list[Json]]:
    """By class, the test images that are most similar to a training image, with that image."""
    found: dict[str, list[Json]] = {}
    for label in sorted({row.label for row in rows}):
        own = [r for r in rows if r.label == label and r.split == "test" and (r.similarity or 0) >= THRESHOLD]
        # Each group once, rather than ten copies of one picture.
        once = {row.group: row for row in sorted(own, key=lambda r: (r.similarity or 0, r.path))}
        worst = sorted(once.values(), key=lambda r: (-(r.similarity or 0), r.path))[:_SHOWN]
        found[label] = [
            {"path": r.path, "twin": r.twin, "similarity": r.similarity, "transformation": r.transformation}
            for r in worst
        ]
    return found


def label_doubts(features: npt.NDArray[np.float32], rows: Sequence[ImageRecord]) -> list[Json]:
    """Images whose neighbours nearly all have one other label: a list to look at; no label is changed.

    Neighbours are the ten nearest images by cosine of frozen features. The image's own group is left out,
    so that a twin cannot confirm its label, and of each other group only the nearest counts, as copies of one
    picture are one opinion. A label is doubted if at least nine neighbours share one other label.

    Parameters
    ----------
    features
        float32 [n, d], one row per image of `rows`.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    names, labels = np.unique([row.label for row in rows], return_inverse=True)
    by_group = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[by_group], np.arange(groups.max() + 1))
    members = np.split(by_group, starts[1:])
    k = min(_NEIGHBOURS, len(starts) - 1)
    if k < _AGREEING:
        return []
    found: list[Json] = []
    for start in range(0, len(rows), _BLOCK):
        stop = min(start + _BLOCK, len(rows))
        cosine = unit[start:stop] @ unit.T
        nearest = np.maximum.reduceat(cosine[:, by_group], starts, axis=1)  # (block, groups)
        nearest[np.arange(stop - start), groups[start:stop]] = -2  # the own one
        near = np.argpartition(-nearest, k - 1, axis=1)[:, :k]
        for i, neighbours in enumerate(near):
            nearest_ones = [m[cosine[i, m].argmax()] for m in (members[g] for g in neighbours)]
            votes = np.bincount(labels[nearest_ones], minlength=len(names))
            winner = int(votes.argmax())
            if winner != labels[start + i] and votes[winner] >= _AGREEING:
                found.append(
                    {"path": rows[start + i].path, "label": rows[start + i].label, "neighbours_say": str(names[winner]),
                     "agreeing": int(votes[winner]), "of": k}
                )  # fmt: skip
    return sorted(found, key=lambda item: (-item["agreeing"], item["path"]))
