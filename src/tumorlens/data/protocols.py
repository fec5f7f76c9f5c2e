"""Which images train, validate and test under each protocol, and which belong together.

- `official`: 85/15 of Training by class and seed, and all of Testing, as published.
- `twin-free-train`: the same, after leaving out every Training image that has a twin in Testing.
- `grouped-cv`: all images pooled, all but one of pixel-identical copies left out, and stratified folds
  that keep each group whole.

Groups are near-duplicates. If the user names patients, a group is all that a chain of near-duplicates and of common
patients connects, and no protocol separates it; only given `Training/` and `Testing/` folders can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.data.datasheets import TESTING
from tumorlens.data.frozen import FOLDS, TWIN_IN_TESTING, VERSION, FrozenLists, frozen_lists
from tumorlens.data.groups import Groups, group_near_duplicates, join_groups
from tumorlens.data.index import ImageRecord, Index
from tumorlens.data.near_duplicates import (
    COARSE,
    THRESHOLD,
    TRANSFORMATIONS,
    Ints,
    NearDuplicates,
    find_near_duplicates,
)
from tumorlens.data.patients import Patients, find_patients
from tumorlens.data.splits import SPLITS, Split, Strings, group_folds, hold_out, lacking_class, split_index

OFFICIAL, TWIN_FREE_TRAIN, GROUPED_CV = "official", "twin-free-train", "grouped-cv"


@dataclass(frozen=True)
class SplitOptions:
    """How the images of a data set are grouped and split."""

    protocol: str = OFFICIAL
    """`official`, `twin-free-train` or `grouped-cv`."""
    similarity: float = THRESHOLD
    """Thumbnail cosine, above 0 to 1, from which images belong together."""
    split_file: Path | None = None
    """CSV with columns path and split, for `official` only."""
    groups_file: Path | None = None
    """CSV with columns path and group (patients), joined with near-duplicates."""
    group_pattern: str | None = None
    """Regular expression with one group, the patient, which is searched for in file names."""
    group_folders: bool = True
    """Whether ten or more folders below the classes are taken as patients, unless they are named otherwise."""
    folds: int = 5
    """Number of folds of `grouped-cv`."""
    fold: int = 1
    """Fold of `grouped-cv` that is tested on, from 1. Beyond `folds` come further repeats with other random folds; 0
    tests on none, for a final model of all images."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A data set grouped and split under a protocol."""

    split: Split
    """Rows carry their group, and the most similar image of training or validation."""
    twins: NearDuplicates
    """The search behind it; its reference images are those of training and validation."""
    groups: Groups
    """Groups of near-duplicates, without patients."""
    patients: Patients | None = None
    """Patients that the user named; joined with `groups` in the rows' groups."""
    frozen: FrozenLists | None = None
    """The lists that fix groups, folds and label conflicts, if all images are version 1's and no patients are named."""

    @property
    def left_out(self) -> int:
        """Number of images that are in no split."""
        return self.split.count("")


def assign(index: Index, options: SplitOptions, *, seed: int = 0) -> Assignment:
    """Group the images of an index and split them.

    Parameters
    ----------
    index
        All usable images.
    options
        Protocol, groups and folds.
    seed
        Seed of every random choice.

    Raises
    ------
    DataError
        The protocol cannot be applied: a class without images, a file that does not fit, a single group.
    """
    similarity = options.similarity
    training = np.array([row.part != TESTING for row in index.rows])
    patients = find_patients(
        index, file=options.groups_file, pattern=options.group_pattern, folders=options.group_folders
    )
    twins = find_near_duplicates(index.thumbnails, training, floor=min(COARSE, similarity))
    lists = None if patients else frozen_lists(index.rows)
    found = (lists and lists.groups(similarity)) or group_near_duplicates(twins, similarity)
    numbers = found.numbers
    if patients:
        fewest = options.folds if options.protocol == GROUPED_CV else 3
        numbers, joined_from = _joined(index, twins, patients, similarity, fewest)
        patients = replace(patients, joined_from=joined_from)
    groups = numbers.astype(str)
    if options.protocol == GROUPED_CV:
        split = _fold(index, groups, options, seed, lists)
    elif options.protocol == TWIN_FREE_TRAIN:
        if training.all():
            raise DataError(
                f"{index.root} has no Testing folder, so no Training image can have a twin there.",
                cure="Use --protocol grouped-cv, which keeps twins together.",
            )
        if lists and similarity == THRESHOLD and lists.in_place():
            shared = lists.flagged(TWIN_IN_TESTING)
        else:
            shared = twins.having(~training, similarity)
        if patients:
            shared = shared | np.isin(groups, groups[~training])
        split = _without(index, training & shared, seed, groups if patients else None)
    else:
        split = split_index(index, seed=seed, file=options.split_file, groups=groups if patients else None)
    reference = np.array([row.split in ("train", "validation") for row in split.rows])
    if (reference != training).any():
        twins = find_near_duplicates(index.thumbnails, reference, floor=min(COARSE, similarity))
    rows = annotated(split.rows, groups, twins)
    if patients:
        rows = tuple(replace(row, patient=name) for row, name in zip(rows, patients.names, strict=True))
    return Assignment(replace(split, rows=rows), twins, found, patients, lists and replace(lists, rows=rows))


