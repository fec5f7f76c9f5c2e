"""Which image trains, validates or tests. `Testing/` is never split, and nothing is chosen by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.data.columns import SPLITS as SPLITS
from tumorlens.data.columns import match_paths, read_column
from tumorlens.data.datasheets import TESTING, TRAINING, VALIDATION
from tumorlens.data.index import ImageRecord, Index

VALIDATION_SHARE = 0.15  # of Training, as published
HELD_OUT_FOLDS = 7  # one of seven, 14 %, is as near to 15 % as equal folds of whole groups come
TEST_SHARE = 0.15  # of everything, only if there is no Testing folder

Strings = npt.NDArray[np.str_]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """All images of an index with their split, and how it came to be."""

    rows: tuple[ImageRecord, ...]
    source: str
    """One phrase for the report."""
    test_source: str
    """`folder`, `split off`, `file` or `fold`."""

    def count(self, split: str) -> int:
        """Number of images in one split; of `""`, of images that are left out."""
        return sum(row.split == split for row in self.rows)


def split_index(index: Index, *, seed: int, file: Path | None = None, groups: Strings | None = None) -> Split:
    """Give every image a split: 85 % / 15 % of Training, stratified by class, and all of Testing.

    A given validation folder is used in place of the 15 %. Without a Testing folder, 15 % of each class are set apart
    for testing first. Images of a class are put in an order that depends on `seed` and their paths alone. With
    `groups`, one for each row, whole groups of Training are set apart: one of seven folds, or of fewer if a class has
    fewer groups.

    Raises
    ------
    DataError
        A class has too few images or groups, or `file` does not fit the index.
    """
    if file is not None:
        return _from_file(index, file)
    if groups is not None:
        return _by_groups(index, groups, seed)
    random = np.random.default_rng(seed)
    has_testing = any(row.part == TESTING for row in index.rows)
    training = [row for row in index.rows if row.part == TRAINING]
    split_of = {row.path: "test" for row in index.rows if row.part == TESTING}
    if not has_testing:
        split_of |= dict.fromkeys(_draw(training, TEST_SHARE, random), "test")
        training = [row for row in training if row.path not in split_of]
    given = [row.path for row in index.rows if row.part == VALIDATION]
    split_of |= dict.fromkeys(given or _draw(training, VALIDATION_SHARE, random), "validation")
    rows = tuple(replace(row, split=split_of.get(row.path, "train")) for row in index.rows)
    source = "validation folder as given" if given else "85/15 stratified by seed"
    return Split(rows, source, "folder" if has_testing else "split off")


def _by_groups(index: Index, groups: Strings, seed: int) -> Split:
    labels, parts = (np.array([getattr(row, name) for row in index.rows]) for name in ("label", "part"))
    split = np.select([parts == TESTING, parts == VALIDATION], ["test", "validation"], "train").astype("<U10")
    given = {name for name in ("test", "validation") if (split == name).any()}
    for name in ("test", "validation"):
        if name not in given:
            free = (split == "train") & ~np.isin(groups, groups[split == "validation"])
            split[hold_out(np.flatnonzero(free), labels, groups, seed)[1]] = name
    rows = tuple(replace(row, split=str(s)) for row, s in zip(index.rows, split, strict=True))
    source = "validation folder as given" if "validation" in given else "whole groups, one of seven folds, by seed"
    return Split(rows, source, "folder" if "test" in given else "split off")


def _draw(rows: Sequence[ImageRecord], share: float, random: np.random.Generator) -> list[str]:
    """Paths of about `share` of the images: the total is rounded, classes get their largest remainders."""
    labels = sorted({row.label for row in rows})
    by_class = {label: sorted(row.path for row in rows if row.label == label) for label in labels}
    exact = np.array([len(by_class[label]) * share for label in labels])
    take = np.floor(exact).astype(int)
    by_remainder = np.argsort(take - exact, kind="stable")
    take[by_remainder[: round(exact.sum()) - int(take.sum())]] += 1
    take = np.maximum(take, 1)  # a class without images in a split could not be measured there
    chosen: list[str] = []
    for label, n in zip(labels, take, strict=True):
        if len(by_class[label]) <= n:
            raise DataError(
                f"Class {label!r} has only {len(by_class[label])} image(s): too few to split.",
                cure="Give every class at least 3 images, or leave it out.",
            )
        chosen += [by_class[label][i] for i in random.permutation(len(by_class[label]))[:n]]
    return chosen


def _from_file(index: Index, file: Path) -> Split:
    split_of, unknown = match_paths([row.path for row in index.rows], read_column(file, "split"), f"--split {file}")
    missing = [row.path for row in index.rows if row.path not in split_of]
    extra = sorted(set(unknown) - {u.path for u in index.unreadable})
    if missing or extra:
        what = f"{len(missing)} image(s) have no line" if missing else f"{len(extra)} line(s) name no image"
        raise DataError(
            f"--split {file} does not fit {index.root}: {what}, first {(missing or extra)[0]!r}.",
            cure="Use the split of the same data set; paths are relative to its root.",
        )
    rows = tuple(replace(row, split=split_of[row.path]) for row in index.rows)
    for split in SPLITS:
        if label := lacking_class(index.classes, (row.label for row in rows if row.split == split)):
            raise DataError(
                f"--split {file} has no image of class {label!r} in {split!r}.", cure="Put some of its images there."
            )
    return Split(rows, f"file {file.name}", "file")


def lacking_class(classes: Sequence[str], labels: Iterable[str]) -> str | None:
    """The first class, in alphabetical order, that no label is of; None if all occur."""
    return min(set(classes) - set(labels), default=None)


def group_folds(n: int, labels: Strings, groups: Strings, seed: int) -> list[tuple[Indices, Indices]]:
    """Indices to train and to test on for each of `n` folds, stratified by label, that keep each group whole."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds: Any = StratifiedGroupKFold(n, shuffle=True, random_state=seed)  # type: ignore[no-untyped-call]
    return list(folds.split(labels, labels, groups))


def hold_out(images: Indices, labels: Strings, groups: Strings, seed: int) -> tuple[Indices, Indices]:
    """Part images into those to train on and one of seven stratified folds of whole groups.

    Parameters
    ----------
    images
        Indices into `labels` and `groups`.

    Raises
    ------
    DataError
        A class has fewer than two groups, or all of it is in one part.
    """
    own, belong = labels[images], groups[images]
    count = {str(label): len(np.unique(belong[own == label])) for label in np.unique(own)}
    scarce = min(count, key=lambda label: count[label])
    cure = "Use more data of that class, or name smaller groups."
    if count[scarce] < 2:
        raise DataError(f"Class {scarce!r} forms only one group: too few to train and validate on.", cure=cure)
    kept, held = group_folds(min(HELD_OUT_FOLDS, count[scarce]), own, belong, seed)[0]
    for part in (kept, held):
        if label := lacking_class(list(count), own[part].tolist()):
            raise DataError(f"Class {label!r} cannot be split: one group holds most of it.", cure=cure)
    return images[kept], images[held]
