"""A table of files, series and volumes: which slices are taken, what they look like, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from phantom_files import write_dicom, write_nifti

from tumorlens.cli.app import main
from tumorlens.core.errors import DataError
from tumorlens.data.dataset import open_dataset
from tumorlens.data.fetch import fetch
from tumorlens.data.table import HEAD_LEVEL, HEAD_SHARE, MASK_VOXELS, list_rows, read_table
from tumorlens.readers import Slice, read_inputs
from tumorlens.readers.single import read_single


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A glioma's volume with its mask, the same volume in a 4-D file, and a DICOM series without tumour."""
    folder = tmp_path_factory.mktemp("files")
    path, _ = write_nifti(folder / "g.nii.gz", 0, "glioma", 0)
    volume: Any = nibabel.load(path)
    values = np.asarray(volume.dataobj)
    stacked = np.stack([values[::-1], values], axis=3)
    nibabel.save(nibabel.Nifti1Image(stacked, volume.affine), folder / "two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), folder / "small.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros(values.shape, np.uint8), volume.affine), folder / "empty.nii.gz")
    turned = nibabel.as_closest_canonical(volume).slicer[::-1]
    nibabel.save(nibabel.Nifti1Image(np.ones(values.shape, np.uint8), turned.affine), folder / "turned.nii.gz")
    (folder / "n").mkdir()
    write_dicom(folder / "n", 0, "notumor", 2)
    (folder / "broken.nii").write_bytes(b"no volume")
    return folder


def seen(path: Path) -> list[Slice]:
    return [item for item in read_inputs([str(path)]) if isinstance(item, Slice)]


