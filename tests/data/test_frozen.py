"""The frozen lists of version 1: the shipped file, and what they fix, tried on generated images."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import freeze
import numpy as np
import pytest
from leaky_folder import LABELS
from leaky_folder import index as index  # a fixture

from tumorlens.data import frozen
from tumorlens.data.audit import leak_table, twins_line
from tumorlens.data.datasheets import V1, fingerprint
from tumorlens.data.protocols import SplitOptions, assign
from tumorlens.evaluation.leakage import leakage, without_twins
from tumorlens.evaluation.predictions import Predictions

PROTOCOLS = [
    SplitOptions("official"),
    SplitOptions("twin-free-train"),
    *(SplitOptions("grouped-cv", similarity=s, fold=fold) for s in (0.99, 0.95) for fold in (1, 5)),
]


def test_the_shipped_file_is_the_one_that_documents_quote() -> None:
    """A change of the file needs another version: figures on both are not comparable."""
    sha256 = hashlib.sha256(frozen.FILE.read_bytes()).hexdigest()
    assert (frozen.VERSION, sha256) == (
        "tumorlens-v1/1", "7193f73b3b2d92f6671f79660d73dfa937179c9f147f1d33ad65c4883f9b1295",
    )  # fmt: skip
    assert frozen.sizes() == {"test_twin_free": 315, "test_below_0.95": 132, "groups_0.99": 3558, "groups_0.95": 2220}
    lists = frozen.read_lists(frozen.FILE)
    assert lists["counts"].sum() == V1.n_images
    assert [np.bincount(folds).tolist() for folds in lists["folds"]] == [
        [129, 1319, 1319, 1320, 1319, 1320], [129, 1320, 1320, 1319, 1319, 1319],
    ]  # fmt: skip


@pytest.fixture
def listed(index, tmp_path, monkeypatch):
    """The index, as if it were version 1, with lists of its own."""
    path = tmp_path / "lists.npz"
    path.write_bytes(freeze.content(freeze.freeze(index)))
    monkeypatch.setattr(frozen, "FILE", path)
    hashes = [row.sha256 for row in index.rows]
    monkeypatch.setattr(frozen, "V1", replace(V1, fingerprint=fingerprint(hashes)))
    return index


def other_thumbnails(index):
    """The same files, decoded so differently that no thumbnail resembles another and no copy is found."""
    noise = np.random.default_rng(0).integers(0, 256, index.thumbnails.shape, np.uint8)
    rows = tuple(replace(row, pixels=f"{i:064d}") for i, row in enumerate(index.rows))
    return replace(index, rows=rows, thumbnails=noise)


@pytest.mark.parametrize("options", PROTOCOLS, ids=lambda o: f"{o.protocol} {o.similarity:g} {o.fold}")
def test_splits_and_groups_do_not_depend_on_thumbnails(options, listed, monkeypatch) -> None:
    one, two = assign(listed, options), assign(other_thumbnails(listed), options)
    assert [(r.path, r.split, r.group) for r in one.split.rows] == [(r.path, r.split, r.group) for r in two.split.rows]
    assert one.groups.version == two.groups.version == "tumorlens-v1/1"
    assert one.frozen.conflicts() == two.frozen.conflicts()
    with monkeypatch.context() as patched:  # the same as without lists
        patched.setattr("tumorlens.data.protocols.frozen_lists", lambda _: None)
        searched = assign(listed, options)
    assert [(r.split, r.group) for r in one.split.rows] == [(r.split, r.group) for r in searched.split.rows]
    assert (one.groups.oversized, one.groups.cut_pairs) == (searched.groups.oversized, searched.groups.cut_pairs)
    assert searched.groups.version is None


def test_accuracy_without_twins_uses_the_lists_and_quotes_them(listed) -> None:
    options = SplitOptions()
    expected, _ = without_twins([replace(r, sha256="0" * 64) for r in assign(listed, options).split.rows])
    rows = assign(other_thumbnails(listed), options).split.rows
    assert without_twins(rows) == (expected, "tumorlens-v1/1")
    test = [row for row in rows if row.split == "test"]
    labels = np.array([LABELS.index(row.label) for row in test])
    right = Predictions(tuple(r.path for r in test), labels, np.eye(2)[labels], ("test",) * len(test), LABELS)
    found = leakage(rows, {"net": right}, {})
    assert found["frozen_lists"] == "tumorlens-v1/1"
    assert {key: part["n"] for key, part in found["parts"].items()} == {
        "official": 24, "with_twin": 10, "twin_free": 14, "below_0.95": 14,
    }  # fmt: skip


def test_the_audit_counts_by_the_lists_and_quotes_them(listed) -> None:
    one, two = (leak_table(assign(some, SplitOptions())) for some in (listed, other_thumbnails(listed)))
    assert one["frozen_lists"] == "tumorlens-v1/1"
    assert (one["all"]["any"], one["all"]["none"]) == (two["all"]["any"], two["all"]["none"]) == (10, 14)
    assert two["all"]["exact"] == 0  # copies and orientations are searched
    assert "(frozen lists tumorlens-v1/1)" in twins_line(one)
    assert leak_table(assign(listed, SplitOptions("grouped-cv")))["frozen_lists"] is None


def test_other_images_folders_and_protocols_are_searched(listed) -> None:
    assert frozen.frozen_lists([*listed.rows, replace(listed.rows[0], sha256="0" * 64)]) is None
    rows = assign(listed, SplitOptions()).split.rows
    moved = [replace(row, part="Testing", split="test") for row in rows]
    less = [replace(row, split="" if i == len(rows) - 1 else row.split) for i, row in enumerate(rows)]
    for changed in (moved, less):
        assert without_twins(changed)[1] is None
    part = replace(listed, rows=listed.rows[1:], thumbnails=listed.thumbnails[1:])
    assert assign(part, SplitOptions()).groups.version == "tumorlens-v1/1"
    assert frozen.frozen_lists(part.rows).folds(0.99) is None  # folds of a part would not be those of the whole
    assert assign(listed, SplitOptions(similarity=0.98)).groups.version is None
