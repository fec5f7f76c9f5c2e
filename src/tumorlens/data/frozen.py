"""Frozen lists of version 1: its groups of near-duplicates, test subsets, folds and label conflicts, fixed once.

Thumbnails, and with them every cosine near a threshold, depend on the library that decodes and resizes the images.
Figures "without near-duplicates" are therefore measured on lists that a file of this package holds, under a version
that the figures quote. `benchmarks/freeze.py` wrote the file with the code of `near_duplicates`, `groups` and
`protocols`. Files are named by the first 8 bytes of their SHA-256. Other data sets are searched as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.data.datasheets import TESTING, TRAINING, V1, fingerprint
from tumorlens.data.groups import Groups
from tumorlens.data.index import ImageRecord
from tumorlens.data.near_duplicates import Bools, Ints

VERSION = "tumorlens-v1/1"
FILE = Path(__file__).with_name("frozen-v1.npz")
FOLDS = 5
SIMILARITIES = (0.99, 0.95)  # for which groups and folds are listed, in this order
#: Names of the flags, by bit: Testing files without a near-duplicate in Training, those whose most similar Training
#: image is below 0.95, and Training files with a near-duplicate (0.99) in Testing.
TWIN_FREE, BELOW_COARSE, TWIN_IN_TESTING = 1, 2, 4


@cache
def read_lists(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """The arrays of the file, m distinct files in the order of their hashes.

    Returns
    -------
    mapping
        `hashes` uint64 [m]; `counts` uint8 [m, 2], files with that content in Training and in Testing; `groups`
        uint16 [2, m], by similarity; `outgrown` int64 [2, 2], groups that were cut and pairs that this separated, by
        similarity; `folds` uint8 [2, m], by similarity, 1 to 5, or 0 for a dropped pixel-identical copy; `flags`
        uint8 [m]; `conflicts` uint16 [c, 2], places of near-duplicates with different labels; `conflict_labels`
        str [c, 2]; `conflict_similarities` float64 [c].
    """
    with np.load(path) as file:
        return dict(file)


@dataclass(frozen=True, eq=False)
class FrozenLists:
    """The lists for n images, all of which are version 1's."""

    lists: Mapping[str, npt.NDArray[Any]]
    rows: Sequence[ImageRecord]
    places: Ints
    """int64 [n], the place of each image in the lists."""

    def flagged(self, flag: int) -> Bools:
        """bool [n], images whose file has a flag."""
        return np.asarray(self.lists["flags"][self.places] & flag > 0)

    def groups(self, similarity: float) -> Groups | None:
        """Groups of near-duplicates; None for a similarity that is not listed."""
        if similarity not in SIMILARITIES:
            return None
        k = SIMILARITIES.index(similarity)
        _, first, group = np.unique(self.lists["groups"][k][self.places], return_index=True, return_inverse=True)
        oversized, cut_pairs = self.lists["outgrown"][k].tolist()
        return Groups(np.argsort(np.argsort(first))[group], oversized, cut_pairs, VERSION)

    def folds(self, similarity: float) -> Ints | None:
        """int64 [n], fold of each image, 0 for dropped copies; None unless the images are the whole of version 1."""
        whole = fingerprint(row.sha256 for row in self.rows) == V1.fingerprint
        if similarity not in SIMILARITIES or not whole:
            return None
        found = np.zeros(len(self.rows), np.int64)
        _, first = np.unique(self.places, return_index=True)  # of equal files the first counts
        found[first] = self.lists["folds"][SIMILARITIES.index(similarity)]
        return found

    def in_place(self) -> bool:
        """Whether every image lies in the folder, Training or Testing, in which version 1 has it."""
        counts = self.lists["counts"][self.places]
        return all(counts[i, int(row.part == TESTING)] for i, row in enumerate(self.rows))

    def test_flags(self) -> npt.NDArray[np.uint8] | None:
        """uint8 [n], TWIN_FREE and BELOW_COARSE of test images; None for another test, or with less to train on.

        The flags hold if all of Testing tests and all of Training trains or validates.
        """
        expected = {TRAINING: ("train", "validation"), TESTING: ("test",)}
        used = all(row.split in expected.get(row.part, ()) for row in self.rows)
        return self.lists["flags"][self.places] if used and self.in_place() else None

    def conflicts(self) -> list[Json]:
        """Near-duplicates with different labels, as `audit.conflicts` lists them, if both are among the images."""
        path_of: dict[tuple[int, str], str] = {}
        for place, row in zip(self.places.tolist(), self.rows, strict=True):
            path_of.setdefault((place, row.label), row.path)
        found = []
        columns = (self.lists[key].tolist() for key in ("conflicts", "conflict_labels", "conflict_similarities"))
        for places, labels, similarity in zip(*columns, strict=True):
            paths = [path_of.get(key) for key in zip(places, labels, strict=True)]
            if all(paths):
                found.append({"paths": paths, "labels": labels, "similarity": similarity})
        return found


def frozen_lists(rows: Sequence[ImageRecord]) -> FrozenLists | None:
    """The frozen lists for the images of an index; None unless all of them are version 1's."""
    lists = read_lists(FILE)
    place_of = {f"{one:016x}": i for i, one in enumerate(lists["hashes"].tolist())}
    places = [place_of.get(row.sha256[:16], -1) for row in rows]
    return FrozenLists(lists, rows, np.array(places)) if min(places, default=-1) >= 0 else None


def sizes() -> dict[str, int]:
    """How many test images and groups the lists hold: what documents quote."""
    lists = read_lists(FILE)
    testing, flags = lists["counts"][:, 1], lists["flags"]
    return {
        "test_twin_free": int(testing[flags & TWIN_FREE > 0].sum()),
        "test_below_0.95": int(testing[flags & BELOW_COARSE > 0].sum()),
        "groups_0.99": len(np.unique(lists["groups"][0])),
        "groups_0.95": len(np.unique(lists["groups"][1])),
    }