def write(folder: Path, *lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    table = folder / name
    table.write_text("\n".join(lines), encoding=encoding)
    return table


@pytest.mark.parametrize(("separator", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")])
def test_slices_are_those_that_predict_classifies(files: Path, tmp_path: Path, separator: str, encoding: str) -> None:
    lines = ["Path,class,patient,mask", "g.nii.gz,glioma,P1,g_mask.nii.gz", f"{files / 'n'},notumor,P2,"]
    table = write(tmp_path, *(line.replace(",", separator) for line in lines), encoding=encoding)
    folder = fetch(str(files), cache=tmp_path / "cache", table=table)
    assert folder.classes == ("glioma", "notumor")
    mask: Any = nibabel.load(files / "g_mask.nii.gz")
    voxels = np.count_nonzero(np.asarray(mask.dataobj), axis=(0, 1))
    wanted = {f"glioma/P1__g.nii.gz__{i}.png" for i in np.flatnonzero(voxels >= MASK_VOXELS)}
    head = [s for s in seen(files / "n") if (s.pixels[..., 0] > HEAD_LEVEL).mean() >= HEAD_SHARE]
    wanted |= {f"notumor/P2__{Path(s.source).name}__{s.index}.png" for s in head}
    assert {str(path.relative_to(folder.root)) for path in folder.root.rglob("*.png")} == wanted
    assert 0 < len(head) < len(seen(files / "n"))
    pictures = {f"glioma/P1__g.nii.gz__{s.index}.png": s.pixels for s in seen(files / "g.nii.gz")}
    pictures |= {f"notumor/P2__{Path(s.source).name}__{s.index}.png": s.pixels for s in head}
    for path in wanted:
        pixels, header = read_single(folder.root / path)
        assert header.mode == "L"
        np.testing.assert_array_equal(pixels, pictures[path])
    opened = open_dataset(str(files), cache=tmp_path / "cache", table=table)
    assert {row.patient for row in opened.index.rows if row.label == "glioma"} == {"P1"}
    assert opened.folder.root == folder.root
    assert f"{len(head)} of 37 slices" in " ".join(folder.notes)


def test_series_range_volume_and_splits(files: Path, tmp_path: Path) -> None:
    uid = pydicom.dcmread(files / "n" / "IM0001.dcm").SeriesInstanceUID
    table = write(
        tmp_path,
        "path,series,class,split,volume,first_slice,last_slice",
        "two.nii.gz,,glioma,train,2,10,12",
        "two.nii.gz,,glioma,test,1,14,14",
        f",{uid},notumor,train,,20,21",
        "n/IM0011.dcm,,notumor,validation,,,",
    )
    folder = read_table(table, data=files, cache=tmp_path / "cache")
    names = sorted(str(path.relative_to(folder.root)) for path in folder.root.rglob("*.png"))
    assert names == [
        "Testing/glioma/two.nii.gz__two.nii.gz__14.png",
        *(f"Training/glioma/two.nii.gz__two.nii.gz__{i}.png" for i in (10, 11, 12)),
        *(f"Training/notumor/{uid}__IM00{i + 1}.dcm__{i}.png" for i in (20, 21)),
        "Validation/notumor/IM0011.dcm__10.png",
    ]
    for i in (10, 12):
        pixels, _ = read_single(folder.root / f"Training/glioma/two.nii.gz__two.nii.gz__{i}.png")
        np.testing.assert_array_equal(pixels, seen(files / "g.nii.gz")[i].pixels)
    assert folder.testing == folder.root / "Testing"
    assert folder.validation == folder.root / "Validation"
    assert set(folder.patients.values()) == {"two.nii.gz", uid}


@pytest.mark.parametrize(
    ("header", "line", "what", "cure"),
    [
        ("path,class", "g.nii.gz,glioma", "is a volume of 37 slices of class 'glioma' without a mask", "first_slice"),
        ("path,class,age", "g.nii.gz,glioma,9", "1 unknown column(s): age", "path, series, class, split, group"),
        ("path,class,label", "g.nii.gz,glioma,x", "two columns for 'class'", "path (or series) and class"),
        ("path,group", "g.nii.gz,P1", "lacks a column", "path (or series) and class"),
        ("path,class", "away.nii.gz,glioma", "1 of 2 line(s) cannot be used: line 3 names 'away.nii.gz'", "--data"),
        ("path,class", "broken.nii,glioma", "(broken.nii) cannot be used: of no format", "These are read"),
        ("path,class", "g.nii.gz,a/b", "has the class 'a/b'", "names that a folder may have"),
        ("path,class", "g.nii.gz,", "has the class ''", "names that a folder may have"),
        ("path,class", "n,Notumor", "the classes Notumor, notumor", "upper and lower case"),
        ("path,class", "n,notumor", "the classes notumor", "two or more classes"),
        ("path,class,split", "g.nii.gz,glioma,val", "has the split 'val'", "train, validation, test"),
        ("path,class,split", "n/IM0001.dcm,glioma,test", "no line to train on for glioma", "split train"),
        ("path,class,plane", "g.nii.gz,glioma,top", "has the plane 'top'", "axial, coronal, sagittal"),
        ("path,class,mask", "g.nii.gz,glioma,small.nii.gz", "small.nii.gz has 9x9x9 voxels, the volume", "Resample"),
        ("path,class,mask", "g.nii.gz,glioma,turned.nii.gz", "in the orientation LAS, the volume in RAS", "canonical"),
        ("path,class,mask", "g.nii.gz,glioma,g.nii.gz", "different values, as an image does", "marks the lesion"),
        ("path,class,mask", "g.nii.gz,glioma,empty.nii.gz", "has no slice that shows its class", "mask"),
        ("path,class,mask", "g.nii.gz,glioma,broken.nii", "broken.nii cannot be used (not a NIfTI", ".nii.gz"),
        ("path,class,mask", "n,glioma,g_mask.nii.gz", "is no NIfTI volume", "first_slice and last_slice"),
        ("path,class,first_slice,last_slice", "g.nii.gz,glioma,30,37", "range 30 to 37, but slices 0 to 36", "from 0"),
        ("path,class,first_slice,last_slice", "g.nii.gz,glioma,30,", "half a range", "first_slice and last_slice"),
        ("path,class,first_slice,last_slice", "g.nii.gz,glioma,-1,3", "has the number '-1'", "from 0"),
        ("path,class,volume,first_slice,last_slice", "two.nii.gz,glioma,3,1,2", "no volume 3", "volume 1 to volume 2"),
        ("path,class,volume", "g.nii.gz,glioma,3", "holds one volume, so there is no volume 3", "Use volume 1."),
        ("path,class,plane", "g.nii.gz,glioma,axial,9", "1 line(s) have more cells than the first", "quotes"),
        ("path,class,volume", "n/IM0001.dcm,glioma,0", "has the number '0'", "volumes from 1"),
        ("path,series,class", "g.nii.gz,1.2.3,glioma", "not one of path and series", "a path or a series"),
        ("path,series,class", ",1.2.3,glioma", "series 1.2.3, of which", "--data"),
        ("path,class", "n/IM0020.dcm,glioma", "give one picture", "one class, group and split"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_a_cure(
    header: str, line: str, what: str, cure: str, files: Path, tmp_path: Path
) -> None:
    columns = header.split(",")
    sound = {"path": "n", "class": "notumor", "split": "train"}
    table = write(tmp_path, header, ",".join(sound.get(column, "") for column in columns), line)
    with pytest.raises(DataError) as error:
        read_table(table, data=files, cache=tmp_path / "cache")
    assert what in error.value.what
    assert cure in (error.value.cure or "")


def test_a_canonical_copy_cures_a_turned_mask(files: Path, tmp_path: Path) -> None:
    for name in ("g", "turned"):
        canonical = nibabel.as_closest_canonical(nibabel.load(files / f"{name}.nii.gz"))
        nibabel.save(canonical, tmp_path / f"{name}.nii.gz")
    table = write(tmp_path, "path,class,mask", "g.nii.gz,glioma,turned.nii.gz", f"{files / 'n'},notumor,")
    assert read_table(table, cache=tmp_path / "cache").classes == ("glioma", "notumor")


def test_refused_lines_are_counted_and_what_is_named_twice_is_used_once(files: Path, tmp_path: Path) -> None:
    table = write(tmp_path, "path,class", *(f"{i}.png,a" for i in range(5)), "n,notumor")
    with pytest.raises(
        DataError, match=r"5 of 6 line\(s\) cannot be used: line 2 .*; line 3 .*; line 4 .*; and 2 more"
    ):
        list_rows(table, files)
    lines = ("n,notumor,P,,", "./n,notumor,P,,", "g.nii.gz,glioma,Q,10,11")
    table = write(tmp_path, "path,class,group,first_slice,last_slice", *lines)
    notes = read_table(table, data=files, cache=tmp_path / "cache").notes
    assert any("named twice, used once" in note for note in notes)


def test_what_is_left_out_or_no_brain_mri_is_noted(files: Path, tmp_path: Path) -> None:
    scan = pydicom.dcmread(files / "n" / "IM0010.dcm")
    scan.Modality = "CT"
    scan.save_as(tmp_path / "ct.dcm")
    lines = ("two.nii.gz,glioma,10,11", "n/IM0012.dcm,notumor,,", "ct.dcm,notumor,,")
    table = write(tmp_path, "path,class,first_slice,last_slice", *lines)
    notes = " ".join(read_table(table, data=files, cache=tmp_path / "cache").notes)
    assert "1 file(s) or slice(s) left out, first two.nii.gz: holds 2 volumes, of which the first alone" in notes
    assert "1 slice(s) whose header says that they are no slices of a brain MRI." in notes


def test_a_study_by_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["path,class,group,mask,first_slice,last_slice"]
    for k in range(4):
        path, mask = write_nifti(tmp_path / f"g{k}.nii.gz", 0, "glioma", 4 * k)
        (tmp_path / f"n{k}").mkdir()
        write_dicom(tmp_path / f"n{k}", 0, "notumor", 4 * k + 2)
        lines += [f"{path.name},glioma,G{k},{mask.name},,", f"n{k},notumor,N{k},,10,16"]
    table, run = write(tmp_path, *lines), tmp_path / "run"
    options = ["--cache", str(tmp_path / "cache"), "--weights", "none", "--max-epochs", "1", "--out", str(run)]
    assert main(["study", "--table", str(table), "--configurations", "initial", *options]) == 0
    record = json.loads((run / "study.json").read_text(encoding="utf-8"))
    assert record["dataset"]["source"].startswith("table labels.csv, sha256 ")
    assert record["split"]["patients"]["n"] == 8
    assert record["split"]["patients"]["parted"]["test_shared"] == 0
    assert record["config"]["table"] == str(table)
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["data", "check", "--table", str(table), "--cache", str(tmp_path / "cache"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["dataset"]["fingerprint"] == record["dataset"]["fingerprint"]
    assert main(["data", "check"]) == 2
