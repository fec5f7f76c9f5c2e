"""Protocols: no twin of a test image is learned from, groups are never parted, and what cannot be done is said."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import picture
from PIL import Image

from tumorlens.core.errors import DataError
from tumorlens.data.audit import (
    audit,
    conflicts,
    label_doubts,
    leak_table,
)
from tumorlens.data.baselines import baselines, read_baselines, write_baselines
from tumorlens.data.fetch import fetch
from tumorlens.data.index import Index, build_index
from tumorlens.data.protocols import SplitOptions, annotated, assign

LABELS = ("one", "two")
N_TRAIN, N_TEST = 24, 12


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Testing holds, per class: 2 copies, 2 mirrored and darker, 1 flipped top to bottom; the others are new."""
    root = tmp_path_factory.mktemp("leaky") / "data"
    for k, label in enumerate(LABELS):
        for part in ("Training", "Testing"):
            (root / part / label).mkdir(parents=True)
        training = [picture(1000 * k + i) for i in range(N_TRAIN)]
        testing = [picture(1000 * k + 500 + i) for i in range(N_TEST)]
        testing[0], testing[1] = training[0], training[1]
        testing[2], testing[3] = (np.fliplr(training[i]) // 2 + 10 for i in (2, 3))
        testing[4] = np.flipud(training[4])
        for part, pictures in (("Training", training), ("Testing", testing)):
            for i, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(root / part / label / f"{i:03d}.png")
    cache = root.parent / "cache"
    return build_index(fetch(str(root), cache=cache), cache)


def splits(assignment) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row in assignment.split.rows:
        found[row.split].append(row.path)
    return found


def test_the_leak_table_counts_what_was_put_there(index) -> None:
    found = assign(index, SplitOptions("official"))
    table = leak_table(found)
    line = {"n": 12, "exact": 2, "same_orientation": 2, "direct_or_mirrored": 4, "any": 5, "none": 7}
    assert table["classes"] == {"one": line, "two": line}
    assert table["all"] == {key: 2 * value for key, value in line.items()}
    nothing = {"exact": 0, "same_orientation": 0, "direct_or_mirrored": 0, "any": 0}
    for part in ("validation", "train"):  # drawn so that none is like another
        counts = table["others"][part]["all"]
        assert counts == {"n": counts["n"], **nothing, "none": counts["n"]}
    twice = replace(found.split, rows=tuple(replace(r, split="train") if r.split else r for r in found.split.rows))
    within = leak_table(replace(found, split=twice))
    assert within["others"]["train"]["all"] == {
        "n": 72, "exact": 8, "same_orientation": 8, "direct_or_mirrored": 16, "any": 20, "none": 52
    }  # fmt: skip
    assert within["all"]["n"] == 0
    row = next(r for r in found.split.rows if r.path == "Testing/two/002.png")
    assert (row.twin, row.transformation) == ("Training/two/002.png", "mirrored")
    assert row.similarity == pytest.approx(1, abs=2e-4)
    assert row.group == next(r for r in found.split.rows if r.path == row.twin).group


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


def test_groups_that_the_user_names_are_used_as_they_are(index, tmp_path) -> None:
    file = tmp_path / "patients.csv"
    patient = {row.path: f"p{int(Path(row.path).stem) // 4}" for row in index.rows}
    file.write_text("path,group\n" + "".join(f"{path},{group}\n" for path, group in patient.items()))
    found = assign(index, SplitOptions("grouped-cv", groups_file=file, folds=2, fold=1))
    assert {row.path: row.group for row in found.split.rows} == patient
    split_of = defaultdict(set)
    for row in found.split.rows:
        if row.split:
            split_of[patient[row.path]].add(row.split)
    assert all(len(held) == 1 for held in split_of.values())
    file.write_text("path,group\nTraining/one/000.png,p0\n")
    with pytest.raises(DataError, match=r"gives 71 image\(s\) no group"):
        assign(index, SplitOptions("grouped-cv", groups_file=file))
    file.write_text("path,patient\n")
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


def test_audit_conflicts_and_baselines(index, tmp_path) -> None:
    found = assign(index, SplitOptions("official"))
    whole = audit(found, 0.99)
    assert whole["conflicts"] == []
    assert whole["groups"]["largest"] == 2
    assert {len(pairs) for pairs in whole["leaks"].values()} == {5}
    lines = baselines(found.split.rows, index.thumbnails)
    said = {line[0]: line for line in lines}
    assert len(lines) == 24
    assert said["Testing/one/000.png"][2:4] == ("one", "one")  # a copy
    assert said["Testing/two/002.png"][3] == "two"  # its mirror image is in Training
    write_baselines(tmp_path / "baselines.csv", lines)
    assert read_baselines(tmp_path / "baselines.csv") == {line[0]: line[2:] for line in lines}


def test_twins_with_different_labels_are_conflicts(tmp_path) -> None:
    root = tmp_path / "data"
    for part, first in (("Training", 0), ("Testing", 50)):
        for k, label in enumerate(LABELS):
            (root / part / label).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(picture(first + 10 * k + i)).save(root / part / label / f"{i}.png")
    Image.fromarray(picture(0)).save(root / "Training" / "two" / "copy.png")
    Image.fromarray(np.fliplr(picture(1))).save(root / "Training" / "two" / "mirror.png")
    index = build_index(fetch(str(root), cache=tmp_path / "c"), tmp_path / "c")
    found = assign(index, SplitOptions("official"))
    listed = conflicts(found.split.rows, found)
    assert {frozenset(c["paths"]) for c in listed} == {
        frozenset({"Training/one/0.png", "Training/two/copy.png"}),
        frozenset({"Training/one/1.png", "Training/two/mirror.png"}),
    }
    assert all(set(c["labels"]) == set(LABELS) for c in listed)


def test_label_doubts_need_agreeing_neighbours_of_other_groups(index) -> None:
    rows = assign(index, SplitOptions("official")).split.rows
    random = np.random.default_rng(0)
    features = np.stack(
        [np.r_[(3.0, 0.0) if row.label == "one" else (0.0, 3.0), random.normal(0, 0.3, 6)] for row in rows]
    ).astype(np.float32)
    assert label_doubts(features, rows) == []
    wrong = next(i for i, row in enumerate(rows) if row.label == "one")
    features[wrong] = features[next(i for i, row in enumerate(rows) if row.label == "two")]
    found = label_doubts(features, rows)
    assert [(d["path"], d["neighbours_say"]) for d in found] == [(rows[wrong].path, "two")]
    copies = [replace(row, group="one picture") if row.label == "two" else row for row in rows]
    # copies of one picture are one opinion
    assert rows[wrong].path not in {doubt["path"] for doubt in label_doubts(features, copies)}


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