def _joined(
    index: Index, twins: NearDuplicates, patients: Patients, similarity: float, fewest: int
) -> tuple[Ints, float | None]:
    """Groups that join patients and near-duplicates, int64 [n], and the similarity from which the latter are joined.

    Near-duplicates may chain nearly all patients of a class. The similarity is then raised, as inside large groups of
    near-duplicates, until the class can be split; at the end patients alone count (None).
    """
    labels = np.array([row.label for row in index.rows])
    own = join_groups(np.arange(len(labels)), patients.names)
    level = similarity
    while level < 0.9999:
        groups = join_groups(group_near_duplicates(twins, level).numbers, patients.names)
        if all(_splits_well(groups[labels == c], own[labels == c], fewest) for c in index.classes):
            return groups, level
        level = (1 + level) / 2
    return own, None


def _splits_well(groups: Ints, patients: Ints, fewest: int) -> bool:
    """Whether joined groups of a class are as many as needed and none too large, as far as its patients allow."""
    sizes, largest = np.unique(groups, return_counts=True)[1], np.unique(patients, return_counts=True)[1].max()
    return len(sizes) >= min(fewest, len(np.unique(patients))) and sizes.max() <= max(largest, len(groups) / 3)


def annotated(rows: Sequence[ImageRecord], groups: Strings, twins: NearDuplicates) -> tuple[ImageRecord, ...]:
    """The rows with their group and their most similar reference image."""
    return tuple(
        replace(
            row,
            group=str(group),
            twin=rows[near].path if near >= 0 else "",
            # Rounded down, or a value just below a threshold would count as reaching it.
            similarity=math.floor(float(value) * 1e6) / 1e6 if near >= 0 else None,
            transformation=TRANSFORMATIONS[turn] if near >= 0 else "",
        )
        for row, group, near, value, turn in zip(
            rows, groups, twins.nearest, twins.similarity, twins.transformation, strict=True
        )
    )


def _without(index: Index, dropped: npt.NDArray[np.bool_], seed: int, groups: Strings | None) -> Split:
    """The official split without some training images; `groups` bind it if patients are named."""
    what = "a twin" if groups is None else "a group"
    kept = tuple(row for row, drop in zip(index.rows, dropped, strict=True) if not drop)
    if label := lacking_class(index.classes, (row.label for row in kept if row.part != TESTING)):
        raise DataError(
            f"Every Training image of {label!r} shares {what} with Testing, so nothing is left to train on.",
            cure="Use --protocol grouped-cv" + (", or raise --group-similarity." if groups is None else "."),
        )
    split = split_index(replace(index, rows=kept), seed=seed, groups=None if groups is None else groups[~dropped])
    split_of = {row.path: row.split for row in split.rows}
    rows = tuple(replace(row, split=split_of.get(row.path, "")) for row in index.rows)
    source = f"{split.source}, without the {int(dropped.sum()):,} Training images that share {what} with Testing"
    return replace(split, rows=rows, source=source)


def _fold(index: Index, groups: Strings, options: SplitOptions, seed: int, lists: FrozenLists | None) -> Split:
    folds, fold = options.folds, options.fold
    cure = "Use fewer --folds, name smaller groups, or raise --group-similarity."
    listed = lists.folds(options.similarity) if lists and folds == FOLDS and fold <= FOLDS else None
    chosen = distinct_images(index) if listed is None else np.flatnonzero(listed)
    labels = np.array([index.rows[i].label for i in chosen])
    own = groups[chosen]
    for label in index.classes:
        if (n := len(np.unique(own[labels == label]))) < folds:
            raise DataError(f"Class {label!r} forms only {n} group(s) of images: too few for {folds} folds.", cure=cure)
    repeat, number = divmod(fold - 1, folds)
    if repeat > 0:  # a stream of its own: seed + repeat would be the folds of another seed
        seed = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
    if not fold:
        rest, testing = np.arange(len(chosen)), np.arange(0)
    elif listed is None:
        rest, testing = group_folds(folds, labels, own, seed)[number]
    else:
        rest, testing = (np.flatnonzero((listed[chosen] == fold) == tested) for tested in (False, True))
    training, validating = hold_out(rest, labels, own, seed)
    place = np.full(len(index.rows), "", dtype="<U10")
    for name, images in zip(SPLITS, (training, validating, testing), strict=True):
        place[chosen[images]] = name
        if (fold or name != "test") and (lacking := lacking_class(index.classes, labels[images].tolist())):
            raise DataError(
                f"Fold {fold} has no {lacking!r} in its {name} split: one group holds most of that class.", cure=cure
            )
    rows = tuple(replace(row, split=str(split)) for row, split in zip(index.rows, place, strict=True))
    copies = len(index.rows) - len(chosen)
    which = f"fold {fold} of {folds} over whole groups, " if fold else "no test images, validation of whole groups, "
    source = f"{which}all images pooled, {copies:,} pixel-identical copies dropped"
    if listed is not None:
        source += f" (frozen lists {VERSION})"
    return Split(rows, source, "fold")


def distinct_images(index: Index) -> Ints:
    """Places of the rows to use, in order: the first of each set of pixel-identical pictures."""
    first = {row.pixels: i for i, row in reversed(list(enumerate(index.rows)))}
    return np.array(sorted(first.values()))
