"""The index lists what cannot be used with its reason, and splits are stratified and repeatable."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import draw, write_folder

from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.data.fetch import fetch
from tumorlens.data.image_stats import ImageStats, measure_image
from tumorlens.data.index import (
    ImageRecord,
    Index,
    build_index,
    read_index,
    write_index,
)
from tumorlens.data.splits import read_column, split_index


def rows(n: dict[str, int], part: str = "Training") -> list[ImageRecord]:
    return [
        row(f"{part}/{label}/{i:05d}.jpg", label, part, content=f"{part}{label}{i}")
        for label, count in n.items()
        for i in range(count)
    ]


def row(path: str, label: str, part: str, *, content: str) -> ImageRecord:
    return ImageRecord(path, content, 1, 9, 9, "L", "", 0.0, 9.0, 0.0, content, label, part)


def index_of(found: list[ImageRecord]) -> Index:
    classes = tuple(sorted({r.label for r in found}))
    return Index(Path("x"), classes, tuple(found), (), np.zeros((len(found), 32, 32), np.uint8))


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
    (tmp_path / "wide.csv").write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(DataError, match=r"--split .*wide.csv is not UTF-8"):
        split_index(index, seed=0, file=tmp_path / "wide.csv")
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


def test_odd_names_survive_index_csv(tmp_path: Path) -> None:
    odd = ['a"b.jpg', "a,b.jpg", "a\rb.jpg", "a\nb.jpg", "ä é.jpg"]
    found = tuple(dataclasses.replace(rows({"x": 1})[0], path=name) for name in odd)
    write_index(tmp_path / "index.csv", found)
    assert read_index(tmp_path / "index.csv") == found


def test_damaged_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("path,sha256\na,b\n")
    with pytest.raises(RunError, match="damaged"):
        read_index(tmp_path / "index.csv")


def test_bad_files_are_listed_and_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=4, test=2)
    glioma = root / "Training" / "glioma"
    (glioma / "empty.jpg").write_bytes(b"")
    (glioma / "text.jpg").write_text("no image")
    whole = (glioma / "gl_0000.png").read_bytes()
    (glioma / "cut.png").write_bytes(whole[: len(whole) // 2])
    (glioma / "copy.png").write_bytes(whole)
    (glioma / "notes.txt").write_text("no image")
    os.mkfifo(glioma / "pipe.jpg")  # nobody will ever write to it
    Path(os.fsdecode(os.fsencode(glioma) + b"/h\xe9.png")).write_bytes(whole)
    index = build_index(fetch(str(root), cache=tmp_path / "cache"), tmp_path / "cache")
    reasons = {Path(u.path).name: u.reason for u in index.unreadable}
    assert set(reasons) == {"empty.jpg", "text.jpg", "cut.png", "notes.txt", "pipe.jpg", "h\\udce9.png"}
    assert reasons["pipe.jpg"] == "no regular file"
    assert "empty" in reasons["empty.jpg"]
    assert "not an image" in reasons["text.jpg"]
    assert index.same_content() == [["Training/glioma/copy.png", "Training/glioma/gl_0000.png"]]
    assert index.counts()["Training"] == {"glioma": 5, "meningioma": 4, "notumor": 4, "pituitary": 4}


def test_what_failed_once_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(str(write_folder(tmp_path / "data", train=3, test=1)), cache=tmp_path / "cache")

    def short_of_memory(path: Path) -> tuple[ImageStats, np.ndarray]:
        if path.name == "gl_0000.png":
            raise ImageError("cannot be decoded (MemoryError)", cure="")
        return measure_image(path)

    monkeypatch.setattr("tumorlens.data.index.measure_image", short_of_memory)
    assert len(build_index(folder, tmp_path / "cache").unreadable) == 2  # of Training and Testing
    monkeypatch.undo()
    assert not build_index(folder, tmp_path / "cache").unreadable


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(str(write_folder(tmp_path / "data", train=3, test=1)), cache=tmp_path / "cache")
    closed = folder.root / "Training" / "glioma" / "batch2"
    closed.mkdir()
    whole = os.scandir

    def scandir(path: str) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", path)
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"batch2 cannot be read \(Permission denied\)"):
        build_index(folder, tmp_path / "cache")


def test_a_changed_byte_means_a_new_look(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=3, test=1)
    folder = fetch(str(root), cache=tmp_path / "cache")
    first = build_index(folder, tmp_path / "cache")
    again = build_index(folder, tmp_path / "cache")
    assert again.rows == first.rows
    assert np.array_equal(again.thumbnails, first.thumbnails)
    draw(0, 77, size=50).save(root / "Training" / "glioma" / "gl_0000.png")
    changed = build_index(folder, tmp_path / "cache")
    assert {r.width for r in changed.rows} == {50, 96}


def test_a_class_without_a_usable_image_is_an_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=3, test=1)
    for path in (root / "Training" / "glioma").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"'glioma' has no usable training image.*empty"):
        build_index(fetch(str(root), cache=tmp_path / "cache"), tmp_path / "cache")


def test_a_testing_folder_without_a_usable_image_is_an_error(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=3, test=1)
    for path in (root / "Testing").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"Testing holds no usable image; the first file: not an image") as caught:
        build_index(fetch(str(root), cache=tmp_path / "cache"), tmp_path / "cache")
    assert "remove the folder" in caught.value.cure


def test_index_columns(tmp_path: Path) -> None:
    write_index(tmp_path / "index.csv", rows({"a": 1}))
    with (tmp_path / "index.csv").open() as file:
        header = next(csv.reader(file))
    assert header[:3] == ["path", "sha256", "bytes"]
    assert header[-5:] == ["split", "group", "twin", "similarity", "transformation"]
