"""Patients that the user names bind every split, and every habit of writing them down is understood or refused."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from index_rows import index_of, row

from tumorlens.core.errors import ConfigError, DataError
from tumorlens.data.columns import check_pattern
from tumorlens.data.groups import join_groups
from tumorlens.data.index import Index
from tumorlens.data.patients import find_patients, folder_patients, parted, shared_test_images
from tumorlens.data.protocols import SplitOptions, assign


def made(paths: list[str]) -> Index:
    """An index of pictures that are all different; the class is the second folder if the first is a part."""
    found = []
    for path in paths:
        parts = path.split("/")
        part = parts[0] if parts[0] in ("Training", "Testing") else "Training"
        found.append(row(path, parts[parts[0] == part], part, content=path))
    random = np.random.default_rng(0)
    thumbnails = random.integers(0, 255, (len(found), 32, 32), dtype=np.uint8)
    return dataclasses.replace(index_of(found), thumbnails=thumbnails)


def folders(n: int, *, part: str = "", images: int = 3) -> list[str]:
    return [f"{part}{label}/P{p:02d}/{i}.png" for label in "ab" for p in range(n) for i in range(images)]


FLAT = made([f"{part}/{label}/P{p:02d}_{label}{i}.png" for part, first in (("Training", 0), ("Testing", 8))
             for label in "ab" for p in range(first, first + 10) for i in range(3)])  # fmt: skip
OWN = {row.path: Path(row.path).name[:3] for row in FLAT.rows}


def write(tmp_path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    file = tmp_path / "patients.csv"
    file.write_bytes("\n".join(lines).encode(encoding))
    return file


HABITS = {
    "paths": ("path,group", lambda p: f"{p},{OWN[p]}"),
    "names": ("file name,patient id", lambda p: f"{Path(p).name},{OWN[p]}"),
    "stems": ("Stem,Patient_ID", lambda p: f"{Path(p).stem},{OWN[p]}"),
    "semicolons": ("image;age;patient", lambda p: f"{p};63,5;{OWN[p]}"),
    "tabs": ("path\tsubject", lambda p: f"{p}\t{OWN[p]}"),
    "windows": ("filename,patient", lambda p: "D:\\study\\mri\\" + p.replace("/", "\\") + f",{OWN[p]}"),
    "dots": ("path,group", lambda p: f"./{p},{OWN[p]}"),
    "below": ("path,group", lambda p: f"{p.split('/', 1)[1]},{OWN[p]}"),
    "quoted": ('"path", "group"', lambda p: f'"{p}"," {OWN[p]} "'),
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_habits_of_a_groups_file(habit: str, encoding: str, tmp_path: Path) -> None:
    header, line = HABITS[habit]
    index = FLAT
    if habit in ("names", "stems", "below"):  # Training and Testing hold files of one name
        index = dataclasses.replace(FLAT, rows=tuple(r for r in FLAT.rows if r.part == "Training"))
    lines = [header, *(line(r.path) for r in index.rows), "", ";;" if habit == "semicolons" else ""]
    found = find_patients(index, file=write(tmp_path, lines, encoding))
    assert found is not None
    assert found.names == tuple(OWN[r.path] for r in index.rows)
    assert (found.source, found.unknown) == ("file", 0)


def test_names_with_accents_match_in_both_forms(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "a/Müller.png")
    index = made([unicodedata.normalize("NFD", composed), "b/x.png"])
    found = find_patients(index, file=write(tmp_path, ["path,group", f"{composed},m", "b/x.png,x"]))
    assert found is not None
    assert found.names == ("m", "x")


def test_of_two_columns_of_patients_the_unused_one_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tumorlens")
    lines = ["path,subject,group", *(f"{path},{own},treated" for path, own in OWN.items())]
    found = find_patients(FLAT, file=write(tmp_path, lines))
    assert found is not None
    assert found.n == 1
    assert "the column 'group' is used, not 'subject'." in caplog.text


def test_lines_that_name_no_image_are_counted(tmp_path: Path) -> None:
    lines = ["path,group", *(f"{p},{g}" for p, g in OWN.items()), "Training/c/gone.png,P99"]
    found = find_patients(FLAT, file=write(tmp_path, lines))
    assert found is not None
    assert found.record()["unknown_lines"] == 1
    assert "1 line(s)" in found.lines()[-1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,group", "a,b"], r"None of the 1 lines .* names an image"),
        (["path,group"], r"None of the 0 lines"),
        (["path,group", "Training/a/P00_a0.png,P00"], r"gives 119 image\(s\) no group, first"),
        (["path,group", "Training/a/P00_a0.png,"], r"None of the|gives 120 image\(s\) no group"),
        (["name,group", "P08_a0.png,P08"], r"'P08_a0.png' fits 2 images, such as 'Testing/a/P08_a0.png'"),
        (["path,group", "Training/a/P00_a0.png,P00", "Training/a/P00_a0.png,P01"], "line 3.*was 'P00' before"),
        (["path,group", "Training/a/P00_a0.png,P00", "a/P00_a0,P01"], "two values: 'P00' and 'P01'"),
        (["Training/a/P00_a0.png,P00"], "lacks the columns 'path' and 'group'"),
        ([""], "lacks the columns"),
        (["path,group", '"open,P00'], "cannot be read"),
        (["path,group", "scan 1, left.png,P00"], r"1 line\(s\) have more cells than the first line, first line 2"),
        (["path,group", *(f"{path},NaN" for path in OWN)], r"gives 120 image\(s\) no group"),
    ],
)
def test_groups_files_that_do_not_fit(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        find_patients(FLAT, file=write(tmp_path, lines))


def test_a_pattern_takes_patients_from_file_names() -> None:
    found = find_patients(FLAT, pattern=r"^(P\d+)_")
    assert found is not None
    assert found.names == tuple(OWN.values())
    some = find_patients(FLAT, pattern=r"^(P0[0-4])_")
    assert some is not None
    assert (some.n, some.unnamed) == (5, len(FLAT.rows) - 30)
    assert "belong to no patient" in some.lines()[1]
    with pytest.raises(DataError, match="matches none of the 120 file names, such as 'P00_a0"):
        find_patients(FLAT, pattern=r"^(Q\d+)_")


@pytest.mark.parametrize("pattern", ["P(", r"^P\d+_", r"^(P)(\d+)_"])
def test_patterns_without_one_group_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="--group-pattern"):
        check_pattern(pattern)


@pytest.mark.case(9)
@pytest.mark.parametrize(
    ("paths", "n"),
    [
        (folders(5), 5),  # ten folders of five names, which count once in both classes
        (folders(4), None),
        (folders(12), 12),
        (folders(6, part="Training/") + folders(6, part="Testing/"), 6),
        ([f"{label}/{name}/{i}.png" for label in "abcd" for name in ("T1", "T2", "FLAIR") for i in range(2)], None),
        ([f"{label}/{i}.png" for label in "ab" for i in range(30)], None),
        ([f"{label}/T1c/P{i}/x.png" for label in "ab" for i in range(10)], 10),  # the patient below the sequence
        ([f"{label}/P{i}/T1c/x.png" for label in "ab" for i in range(10)], 10),
        ([f"a/P{i}/series 1/x.png" for i in range(9)] + ["b/P9/y.png", "b/z.png"], 10),
    ],
)
def test_folders_below_classes_are_patients_from_ten_on(paths: list[str], n: int | None) -> None:
    index = made(paths)
    found = folder_patients(index.rows)
    assert (found and found.n) == n
    assert find_patients(index, folders=False) is None
    if found:
        assert "--no-group-folders" in found.lines()[0]
        assert found.unnamed == ("b/z.png" in paths)


def test_groups_join_both_relations() -> None:
    near = np.array([0, 0, 1, 2, 3, 3, 4])
    assert join_groups(near, ["x", "", "x", "", "y", "z", "z"]).tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert join_groups(near, [""] * 7).tolist() == [0, 0, 1, 2, 3, 3, 4]


@pytest.mark.parametrize("protocol", ["official", "twin-free-train", "grouped-cv"])
def test_no_protocol_separates_a_patient(protocol: str) -> None:
    options = SplitOptions(protocol, group_pattern=r"^(P\d+)_", folds=3, fold=2)
    found = assign(FLAT, options, seed=1)
    splits = defaultdict(set)
    for one in found.split.rows:
        if one.split:
            splits[one.patient].add(one.split)
    count = parted(found.split.rows)
    if protocol == "official":  # Testing was given so
        assert (count["test"], count["test_shared"], count["images"]) == (10, 2, 12)
        assert {OWN[p] for p in shared_test_images(found.split.rows)} == {"P08", "P09"}
        assert all(len(held) == 1 for own, held in splits.items() if own not in ("P08", "P09"))
        assert all(held & {"train", "validation"} != {"train", "validation"} for held in splits.values())
    else:
        assert count["test_shared"] == 0
        assert all(len(held) == 1 for held in splits.values())
    assert count["validation_shared"] == 0
    assert {one.label for one in found.split.rows if one.split == "validation"} == {"a", "b"}


def test_a_drawn_test_split_is_bound_too() -> None:
    found = assign(made(folders(12)), SplitOptions(), seed=0)
    assert found.patients is not None
    assert found.split.test_source == "split off"
    assert parted(found.split.rows) == {
        "test": parted(found.split.rows)["test"],
        "test_shared": 0,
        "images": 0,
        "validation_shared": 0,
    }
    free = assign(made(folders(12)), SplitOptions(group_folders=False), seed=0)
    assert free.patients is None
    assert free.split.source == "85/15 stratified by seed"


def test_near_duplicates_that_chain_all_patients_do_not_stop_a_study() -> None:
    index = made(folders(12, images=1))  # few enough for one group of near-duplicates
    noise = np.random.default_rng(1).integers(0, 4, index.thumbnails.shape, dtype=np.uint8)
    alike = dataclasses.replace(index, thumbnails=index.thumbnails[:1] // 2 + noise)
    found = assign(alike, SplitOptions(), seed=0)
    assert found.patients is not None
    assert found.patients.joined_from != 0.99
    assert parted(found.split.rows)["test_shared"] == parted(found.split.rows)["validation_shared"] == 0
    assert assign(index, SplitOptions(), seed=0).patients.joined_from == 0.99  # type: ignore[union-attr]


def test_a_class_of_one_patient_cannot_be_split() -> None:
    index = made([*folders(12), *(f"c/P99/{i}.png" for i in range(9))])
    with pytest.raises(DataError, match="'c' forms only one group"):
        assign(index, SplitOptions())


def test_a_final_model_has_no_test_images() -> None:
    found = assign(FLAT, SplitOptions("grouped-cv", group_pattern=r"^(P\d+)_", folds=3, fold=0))
    assert [found.split.count(name) for name in ("train", "validation", "test", "")][2:] == [0, 0]
    assert parted(found.split.rows)["validation_shared"] == 0
