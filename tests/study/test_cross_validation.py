"""Folds end to end, and the audit of a data set from the command line."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from folders import picture
from PIL import Image

from tumorlens import Study, run_study
from tumorlens.cli.app import main
from tumorlens.core.errors import ConfigError, DataError, RunError
from tumorlens.core.files import read_json, write_json
from tumorlens.data import fetch, index
from tumorlens.data.index import read_index
from tumorlens.study import prepare
from tumorlens.study.cross_validation import sum_up_folds
from tumorlens.study.run import train_study


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two classes, 16 and 6 images each; the first two of each Testing folder are mirrored Training images."""
    root = tmp_path_factory.mktemp("folds") / "data"
    for k, label in enumerate(("one", "two")):
        for part, first, n in (("Training", 0, 16), ("Testing", 500, 6)):
            (root / part / label).mkdir(parents=True)
            for i in range(n):
                pixels = np.fliplr(picture(1000 * k + i)) if first and i < 2 else picture(1000 * k + first + i)
                Image.fromarray(pixels).save(root / part / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def with_copy(root, tmp_path_factory) -> Path:
    """The same, with a pixel-identical copy of an image that also has a mirrored twin."""
    data = tmp_path_factory.mktemp("copied") / "data"
    shutil.copytree(root, data)
    shutil.copy(data / "Training" / "one" / "0.png", data / "Training" / "one" / "copy.png")
    return data


def folds(root: Path, out: Path, cache: Path, **more) -> Study:
    return Study(
        data=str(root), weights="none", out=out, cache=cache, device="cpu", protocol="grouped-cv", folds=2,
        configurations=("initial",), max_epochs=2, **more,
    )  # fmt: skip


def test_folds_are_studies_and_are_not_trained_twice(with_copy, tmp_path, capsys, monkeypatch) -> None:
    root, cache, out = with_copy, tmp_path / "cache", tmp_path / "cv"
    assert run_study(folds(root, out, cache, fold=2)).cross_validation["done"] == [2]
    record = (out / "fold-2" / "study.json").read_bytes()
    result = run_study(folds(root, out, cache))
    assert (out / "fold-2" / "study.json").read_bytes() == record  # of the command and versions that trained it
    shown = capsys.readouterr().err
    assert shown.count("Frozen layers, once per image") <= 1
    assert shown.count("Fold 2 of 2: finished") == 1
    cv = read_json(out / "cv.json")
    page = (out / "report.html").read_text()
    assert page.count('<a href="fold-') == len(cv["done"])
    for one in cv["configurations"].values():
        assert f"{one['pooled']['accuracy'] * 100:.2f}" in page
    assert result.cross_validation == cv
    assert cv["done"] == [1, 2]
    pooled = cv["configurations"]["initial"]["pooled"]
    assert pooled["n"] == 44 == sum(cv["configurations"]["initial"]["n"])
    right = sum(a * n for a, n in zip(*(cv["configurations"]["initial"][k] for k in ("accuracies", "n")), strict=True))
    assert pooled["accuracy"] == pytest.approx(right / 44)
    assert pooled["interval"][0] <= pooled["accuracy"] <= pooled["interval"][1]
    assert (cv["groups"], cv["copies_dropped"]) == (40, 1)
    assert cv["largest_group"] == 2  # with the dropped copy, 3
    assert (cv["outgrown"], cv["cut_pairs"]) == (0, 0)
    nearest = cv["baselines"]["nn_mirror"]["pooled"]
    assert nearest["n"] == 44
    answers = [
        row for k in (1, 2) for row in csv.DictReader((out / f"fold-{k}" / "baselines.csv").read_text().splitlines())
    ]
    by_hand = [row["nn_mirror"] == row["label"] for row in answers]
    assert nearest["accuracy"] == pytest.approx(np.mean(by_hand))
    assert "nearest thumbnail, mirrored ones included" in page
    comparison = read_json(out / "fold-1" / "comparison.json")
    assert comparison["published"] is None
    assert comparison["leakage"]["parts"]["with_twin"]["n"] == 0
    tested = [{r.path for r in read_index(out / f"fold-{k}" / "index.csv") if r.split == "test"} for k in (1, 2)]
    assert not tested[0] & tested[1]
    before = (out / "fold-2" / "initial" / "training.json").stat().st_mtime_ns
    with monkeypatch.context() as patched:  # whether a fold is finished is seen from its records alone
        for module, name in ((fetch, "fetch"), (index, "build_index")):
            patched.setattr(module, name, lambda *_, **__: pytest.fail("the data set is read"))
        for name in ("open_dataset", "open_split_dataset"):
            patched.setattr(prepare, name, lambda *_, **__: pytest.fail("the data set is read"))
        assert run_study(folds(root, out, cache)).cross_validation == cv
    (out / "fold-1" / "report.html").unlink()  # as if killed just before the first fold's end
    assert run_study(folds(root, out, cache)).cross_validation == cv
    shown = capsys.readouterr().err
    assert "initial: already trained" in shown
    assert "Fold 2 of 2: finished" in shown
    assert (out / "fold-2" / "initial" / "training.json").stat().st_mtime_ns == before
    # Another study must neither be taken for this one nor be pooled with it.
    with pytest.raises(RunError, match="holds another study: its config folds is 2, this one's is 3"):
        run_study(dataclasses.replace(folds(root, out, cache), folds=3))
    patients = tmp_path / "patients.csv"
    rows = read_index(out / "fold-1" / "index.csv")
    patients.write_text("path,group\n" + "".join(f"{r.path},{i % 11}\n" for i, r in enumerate(rows)))
    with pytest.raises(RunError, match="holds another study: its split groups_sha256 is None, this one's is"):
        run_study(folds(root, out, cache, groups=patients))
    with pytest.raises(RunError, match=r"fold-1/initial holds initial with head_solver = gradient, not lbfgs"):
        run_study(folds(root, out, cache, head_solver="lbfgs"))
    other = shutil.copytree(root, tmp_path / "data")
    Image.fromarray(picture(99)).save(other / "Training" / "one" / "0.png")
    with pytest.raises(RunError, match="holds another study: its dataset fingerprint is"):
        run_study(folds(other, out, cache))
    assert "Random weights" in page
    # A configuration more, fold by fold.
    two = dataclasses.replace(folds(root, out, cache, fold=1), configurations=("initial", "initial_lbfgs"))
    cv = run_study(two).cross_validation
    assert (cv["unfinished"], list(cv["configurations"])) == (["initial_lbfgs"], ["initial"])
    assert "Not every fold has initial_lbfgs" in (out / "report.html").read_text()
    cv = run_study(dataclasses.replace(two, fold=None)).cross_validation
    assert (cv["unfinished"], list(cv["configurations"])) == ([], ["initial", "initial_lbfgs"])
    for changed, value, message in (
        ("study.json", ("weights", "name", "random weights of another kind"), "its weights is random weights of"),
        ("initial/training.json", ("configuration", "max_epochs", 3), "its initial's max_epochs is 3, not 2"),
    ):
        path = out / "fold-2" / changed
        kept, record = path.read_bytes(), read_json(path)
        record[value[0]][value[1]] = value[2]
        write_json(path, record)
        with pytest.raises(RunError, match=message):
            sum_up_folds(out, 2)
        path.write_bytes(kept)
    record = read_json(out / "fold-2" / "study.json")
    record["dataset"]["fingerprint"] = "f00d"
    write_json(out / "fold-2" / "study.json", record)
    with pytest.raises(RunError, match=r"fold-2 belongs to another study than .*fold-1: its data fingerprint is f00d"):
        sum_up_folds(out, 2)
    with pytest.raises(ConfigError, match="not trained without being tested"):
        train_study(folds(root, out, cache))


def test_twin_free_train_tests_on_no_twin(root, tmp_path) -> None:
    study = Study(
        data=str(root), weights="none", out=tmp_path / "run", cache=tmp_path / "cache", device="cpu",
        protocol="twin-free-train", configurations=("initial",), max_epochs=1,
    )  # fmt: skip
    run_study(study)
    record = read_json(tmp_path / "run" / "study.json")
    assert record["split"]["left_out"] == 4
    assert record["split"]["train"] + record["split"]["validation"] == 28
    assert read_json(tmp_path / "run" / "comparison.json")["leakage"]["parts"]["twin_free"]["n"] == 12
    assert "No test image has a twin" in (tmp_path / "run" / "report.html").read_text()


def test_options_that_do_not_go_together_are_refused(root, tmp_path) -> None:
    for wrong in ({"folds": 1}, {"fold": 3, "protocol": "grouped-cv", "folds": 2}, {"fold": 1},
                  {"group_similarity": 0.2}, {"protocol": "grouped-cv", "split": Path("x.csv")}):  # fmt: skip
        with pytest.raises(ConfigError):
            Study(**wrong)
    few = Study(data=str(root), weights="none", cache=tmp_path, out=tmp_path / "x", protocol="grouped-cv", folds=40)
    with pytest.raises(DataError, match="too few for 40 folds"):
        run_study(few)


def test_audit_prints_json_and_writes_a_page(root, tmp_path, capsys) -> None:
    page = tmp_path / "pages" / "audit.html"
    assert main(["data", "audit", str(root), "--cache", str(tmp_path / "c"), "--html", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["audit"]["twins"]["all"]["direct_or_mirrored"] == 4
    assert found["baselines"]["nn_mirror"] >= 4 / 12
    html = page.read_text()
    assert html.count("mirrored, cosine") == 4
    assert "Training/one/0.png" in html
    assert "<script" not in html
    assert main(["data", "audit", str(root), "--cache", str(tmp_path / "c")]) == 0
    shown = capsys.readouterr().out
    assert "4 of 12" in shown or "           12" in shown
    assert main(["data", "audit", str(root), "--cache", str(tmp_path / "c"), "--similarity", "3"]) == 1
    assert "out of range" in capsys.readouterr().err


def test_a_single_image_is_no_data_set(tmp_path, capsys) -> None:
    (tmp_path / "data" / "one").mkdir(parents=True)
    Image.fromarray(picture(1)).save(tmp_path / "data" / "one" / "a.png")
    assert main(["data", "audit", str(tmp_path / "data"), "--cache", str(tmp_path / "c")]) == 1
    assert "only one class folder" in capsys.readouterr().err


def test_all_images_identical_are_audited_in_clear_words(tmp_path, capsys) -> None:
    for part in ("Training", "Testing"):
        for label in ("one", "two"):
            folder = tmp_path / "data" / part / label
            folder.mkdir(parents=True)
            for i in range(5):
                Image.fromarray(picture(1)).save(folder / f"{i}.png")
    assert main(["data", "audit", str(tmp_path / "data"), "--cache", str(tmp_path / "c"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["audit"]["twins"]["all"]["exact"] == 10
    assert found["audit"]["groups"]["n"] == 1
    assert found["audit"]["shortcuts"]["tree"] is None
    command = ["study", "--data", str(tmp_path / "data"), "--weights", "none", "--cache", str(tmp_path / "c"),
               "--out", str(tmp_path / "x"), "--protocol", "grouped-cv"]  # fmt: skip
    assert main(command) == 1
    assert "forms only 1 group(s)" in capsys.readouterr().err
