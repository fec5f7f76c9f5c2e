"""Generated data sets, paths that cannot be used, and which folders hold training and test images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tumorlens.core.errors import DataError
from tumorlens.data import fetch, layout
from tumorlens.data.layout import find_image_folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_phantom_is_made_once_a_seed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Generator:
        GENERATOR = 7

        @staticmethod
        def write_dataset(folder: Path, *, seed: int = 0) -> Path:
            made.append(seed)
            for name in ("Training/glioma/1.png", "Training/notumor/1.png", "masks/1.png", "phantom.json"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            return folder

    monkeypatch.setitem(sys.modules, "tumorlens.data.phantom.generator", Generator)  # type: ignore[arg-type]
    first = fetch.fetch("phantom", cache=cache, seed=3)
    assert first == fetch.fetch("phantom", cache=cache, seed=3)
    assert first.root == cache / "phantom" / "v7-seed3"
    assert first.classes == ("glioma", "notumor")
    assert first.generated
    assert "seed 3" in first.source
    assert made == [3]


@pytest.mark.parametrize("data", ["", "nowhere", "Kaggle", "a\0b", "x" * 5000, "nowhere/archive.zip"])
def test_a_path_that_is_not_there(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"not found|not a usable path") as error:
        fetch.fetch(data, cache=cache)
    assert error.value.cure


def test_a_path_that_is_no_file(cache: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a zip nor a folder"):
        fetch.fetch(str(tmp_path / "pipe"), cache=cache)


def lay_out(root: Path, *names: str) -> Path:
    """Write an empty file for each name; the layout is found by names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(root: Path) -> tuple[str, str | None, tuple[str, ...]]:
    folder = find_image_folder(root, source="test")
    return (
        folder.training.relative_to(root).as_posix(),
        folder.testing.relative_to(root).as_posix() if folder.testing else None,
        folder.classes,
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Training/a/1.jpg", "Training/b/1.jpg", "Testing/a/1.jpg", "Testing/b/1.jpg"], ("Training", "Testing", "ab")),
        (["x/y/z/train/a/1.PNG", "x/y/z/train/b/1.tif", "x/y/z/TEST/a/1.jpg"], ("x/y/z/train", "x/y/z/TEST", "ab")),
        (["Training/a/1.jpg", "Training/b/1.jpg", "Training/c/1.jpg"], ("Training", None, "abc")),
        (["a/1.jpg", "b/1.jpg"], (".", None, "ab")),
        (["mine/a/1.jpg", "mine/b/1.jpg"], ("mine", None, "ab")),
        (["Training/a/p1/1.jpg", "Training/b/p2/1.jpg"], ("Training", None, "ab")),
        (["Training/a/1.jpg", "Training/b/1.jpg", "masks/a/1.png", "masks/b/1.png"], ("Training", None, "ab")),
        (["Training/a/1.jpg", "Training/b/1.jpg", "old/Training/a/1.jpg"], ("Training", None, "ab")),
        (["p/Training/a/1.jpg", "p/Training/b/1.jpg", "q/r/Testing/a/1.jpg"], ("p/Training", "q/r/Testing", "ab")),
        (["Training/test/1.jpg", "Training/train/1.jpg"], ("Training", None, ("test", "train"))),
        (["Training/a/1.jpg", "Training/b/1.jpg", ".Training/c/1.jpg", "Training/.c/x.jpg"], ("Training", None, "ab")),
        (["__MACOSX/Training/a/1.jpg", "Training/a/1.jpg", "Training/b/1.jpg"], ("Training", None, "ab")),
    ],
)
def test_layouts(tmp_path: Path, names: list[str], expected: tuple[str, str | None, tuple[str, ...] | str]) -> None:
    lay_out(tmp_path, *names)
    assert found(tmp_path) == (expected[0], expected[1], tuple(expected[2]))


