"""The index lists what cannot be used with its reason, and is written and read without loss."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import draw, write_folder
from index_rows import rows

from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.data.fetch import fetch
from tumorlens.data.image_stats import ImageRecord, measure_image
from tumorlens.data.index import (
    build_index,
    read_index,
    write_index,
)


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

    def short_of_memory(path: Path) -> tuple[ImageRecord, np.ndarray]:
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


@pytest.mark.case(6)
@pytest.mark.parametrize("name", ["Testing", "valid"])
def test_a_testing_or_validation_folder_without_a_usable_image_is_an_error(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "data", train=3, test=1)
    (root / "Testing").rename(root / name)
    for path in (root / name).rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=rf"{name} holds no usable image; the first file: not an image") as caught:
        build_index(fetch(str(root), cache=tmp_path / "cache"), tmp_path / "cache")
    assert "remove the folder" in caught.value.cure


def test_index_columns(tmp_path: Path) -> None:
    write_index(tmp_path / "index.csv", rows({"a": 1}))
    with (tmp_path / "index.csv").open() as file:
        header = next(csv.reader(file))
    assert header[:3] == ["path", "sha256", "bytes"]
    assert header[-6:] == ["split", "group", "twin", "similarity", "transformation", "patient"]
