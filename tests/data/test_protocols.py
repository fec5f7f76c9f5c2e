"""Protocols: no twin of a test image is trained on, groups are kept whole, and errors are explained."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from leaky_folder import LABELS, N_TEST, N_TRAIN
from leaky_folder import index as index  # a fixture

from tumorlens.core.errors import DataError
from tumorlens.data.audit import (
    leak_table,
)
from tumorlens.data.groups import group_near_duplicates
from tumorlens.data.protocols import SplitOptions, annotated, assign


def splits(assignment) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row in assignment.split.rows:
        found[row.split].append(row.path)
    return found


def test_twin_free_train_leaves_out_what_has_a_twin_in_testing(index) -> None:
    found = assign(index, SplitOptions("twin-free-train"))
    parts = splits(found)
    assert sorted(parts[""]) == [f"Training/{label}/{i:03d}.png" for label in LABELS for i in range(5)]
    assert len(parts["test"]) == 24
    assert found.left_out == 10
    assert leak_table(found)["all"]["any"] == 0
    assert all(row.similarity < 0.99 for row in found.split.rows if row.split == "test")


def test_folds_keep_groups_whole_and_test_every_picture_once(index) -> None:
    tested: list[str] = []
    for fold in (1, 2, 3):
        found = assign(index, SplitOptions("grouped-cv", folds=3, fold=fold))
        parts = splits(found)
        where = defaultdict(set)
        for row in found.split.rows:
            if row.split:
                where[row.group].add(row.split)
        assert all(len(held) == 1 for held in where.values())
        assert found.left_out == 4  # the exact copies
        assert leak_table(found)["all"]["any"] == 0
        assert {r.label for r in found.split.rows if r.split == "validation"} == set(LABELS)
        tested += parts["test"]
    assert len(tested) == len(set(tested)) == 2 * (N_TRAIN + N_TEST) - 4
    other = assign(index, SplitOptions("grouped-cv", folds=3, fold=4))  # first of a second repeat
    first = assign(index, SplitOptions("grouped-cv", folds=3, fold=1))
    assert splits(other)["test"] != splits(first)["test"]


def test_named_patients_are_joined_with_near_duplicates(index, tmp_path) -> None:
    file = tmp_path / "patients.csv"
    patient = {row.path: f"p{int(Path(row.path).stem) // 4}" for row in index.rows}
    file.write_text("path,group\n" + "".join(f"{path},{group}\n" for path, group in patient.items()))
    found = assign(index, SplitOptions("grouped-cv", groups_file=file, folds=2, fold=1))
    assert {row.path: row.patient for row in found.split.rows} == patient
    near = group_near_duplicates(found.twins).numbers.astype(str)
    for relation in (patient, dict(zip(patient, near, strict=True))):
        split_of, group_of = defaultdict(set), defaultdict(set)
        for row in found.split.rows:
            group_of[relation[row.path]].add(row.group)
            if row.split:
                split_of[relation[row.path]].add(row.split)
        assert all(len(held) == 1 for held in split_of.values())
        assert all(len(groups) == 1 for groups in group_of.values())
    file.write_text("path,group\nTraining/one/000.png,p0\n")
    with pytest.raises(DataError, match=r"gives 71 image\(s\) no group"):
        assign(index, SplitOptions("grouped-cv", groups_file=file))
    file.write_text("path,place\n")
    with pytest.raises(DataError, match=r"--groups .*patients.csv lacks the columns 'path' and 'group'"):
        assign(index, SplitOptions("grouped-cv", groups_file=file))
    with pytest.raises(DataError, match=r"--groups .*absent.csv cannot be read"):
        assign(index, SplitOptions("grouped-cv", groups_file=tmp_path / "absent.csv"))


def test_a_group_that_covers_a_class_is_an_error_in_clear_words(index, tmp_path) -> None:
    file = tmp_path / "patients.csv"
    file.write_text("path,group\n" + "".join(f"{r.path},{'all' if r.label == 'one' else r.path}\n" for r in index.rows))
    with pytest.raises(DataError, match=r"'one' forms only 1 group\(s\) of images: too few for 5 folds"):
        assign(index, SplitOptions("grouped-cv", groups_file=file))
    file.write_text("path,group\n" + "".join(f"{r.path},{r.label}\n" for r in index.rows))
    with pytest.raises(DataError, match="nothing is left to train on"):
        assign(index, SplitOptions("twin-free-train", groups_file=file))


def test_folds_of_another_repeat_are_not_those_of_another_seed(index) -> None:
    def tested(seed: int, fold: int) -> set[str]:
        found = assign(index, SplitOptions("grouped-cv", folds=3, fold=fold), seed=seed)
        return set(splits(found)["test"])

    first, again = ([tested(0, fold) for fold in folds] for folds in ((1, 2, 3), (4, 5, 6)))
    assert first != again
    assert again != [tested(1, fold) for fold in (1, 2, 3)]


def test_just_under_a_threshold_is_under_it(index) -> None:
    found = assign(index, SplitOptions("official"))
    n = len(index.rows)
    under = replace(found.twins, similarity=np.full(n, 0.9899997, np.float32))
    assert {row.similarity for row in annotated(index.rows, np.array(["g"] * n), under)} == {0.989999}
