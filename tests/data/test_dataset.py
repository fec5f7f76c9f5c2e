"""One way to a data set: indexed, identified, split, and recorded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from folders import write_folder

from tumorlens.core.progress import Clock
from tumorlens.data.dataset import open_dataset, open_split_dataset, split_hash
from tumorlens.data.protocols import SplitOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("dataset") / "data", train=8, test=3)


def test_a_data_set_is_recorded(folder: Path, tmp_path: Path) -> None:
    clock = Clock()
    opened = open_dataset(str(folder), cache=tmp_path, clock=clock)
    assert list(clock.steps) == ["fetch_s", "index_s"]
    record, audited = opened.record(), opened.audit_record()
    assert (record["name"], record["sheet"], record["n_images"], record["excluded"]) == ("data", None, 44, 0)
    assert record["root"] == str(folder.resolve())
    assert record["counts"]["Testing"] == dict.fromkeys(("glioma", "meningioma", "notumor", "pituitary"), 3)
    assert not record["comparable_to_published"]
    assert audited["unreadable"] == audited["same_content"] == []
    assert audited["datasheet"]["sheet"] is None


def test_a_split_is_recorded(folder: Path, tmp_path: Path) -> None:
    clock = Clock()
    opened = open_split_dataset(str(folder), SplitOptions(), cache=tmp_path, seed=3, clock=clock)
    assert list(clock.steps) == ["fetch_s", "index_s", "twins_s"]
    assert opened.split_record() == {
        "train": 27, "validation": 5, "test": 12, "seed": 3, "source": "85/15 stratified by seed",
        "test_source": "folder", "protocol": "official", "left_out": 0, "sha256": split_hash(opened.rows),
        "frozen_lists": None, "patients": None,
    }  # fmt: skip
    assert split_hash(opened.rows[::-1]) == split_hash(opened.rows)
    moved = replace(opened.rows[0], split="train" if opened.rows[0].split != "train" else "test")
    assert split_hash((moved, *opened.rows[1:])) != split_hash(opened.rows)


def test_indexing_needs_no_scipy(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.fft", None)
    assert len(open_dataset(str(folder), cache=tmp_path).index.rows) == 44
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        open_split_dataset(str(folder), SplitOptions(), cache=tmp_path, seed=0, clock=Clock())
