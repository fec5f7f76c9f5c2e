"""Which folders hold training, validation and test images, which are classes, and what is noted as left out."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from folders import draw, write_folder
from phantom_files import write_dicom

from tumorlens.core.errors import DataError
from tumorlens.core.progress import Clock
from tumorlens.data import fetch, layout
from tumorlens.data.dataset import open_dataset, open_split_dataset
from tumorlens.data.index import list_files
from tumorlens.data.layout import find_image_folder
from tumorlens.data.protocols import SplitOptions
from tumorlens.readers.single import read_single
from tumorlens.readers.sources import read_inputs
from tumorlens.readers.types import Slice


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


@pytest.mark.case(8)
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


NESTED = [f"{label}/{patient}/1.jpg" for label in ("glioma", "notumor") for patient in ("P01", "P02")]


@pytest.mark.case(6)
@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "validation_set", "val-data"])
def test_a_validation_folder_is_the_validation_split(tmp_path: Path, name: str) -> None:
    for part in ("train", name, "test"):
        for label in "ab":
            for i in range(6):
                path = tmp_path / "data" / part / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw("ab".index(label), len(part) * 100 + i).save(path)
    data = str(tmp_path / "data")
    opened = open_split_dataset(data, SplitOptions(), cache=tmp_path / "cache", seed=0, clock=Clock())
    assert {(row.path.split("/")[0], row.split) for row in opened.rows} == {
        ("train", "train"), (name, "validation"), ("test", "test")
    }  # fmt: skip
    assert opened.split_record()["source"] == "validation folder as given"
    assert opened.record()["folders"] == {"Training": "train", "Validation": name, "Testing": "test"}
    assert f"{name}/ is the validation split" in opened.record()["notes"][-1]


@pytest.mark.case(6)
def test_training_and_validation_without_test(tmp_path: Path) -> None:
    lay_out(tmp_path, *(f"{part}/{label}/1.jpg" for part in ("train", "val") for label in "ab"))
    folder = find_image_folder(tmp_path, source="")
    assert (folder.validation, folder.testing) == (tmp_path / "val", None)
    assert {part for _, _, part in list_files(folder)} == {"Training", "Validation"}


@pytest.mark.case(7)
@pytest.mark.case(9)
@pytest.mark.parametrize(
    ("names", "training", "classes"),
    [
        (["Training Set/a/1.jpg", "Training Set/b/1.jpg", "test_data/a/1.jpg"], "Training Set", "ab"),
        (["train/train/a/1.jpg", "train/train/b/1.jpg"], "train/train", "ab"),
        (["a/1.jpg", "b/1.jpg", "@eaDir/a/1.jpg", "#recycle/1.jpg", "$RECYCLE.BIN/1.jpg"], ".", "ab"),
        (["a/1.jpg", "b/1.jpg", "lost+found/1.jpg", "System Volume Information/1.jpg"], ".", "ab"),
        (["a/1.jpg", "a/@eaDir/1.jpg/T.jpg", "b/1.jpg", ".ipynb_checkpoints/1.jpg", ".Trash-1000/1.jpg"], ".", "ab"),
        (
            [
                "Training/a/1.jpg",
                "Training/b/1.jpg",
                "Training/@eaDir/1.jpg",
                "Training/Thumbs/1.jpg",
                "Training/Trash/1.jpg",
            ],
            "Training",
            "ab",
        ),
        (["a/1.jpg", "b/1.jpg", "all/a/1.jpg", "all/b/1.jpg"], ".", "ab"),
        (
            [
                "a/1.jpg",
                "b/1.jpg",
                "figures/1.png",
                "masks 2/1.png",
                "results_resnet/1.png",
                "run/study.json",
                "run/1.png",
            ],
            ".",
            "ab",
        ),
        (["a/1.jpg", "b/1.jpg", "docs/readme.txt"], ".", "ab"),
        (NESTED, ".", ("glioma", "notumor")),
        ([f"set/{name}" for name in NESTED], "set", ("glioma", "notumor")),
        (["a/P1/1.jpg", "a/P2/1.jpg", "b/P1/1.jpg", "b/P3/T1/1.jpg"], ".", "ab"),
        (["healthy/1.jpg", "sick/P1/1.jpg", "sick/P2/1.jpg"], ".", ("healthy", "sick")),
        (["yes/Smith/1.jpg", "yes/Jones/1.jpg", "no/Miller/1.jpg", "no/Doe/1.jpg"], ".", ("no", "yes")),
        (["mine/glioma/1.jpg", "mine/notumor/1.jpg", "previews/1.jpg"], "mine", ("glioma", "notumor")),
    ],
)
def test_what_is_no_class(tmp_path: Path, names: list[str], training: str, classes: tuple[str, ...]) -> None:
    lay_out(tmp_path, *names)
    assert (found(tmp_path)[0], found(tmp_path)[2]) == (training, tuple(classes))
    folder = find_image_folder(tmp_path, source="")
    listed = len(list_files(folder))
    left = sum(name.endswith(("jpg", "png")) for name in names) - listed
    assert listed + sum(int(note.split()[0]) for note in folder.notes if "left out" in note) == listed + left


@pytest.mark.case(7)
@pytest.mark.case(9)
@pytest.mark.parametrize("classes", [("P01", "P02"), ("Smith", "Jones"), ("patient 1", "patient 2")])
def test_a_class_folder_named_by_mistake_is_noted(tmp_path: Path, classes: tuple[str, ...]) -> None:
    lay_out(tmp_path, *(f"set/glioma/{name}/1.jpg" for name in classes))
    (note,) = find_image_folder(tmp_path / "set" / "glioma", source="").notes
    assert "look like patients" in note
    assert str(tmp_path / "set") in note


@pytest.mark.case(9)
@pytest.mark.parametrize("names", [["s1/a/1.jpg", "s1/b/1.jpg", "s2/a/1.jpg", "s2/b/1.jpg"],
                                   ["s1/yes/1.jpg", "s1/no/1.jpg", "s2/yes/1.jpg", "s2/no/1.jpg"]])  # fmt: skip
def test_two_data_sets_are_ambiguous(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="Two folders of class folders"):
        find_image_folder(lay_out(tmp_path, *names), source="")


@pytest.mark.case(11)
def test_class_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    training, testing = unicodedata.normalize("NFD", "größe"), unicodedata.normalize("NFC", "größe")
    lay_out(
        tmp_path, *(f"Training/{x}/1.jpg" for x in (training, "b")), *(f"Testing/{x}/1.jpg" for x in (testing, "b"))
    )
    folder = find_image_folder(tmp_path, source="")
    assert {label for _, label, _ in list_files(folder)} == {training, "b"}
    assert len(list_files(folder)) == 4
    assert not folder.notes


@pytest.mark.case(11)
def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    lay_out(tmp_path, *(f"Training/{name}/1.jpg" for name in (*forms, "b")))
    folder = find_image_folder(tmp_path, source="")
    assert len(folder.classes) == 2
    assert len(list_files(folder)) == 3


@pytest.mark.case(8)
def test_a_class_absent_from_testing_is_left_unmeasured(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=4, test=2)
    for path in (root / "Testing" / "notumor").iterdir():
        path.unlink()
    (root / "Testing" / "notumor").rmdir()
    opened = open_dataset(str(root), cache=tmp_path / "cache")
    assert opened.index.counts()["Testing"]["notumor"] == 0
    assert "nothing is measured there" in opened.notes[0]


@pytest.mark.case(10)
@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", "", ".001"])
def test_files_are_read_by_content(tmp_path: Path, suffix: str) -> None:
    root = write_folder(tmp_path / "data", train=4, test=1)
    for path in list(root.rglob("*.png")):
        path.rename(path.with_suffix(suffix))
    assert len(open_dataset(str(root), cache=tmp_path / "cache").index.rows) == 20


@pytest.mark.case(10)
def test_a_folder_of_volumes_differs_from_one_without_images(tmp_path: Path) -> None:
    for label in ("glioma", "notumor"):
        lay_out(tmp_path, f"{label}/1.nii", f"{label}/notes.txt")
        (tmp_path / label / "1.nii").write_bytes(bytes(344) + b"n+1\0" + bytes(200))
    with pytest.raises(DataError, match=r"no images: it has 2 NIfTI, 2 \.txt") as error:
        find_image_folder(tmp_path, source="")
    assert "--table labels.csv" in error.value.cure


@pytest.mark.case(10)
def test_class_folders_of_dicom_are_read_as_predict_reads_them(tmp_path: Path) -> None:
    files = {label: write_dicom(tmp_path / "data" / label, 0, label, 3) for label in ("glioma", "notumor")}
    (tmp_path / "data" / "glioma" / "DICOMDIR").write_bytes(b"no picture")
    index = open_dataset(str(tmp_path / "data"), cache=tmp_path / "cache").index
    assert index.counts() == {"Training": {label: len(paths) for label, paths in files.items()}}
    for path in files["glioma"][::12]:
        (slice_,) = read_inputs([str(path)])
        assert isinstance(slice_, Slice)
        assert np.array_equal(read_single(path)[0], slice_.pixels)
    assert {u.path for u in index.unreadable} == {"glioma/DICOMDIR"}


@pytest.mark.case(7)
def test_a_class_of_copies_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", train=4, test=0) / "Training"
    for i, path in enumerate(sorted(root.rglob("*.png"))[::2]):
        (root / "extra").mkdir(exist_ok=True)
        (root / "extra" / f"{i}.png").write_bytes(path.read_bytes())
    (note,) = open_dataset(str(root), cache=tmp_path / "cache").notes
    assert "8 of the 8 images of class extra are byte copies of images of glioma, meningioma" in note
