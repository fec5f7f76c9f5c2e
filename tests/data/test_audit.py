"""The audit counts twins across splits, conflicting labels and doubtful labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from folders import picture
from leaky_folder import LABELS
from leaky_folder import index as index  # a fixture
from PIL import Image

from tumorlens.data.audit import (
    audit,
    conflicts,
    label_doubts,
    leak_table,
)
from tumorlens.data.fetch import fetch
from tumorlens.data.index import build_index
from tumorlens.data.protocols import SplitOptions, assign


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


def test_an_audit_lists_the_leaks_of_each_class(index) -> None:
    found = assign(index, SplitOptions("official"))
    whole = audit(found, 0.99, index.thumbnails)
    assert whole["conflicts"] == []
    assert whole["groups"]["largest"] == 2
    assert {len(pairs) for pairs in whole["leaks"].values()} == {5}
    for counts in (whole["sequence_by_class"], whole["plane_by_class"]):
        assert sum(sum(row.values()) for row in counts.values()) == len(index.rows)


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
