"""Write the frozen lists of version 1 that the package ships: groups, test subsets, folds and label conflicts.

    python benchmarks/freeze.py --data brain-tumor-mri-dataset-v1.zip [--check]

Everything is computed by the code of the package, with no look at the lists that it ships. `--check` compares the
result with the shipped file instead of writing it, and exits with 1 if they differ. The file is not compressed, so
that equal lists are equal bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.core.files import cache_dir
from tumorlens.data import frozen
from tumorlens.data.audit import conflicts
from tumorlens.data.dataset import open_dataset
from tumorlens.data.datasheets import TESTING, TRAINING
from tumorlens.data.groups import group_near_duplicates
from tumorlens.data.index import Index
from tumorlens.data.near_duplicates import COARSE, THRESHOLD, find_near_duplicates
from tumorlens.data.protocols import Assignment, annotated, distinct_images
from tumorlens.data.splits import Split, group_folds


def freeze(index: Index) -> dict[str, Any]:
    """The arrays of the file, as `frozen.read_lists` describes them; seed 0."""
    training = np.array([row.part == TRAINING for row in index.rows])
    twins = find_near_duplicates(index.thumbnails, training, floor=COARSE)
    rows = annotated(index.rows, np.full(len(training), ""), twins)
    similarity = np.array([row.similarity for row in rows])
    flags = np.where(
        training, 0, frozen.TWIN_FREE * (similarity < THRESHOLD) + frozen.BELOW_COARSE * (similarity < COARSE)
    )
    flags[training & twins.having(~training, THRESHOLD)] |= frozen.TWIN_IN_TESTING
    own = np.array([int(row.sha256[:16], 16) for row in rows], np.uint64)
    hashes, first, place = np.unique(own, return_index=True, return_inverse=True)
    combined = np.zeros(len(hashes), np.uint8)
    np.bitwise_or.at(combined, place, flags.astype(np.uint8))
    found = [group_near_duplicates(twins, similarity) for similarity in frozen.SIMILARITIES]
    in_part = Counter((int(p), row.part) for p, row in zip(place, rows, strict=True))
    pairs = conflicts(rows, Assignment(Split(rows, "", "folder"), twins, found[0]))
    place_of = {row.path: int(p) for p, row in zip(place, rows, strict=True)}
    return {
        "hashes": hashes,
        "counts": np.array([[in_part[p, part] for part in (TRAINING, TESTING)] for p in range(len(hashes))], np.uint8),
        "groups": np.array([one.numbers[first] for one in found], np.uint16),
        "outgrown": np.array([[one.oversized, one.cut_pairs] for one in found], np.int64),
        "folds": np.array([_folds(index, one.numbers, place) for one in found], np.uint8),
        "flags": combined,
        "conflicts": np.array([[place_of[p] for p in pair["paths"]] for pair in pairs], np.uint16).reshape(-1, 2),
        "conflict_labels": np.array([pair["labels"] for pair in pairs], str).reshape(-1, 2),
        "conflict_similarities": np.array([pair["similarity"] for pair in pairs], np.float64),
    }


def _folds(index: Index, groups: Any, place: Any) -> Any:
    """Fold of each distinct file, from 1; 0 if it is a dropped copy."""
    chosen = distinct_images(index)
    labels = np.array([index.rows[i].label for i in chosen])
    folds = np.zeros(place.max() + 1, np.uint8)
    for k, (_, testing) in enumerate(group_folds(frozen.FOLDS, labels, groups[chosen].astype(str), 0), 1):
        folds[place[chosen[testing]]] = k
    return folds


def content(lists: dict[str, Any]) -> bytes:
    """The file, not compressed."""
    file = io.BytesIO()
    np.savez(file, **lists)
    return file.getvalue()


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="version 1, as a zip or folder")
    parser.add_argument("--cache", type=Path, default=cache_dir())
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    dataset = open_dataset(options.data, cache=options.cache)
    if not dataset.identity.comparable:
        sys.exit(f"{options.data} is not version 1: {' '.join(dataset.identity.notes)}")
    made = content(freeze(dataset.index))
    print(f"{frozen.VERSION}: {len(made):,} bytes, SHA-256 {hashlib.sha256(made).hexdigest()}")
    if options.check:
        same = made == frozen.FILE.read_bytes()
        print("as shipped" if same else f"differs from {frozen.FILE}")
        return int(not same)
    frozen.FILE.write_bytes(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