def test_the_root_is_what_holds_both_parts(tmp_path: Path) -> None:
    """So that paths in the index do not depend on how deep a copy lies."""
    lay_out(tmp_path, *(f"x/y/{part}/{label}/1.jpg" for part in ("Training", "Testing") for label in "ab"))
    assert find_image_folder(tmp_path, source="").root == tmp_path / "x" / "y"
    assert find_image_folder(tmp_path / "x/y/Training", source="").root == tmp_path / "x/y/Training"


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["Training/a/1.jpg"], "only one class folder: 'a'"),
        (["a/1.jpg"], "only one class folder: .*a"),
        (["Training/1.jpg"], "no class folder"),
        (["1.jpg", "2.jpg"], "images, but no class folders"),
        (["a/readme.txt", "b/readme.txt"], "no images"),
        ([], "no images"),
        (["Training/a/1.jpg", "Training/b/1.txt"], "Training/b holds no image"),
        (["x/Training/a/1.jpg", "y/train/a/1.jpg"], "Two .*x/Training and .*y/train"),
        (["Training/a/1.jpg", "train/a/1.jpg"], "Two .*Training and .*train"),
        (["Training/a/1.jpg", "Training/b/1.jpg", "Test/a/1.jpg", "Testing/a/1.jpg"], "Two .*Test and .*Testing"),
        (["x/a/1.jpg", "x/b/1.jpg", "y/a/1.jpg", "y/b/1.jpg"], "Two .*x and .*y"),
        (["Training/a/1.jpg", "Training/b/1.jpg", "Testing/c/1.jpg"], "the class 'c', which .* lacks"),
        (["Training/a/1.jpg", "Training/b/1.jpg", "Testing/1.jpg"], "Testing holds no class folder"),
        (["Testing/a/1.jpg", "Testing/b/1.jpg"], "no training folder"),
    ],
)
def test_layouts_that_do_not_fit(tmp_path: Path, names: list[str], why: str) -> None:
    lay_out(tmp_path / "data", "readme.md", *names)
    with pytest.raises(DataError, match=why) as error:
        fetch.fetch(str(tmp_path / "data"), cache=tmp_path)
    assert error.value.cure


def test_a_class_without_test_images_is_noted(tmp_path: Path) -> None:
    lay_out(
        tmp_path, "Training/a/1.jpg", "Training/b/1.jpg", "Training/loose.jpg", "Testing/a/1.jpg", "Testing/b/x.txt"
    )
    assert found(tmp_path) == ("Training", "Testing", ("a", "b"))
    lacking, loose = find_image_folder(tmp_path, source="").notes
    assert "no images of b" in lacking
    assert loose == "1 image(s) left out, outside the class folders: Training/ (1)."


def test_links_that_loop_end(tmp_path: Path) -> None:
    lay_out(tmp_path, "x/readme.md", "x/y/readme.md")
    (tmp_path / "x/y/up").symlink_to(tmp_path)
    (tmp_path / "x/self").symlink_to(tmp_path / "x")
    with pytest.raises(DataError, match="no images"):
        find_image_folder(tmp_path, source="")
    lay_out(tmp_path, "x/y/Training/a/1.jpg", "x/y/Training/b/1.jpg")
    (tmp_path / "x/y/Training/a/up").symlink_to(tmp_path)
    assert find_image_folder(tmp_path, source="").training == tmp_path / "x/y/Training"


def test_links_to_class_folders_count(tmp_path: Path) -> None:
    lay_out(tmp_path, "elsewhere/one/1.jpg", "elsewhere/two/1.jpg", "data/Training/readme.md")
    (tmp_path / "data/Training/a").symlink_to(tmp_path / "elsewhere/one")
    (tmp_path / "data/Training/b").symlink_to(tmp_path / "elsewhere/two")
    (tmp_path / "data/Training/gone").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path / "data") == ("Training", None, ("a", "b"))


def test_a_whole_disk_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FOLDERS", 5)
    lay_out(tmp_path, *(f"{i}/{j}/x.txt" for i in range(4) for j in range(4)))
    with pytest.raises(DataError, match="over 5 folders"):
        find_image_folder(tmp_path, source="")


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "Training/a/1.jpg", "Training/b/1.jpg")
    scan = os.scandir

    def refuse(path: Path) -> object:  # a mode of 0 would not stop the superuser, who may run the tests
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"Training/b cannot be read \(Permission denied\)"):
        find_image_folder(tmp_path, source="")
