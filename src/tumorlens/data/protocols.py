"""Which images train, validate and test under each protocol, and which belong together.

- `official`: 85/15 of Training by class and seed, and all of Testing, as published.
- `twin-free-train`: the same, after leaving out every Training image that has a twin in Testing.
- `grouped-cv`: all images pooled, all but one of pixel-identical copies left out, and stratified folds
  that keep each group whole.
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
from tumorlens.data.groups import Groups, group_near_duplicates
from tumorlens.data.index import ImageRecord, Index
from tumorlens.data.near_duplicates import (
    COARSE,
    THRESHOLD,
    TRANSFORMATIONS,
    Ints,
    NearDuplicates,
    find_near_duplicates,
)
from tumorlens.data.splits import SPLITS, Split, Strings, group_folds, lacking_class, read_column, split_index

OFFICIAL, TWIN_FREE_TRAIN, GROUPED_CV = "official", "twin-free-train", "grouped-cv"
_VALIDATION_FOLDS = 7  # one of seven, 14 %, is as near to 15 % as equal folds of whole groups come


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
    """CSV with columns path and group (patients), used in place of near-duplicates."""
    folds: int = 5
    """Number of folds of `grouped-cv`."""
    fold: int = 1
    """Fold of `grouped-cv` that is tested on, from 1. Beyond `folds` come further repeats with other random folds."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A data set grouped and split under a protocol."""

    split: Split
    """Rows carry their group, and the most similar image of training or validation."""
    twins: NearDuplicates
    """The search behind it; its reference images are those of training and validation."""
    groups: Groups | None
    """Groups of near-duplicates; None if the user named groups."""
    frozen: FrozenLists | None = None
    """The lists that fix groups, folds and label conflicts, if all images are version 1's and no groups were named."""

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
    similarity, groups_file = options.similarity, options.groups_file
    lists = None if groups_file else frozen_lists(index.rows)
    training = np.array([row.part != TESTING for row in index.rows])
    twins = find_near_duplicates(index.thumbnails, training, floor=min(COARSE, similarity))
    found = (lists and lists.groups(similarity)) or (None if groups_file else group_near_duplicates(twins, similarity))
    groups = _from_file(index, groups_file) if groups_file else found.numbers.astype(str)  # type: ignore[union-attr]
    if options.protocol == GROUPED_CV:
        split = _fold(index, groups, options, seed, lists)
    elif options.protocol == TWIN_FREE_TRAIN:
        if training.all():
            raise DataError(
                f"{index.root} has no Testing folder, so no Training image can have a twin there.",
                cure="Use --protocol grouped-cv, which keeps twins together.",
            )
        if groups_file:
            shared = np.isin(groups, groups[~training])
        elif lists and similarity == THRESHOLD and lists.in_place():
            shared = lists.flagged(TWIN_IN_TESTING)
        else:
            shared = twins.having(~training, similarity)
        split = _without(index, training & shared, seed, "a group" if groups_file else "a twin")
    else:
        split = split_index(index, seed=seed, file=options.split_file)
    reference = np.array([row.split in ("train", "validation") for row in split.rows])
    if (reference != training).any():
        twins = find_near_duplicates(index.thumbnails, reference, floor=min(COARSE, similarity))
    rows = annotated(split.rows, groups, twins)
    return Assignment(replace(split, rows=rows), twins, found, lists and replace(lists, rows=rows))


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


def _without(index: Index, dropped: npt.NDArray[np.bool_], seed: int, what: str) -> Split:
    kept = tuple(row for row, drop in zip(index.rows, dropped, strict=True) if not drop)
    if label := lacking_class(index.classes, (row.label for row in kept if row.part != TESTING)):
        raise DataError(
            f"Every Training image of {label!r} shares {what} with Testing, so nothing is left to train on.",
            cure="Use --protocol grouped-cv" + (", or raise --group-similarity." if what == "a twin" else "."),
        )
    split = split_index(replace(index, rows=kept), seed=seed)
    split_of = {row.path: row.split for row in split.rows}
    rows = tuple(replace(row, split=split_of.get(row.path, "")) for row in index.rows)
    source = f"{split.source}, without the {int(dropped.sum()):,} Training images that share {what} with Testing"
    return replace(split, rows=rows, source=source)


def _fold(index: Index, groups: Strings, options: SplitOptions, seed: int, lists: FrozenLists | None) -> Split:
    folds, fold = options.folds, options.fold
    cure = "Use fewer --folds, or " + ("name smaller groups." if options.groups_file else "raise --group-similarity.")
    listed = lists.folds(options.similarity) if lists and folds == FOLDS and fold <= FOLDS else None
    chosen = distinct_images(index) if listed is None else np.flatnonzero(listed)
    labels = np.array([index.rows[i].label for i in chosen])
    own = groups[chosen]
    for label in index.classes:
        if (n := len(np.unique(own[labels == label]))) < folds:
            raise DataError(f"Class {label!r} forms only {n} group(s) of images: too few for {folds} folds.", cure=cure)
    repeat, number = divmod(fold - 1, folds)
    if repeat:  # a stream of its own: seed + repeat would be the folds of another seed
        seed = int(np.random.SeedSequence([seed, repeat]).generate_state(1)[0])
    if listed is None:
        rest, testing = group_folds(folds, labels, own, seed)[number]
    else:
        rest, testing = (np.flatnonzero((listed[chosen] == fold) == tested) for tested in (False, True))
    fewest = min(len(np.unique(own[rest][labels[rest] == label])) for label in index.classes)
    if fewest < 2:
        raise DataError(f"Fold {fold} leaves a class with {fewest} group(s) to train and validate on.", cure=cure)
    training, validating = group_folds(min(_VALIDATION_FOLDS, fewest), labels[rest], own[rest], seed)[0]
    place = np.full(len(index.rows), "", dtype="<U10")
    for name, images in zip(SPLITS, (rest[training], rest[validating], testing), strict=True):
        place[chosen[images]] = name
        if lacking := lacking_class(index.classes, labels[images].tolist()):
            raise DataError(
                f"Fold {fold} has no {lacking!r} in its {name} split: one group holds most of that class.", cure=cure
            )
    rows = tuple(replace(row, split=str(split)) for row, split in zip(index.rows, place, strict=True))
    copies = len(index.rows) - len(chosen)
    source = f"fold {fold} of {folds} over whole groups, all images pooled, {copies:,} pixel-identical copies dropped"
    if listed is not None:
        source += f" (frozen lists {VERSION})"
    return Split(rows, source, "fold")


def distinct_images(index: Index) -> Ints:
    """Places of the rows to use, in order: the first of each set of pixel-identical pictures."""
    first = {row.pixels: i for i, row in reversed(list(enumerate(index.rows)))}
    return np.array(sorted(first.values()))


def _from_file(index: Index, file: Path) -> Strings:
    """Group of each row."""
    group_of = read_column(file, "group")
    missing = [row.path for row in index.rows if not group_of.get(row.path)]
    if missing:
        raise DataError(
            f"--groups {file} gives {len(missing)} image(s) no group, first {missing[0]!r}.",
            cure="Give every image a group: its patient.",
        )
    return np.array([group_of[row.path] for row in index.rows])
