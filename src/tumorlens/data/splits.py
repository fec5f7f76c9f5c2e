"""Which image trains, validates or tests. `Testing/` is never split, and nothing is chosen by it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.data.datasheets import TESTING, TRAINING, VALIDATION
from tumorlens.data.index import ImageRecord, Index

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.15  # of Training, as published
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


def split_index(index: Index, *, seed: int, file: Path | None = None) -> Split:
    """Give every image a split: 85 % / 15 % of Training, stratified by class, and all of Testing.

    A given validation folder is used in place of the 15 %. Without a Testing folder, 15 % of each class are set apart
    for testing first. Images of a class are
    put in an order that depends on `seed` and their paths alone.

    Raises
    ------
    DataError
        A class has too few images, or `file` does not fit the index.
    """
    if file is not None:
        return _from_file(index, file)
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


def read_column(file: Path, column: Literal["split", "group"]) -> dict[str, str]:
    """Path → split or group from a CSV with these two columns, such as an earlier run's index.csv.

    Raises
    ------
    DataError
        The file cannot be read or lacks a column, or a line has no path, contradicts another, or names an
        unknown split. A group may be empty.
    """
    named = f"--{'groups' if column == 'group' else column} {file}"
    found: dict[str, str] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # spreadsheets begin UTF-8 with a mark
            reader = csv.DictReader(opened)
            if not {"path", column} <= set(reader.fieldnames or ()):
                raise DataError(
                    f"{named} lacks the columns 'path' and {column!r} (it has {reader.fieldnames}).",
                    cure="Name a CSV with both, such as a run's index.csv; paths are relative to the data set's root.",
                )
            for record in reader:
                path, value = record["path"], record[column] or ""
                if column == "split" and value and value not in SPLITS:  # empty: left out
                    raise DataError(
                        f"{named}, line {reader.line_num}: split is {value!r}.",
                        cure=f"Write one of {', '.join(SPLITS)}.",
                    )
                if not path or found.setdefault(path, value) != value:
                    what = f"{path!r} was {found[path]!r} before, not {value!r}" if path else "there is no path"
                    raise DataError(f"{named}, line {reader.line_num}: {what}.", cure=f"Give each path one {column}.")
    except UnicodeDecodeError:
        raise DataError(f"{named} is not UTF-8 text.", cure="Save it as CSV in UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{named} cannot be read ({error}).", cure="Check the path and the file.") from None
    return found


def _from_file(index: Index, file: Path) -> Split:
    split_of = read_column(file, "split")
    missing = [row.path for row in index.rows if row.path not in split_of]
    extra = sorted(set(split_of) - {row.path for row in index.rows} - {u.path for u in index.unreadable})
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
