"""Patients in several splits open the verdict; runs are evaluated from anywhere; checkpoints are those recorded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from folders import picture
from PIL import Image

from tumorlens import Study, load_classifier, run_study
from tumorlens.cli.app import main
from tumorlens.core.errors import ConfigError
from tumorlens.core.files import read_json
from tumorlens.data.index import read_index
from tumorlens.study.stages import compare_run

FOLDERS = {"Training": range(12), "Testing": range(10, 16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 16 patients in folders, four images each; two patients of each class lie in both parts."""
    root = tmp_path_factory.mktemp("patients") / "data"
    for k, label in enumerate(("one", "two")):
        for part, patients in FOLDERS.items():
            for p in patients:
                folder = root / part / label / f"{label}{p:02d}"
                folder.mkdir(parents=True)
                for i in range(4):
                    number = 10_000 * k + 100 * p + i + 50 * (part == "Testing")
                    Image.fromarray(picture(number)).save(folder / f"{label}{p:02d}_{part[1]}{i}.png")
    return root


def study(data: Path, out: Path, **more: object) -> Study:
    return Study(
        str(data), weights="none", out=out, cache=data.parent / "cache", device="cpu", configurations=("initial",),
        max_epochs=1, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose data, out and cache are named relative to the folder that it was started in."""
    out = tmp_path_factory.mktemp("run") / "run"
    before = Path.cwd()
    try:
        os.chdir(data.parent)
        run_study(study(Path("data"), Path(os.path.relpath(out))))
    finally:
        os.chdir(before)
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_patients_in_training_and_testing_open_the_verdict(run: Path) -> None:
    record, comparison = read_json(run / "study.json"), read_json(run / "comparison.json")
    counts = {"test": 12, "test_shared": 4, "images": 16, "validation_shared": 0}
    assert record["split"]["patients"]["source"] == "folders"
    assert record["split"]["patients"]["parted"] == comparison["patients"] == counts
    opening = "4 of the 12 patients in the test also have images in training or validation; 16 of the 48 test images"
    assert comparison["verdict"].startswith(opening)
    assert comparison["leakage"]["parts"]["other_patients"]["n"] == 32
    metrics = read_json(run / "initial" / "metrics.json")
    assert (metrics["parts"]["test"]["n"], metrics["patients"]["test_of_others"]["n"]) == (48, 32)
    assert "of patients with no image in training or validation" in (run / "report.html").read_text()
    splits: dict[str, set[str]] = {}
    for row in read_index(run / "index.csv"):
        splits.setdefault(row.patient, set()).add(row.split)
    assert all(not {"train", "validation"} <= held for held in splits.values())


@pytest.mark.case(24)
def test_a_run_is_evaluated_from_any_folder_and_with_moved_data(
    copied: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (copied / "initial" / "predictions.csv").read_bytes()
    monkeypatch.chdir("/")
    assert main(["evaluate", str(copied)]) == 0
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    assert main(["evaluate", str(copied), "--data", str(moved)]) == 0
    assert read_json(copied / "study.json")["dataset"]["root"] == str(moved)
    assert (copied / "initial" / "predictions.csv").read_bytes() == before
    next(moved.rglob("*.png")).unlink()
    capsys.readouterr()
    assert main(["evaluate", str(copied), "--data", str(moved)]) == 1
    assert "is not the data set of" in capsys.readouterr().err
    shutil.rmtree(moved)
    assert main(["evaluate", str(copied)]) == 1
    shown = capsys.readouterr().err
    assert "The run's images are neither in" in shown
    assert f"tumorlens evaluate {copied} --data FOLDER" in shown
    assert main(["evaluate", str(copied), "--data", str(data)]) == 0  # the cure


@pytest.mark.case(5)
@pytest.mark.parametrize("command", ["evaluate", "compare", "export"])
def test_a_checkpoint_that_was_not_trained_here_is_refused(
    command: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = read_json(copied / "initial" / "training.json")
    checkpoint = copied / "initial" / summary["checkpoint"]
    before = (copied / "initial" / "metrics.json").read_bytes()
    content = bytearray(checkpoint.read_bytes())
    content[-5000] ^= 1
    checkpoint.write_bytes(content)
    words = [command, str(copied), *(["--configuration", "initial"] if command == "export" else [])]
    assert main(words) == 1
    shown = capsys.readouterr().err
    assert f"{checkpoint} is not the checkpoint that was trained here: its SHA-256 is " in shown
    assert f"training.json records {summary['checkpoint_sha256']}" in shown
    assert (copied / "initial" / "metrics.json").read_bytes() == before


@pytest.mark.case(5)
def test_figures_of_another_checkpoint_are_not_compared(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = copied / "initial" / "metrics.json"
    metrics.write_text(metrics.read_text().replace(read_json(metrics)["checkpoint_sha256"], "0" * 64))
    assert main(["compare", str(copied)]) == 1
    shown = capsys.readouterr().err
    assert f"Measure it again: tumorlens evaluate {copied}" in shown
    assert main(["evaluate", str(copied)]) == 0  # the cure
    assert main(["compare", str(copied)]) == 0


def test_folds_and_a_final_model(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, csv = tmp_path / "cv", tmp_path / "patients.csv"
    files = sorted(data.rglob("*.png"))
    csv.write_text("file name;patient\n" + "".join(f"{f.name};{f.name.split('_')[0]}\n" for f in files))
    words = ["study", str(data), "--weights", "none", "--out", str(out), "--cache", str(data.parent / "cache"),
             "--device", "cpu", "--configurations", "initial", "--max-epochs", "1", "--protocol", "grouped-cv",
             "--folds", "2", "--groups", str(csv)]  # fmt: skip
    assert main(words) == 0
    for command in (["export", str(out), "--configuration", "initial"], ["predict", "a.png", "--model", str(out)]):
        capsys.readouterr()
        assert main(command) == 1
        assert "--protocol grouped-cv --final-model" in capsys.readouterr().err
    assert main([*words, "--final-model"]) == 0
    shown = capsys.readouterr()
    assert "Fold 2 of 2: finished" in shown.err
    assert "groups of patients (file) and near-duplicates" in shown.out
    final = read_json(out / "final" / "study.json")
    rows = read_index(out / "final" / "index.csv")
    assert {row.split for row in rows if row.split} == {"train", "validation"}
    assert (
        final["cross_validation"]["initial"]["accuracy"]
        == read_json(out / "cv.json")["configurations"]["initial"]["pooled"]["accuracy"]
    )
    for folder in ("fold-1", "fold-2", "final"):
        splits: dict[str, set[str]] = {}
        for row in read_index(out / folder / "index.csv"):
            splits.setdefault(row.patient, set()).add(row.split)
        assert all(len(held - {""}) == 1 for held in splits.values()), folder
    assert main(["evaluate", str(out / "final")]) == 0
    assert main(["compare", str(out / "final")]) == 1
    assert f"tumorlens export {out}" in capsys.readouterr().err
    assert main(["export", str(out), "--configuration", "initial"]) == 0
    assert load_classifier(out).card["measured"]["cross_validation"]["n"] == len(files)
    assert main(["predict", str(files[0]), "--model", str(out)]) == 0
    assert main(["study", str(data), "--final-model"]) == 1


def test_too_few_images_to_fit_on_are_reported_before_any_work(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tumorlens.export import export

    monkeypatch.setattr(export, "graph", lambda *_: pytest.fail("worked"))
    n = sum(row.split == "validation" for row in read_index(copied / "index.csv"))
    assert n < 20
    assert main(["export", str(copied), "--configuration", "initial"]) == 1
    assert f"has {n} validation images: too few" in capsys.readouterr().err


def test_a_split_file_that_parts_patients_is_reported(copied: Path, data: Path, tmp_path: Path) -> None:
    rows = read_index(copied / "index.csv")
    file = tmp_path / "split.csv"
    place = ("train", "train", "validation", "test")
    file.write_text("path,split\n" + "".join(f"{r.path},{place[i % 4]}\n" for i, r in enumerate(rows)))
    result = run_study(study(data, tmp_path / "parted", split=file))
    assert result.comparison is not None
    assert result.comparison["patients"]["test_shared"] == result.comparison["patients"]["validation_shared"] == 32
    verdict = result.comparison["verdict"]
    assert verdict.startswith("32 of the 32 patients in the test also have images in training or validation; 36 of")
    assert "none is left of others. 32 patient(s) have images in both training and validation" in verdict


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"final_model": True}, "--final-model follows all folds"),
        ({"final_model": True, "protocol": "grouped-cv", "fold": 1}, "--final-model follows all folds"),
        ({"group_pattern": "P["}, "--group-pattern 'P\\[' is not a regular expression"),
        ({"group_pattern": "^P"}, "has 0 groups in brackets"),
        ({"group_pattern": "(P)", "groups": "g.csv"}, "both name patients"),
    ],
)
def test_options_on_patients_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study(**values)  # type: ignore[arg-type]


def test_comparison_without_checkpoints_still_works(copied: Path) -> None:
    for path in copied.rglob("*.pth"):
        path.unlink()
    assert compare_run(copied)["patients"]["test_shared"] == 4
