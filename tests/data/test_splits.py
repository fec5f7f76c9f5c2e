"""Splits are stratified and repeatable, and CSVs of splits that do not fit are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from index_rows import index_of, rows

from tumorlens.core.errors import DataError
from tumorlens.data.columns import read_column
from tumorlens.data.index import (
    read_index,
    write_index,
)
from tumorlens.data.splits import split_index


def test_version_1_splits_as_published() -> None:
    training = {"glioma": 1321, "meningioma": 1339, "notumor": 1595, "pituitary": 1457}
    testing = {"glioma": 300, "meningioma": 306, "notumor": 405, "pituitary": 300}
    split = split_index(index_of(rows(training) + rows(testing, "Testing")), seed=0)
    assert [split.count(s) for s in ("train", "validation", "test")] == [4855, 857, 1311]
    assert {r.part for r in split.rows if r.split == "test"} == {"Testing"}
    for label, n in training.items():
        held = sum(r.split == "validation" and r.label == label for r in split.rows)
        assert abs(held - 0.15 * n) < 1


def test_splits_depend_on_seed_and_paths_alone() -> None:
    found = rows({"a": 40, "b": 40})
    first = {r.path: r.split for r in split_index(index_of(found), seed=1).rows}
    again = {r.path: r.split for r in split_index(index_of(found[::-1]), seed=1).rows}
    other = {r.path: r.split for r in split_index(index_of(found), seed=2).rows}
    assert first == again
    assert first != other


def test_without_testing_a_test_part_is_split_off() -> None:
    split = split_index(index_of(rows({"a": 100, "b": 60})), seed=0)
    assert split.test_source == "split off"
    assert split.count("test") == 24
    assert split.count("validation") == 20  # 15 % of the other 136


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="'b' has only 1"):
        split_index(index_of(rows({"a": 10, "b": 1})), seed=0)


def test_split_file_round_trip_and_misfits(tmp_path: Path) -> None:
    index = index_of(rows({"a": 20, "b": 20}))
    split = split_index(index, seed=3)
    write_index(tmp_path / "index.csv", split.rows)
    assert read_index(tmp_path / "index.csv") == split.rows
    assert split_index(index, seed=99, file=tmp_path / "index.csv").rows == split.rows

    lines = (tmp_path / "index.csv").read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="1 image"):
        split_index(index, seed=0, file=tmp_path / "short.csv")
    (tmp_path / "wrong.csv").write_text("path,split\nTraining/a/00000.jpg,exam\n")
    with pytest.raises(DataError, match=r"line 2: split is 'exam'"):
        split_index(index, seed=0, file=tmp_path / "wrong.csv")
    (tmp_path / "columns.csv").write_text("file,part\n")
    with pytest.raises(DataError, match=r"--split .*columns.csv lacks the columns"):
        split_index(index, seed=0, file=tmp_path / "columns.csv")
    with pytest.raises(DataError, match=r"--split .*absent.csv cannot be read"):
        split_index(index, seed=0, file=tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_text("\n".join([*lines, "ä"]), encoding="latin-1")
    with pytest.raises(DataError, match=r"--split .*latin.csv is not UTF-8"):
        split_index(index, seed=0, file=tmp_path / "latin.csv")
    (tmp_path / "wide.csv").write_text("\n".join(lines), encoding="utf-16")
    assert split_index(index, seed=0, file=tmp_path / "wide.csv").rows == split.rows
    (tmp_path / "marked.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert split_index(index, seed=0, file=tmp_path / "marked.csv").rows == split.rows


@pytest.mark.parametrize(
    ("last", "wanted"),
    [
        ("test", "line 3: there is no path"),
        ("train,a.jpg\ntest,a.jpg", "line 4: 'a.jpg' was 'train' before, not 'test'"),
    ],
)
def test_a_line_without_a_path_or_against_another_is_refused(tmp_path: Path, last: str, wanted: str) -> None:
    (tmp_path / "split.csv").write_text(f"split,path\ntrain,b.jpg\n{last}\n")
    with pytest.raises(DataError, match=wanted):
        read_column(tmp_path / "split.csv", "split")
