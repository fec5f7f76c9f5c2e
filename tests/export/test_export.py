"""The exported file and its metadata, and when nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from classifier_fixture import CLASSES, arrays, network
from folders import write_folder

from tumorlens import Study, run_study
from tumorlens.cli.app import main
from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import read_json, write_json
from tumorlens.core.run_folder import Run
from tumorlens.export import export
from tumorlens.export.export import compare_with_torch, export_run, graph
from tumorlens.export.onnx_graph import build_graph
from tumorlens.export.trained_run import TrainedRun, open_trained_run
from tumorlens.inference.classifier import load_classifier
from tumorlens.readers.pixels import read_image


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    """A run, its data, and the result of the export. It cannot read the test images: they are deleted."""
    root = tmp_path_factory.mktemp("export")
    data = write_folder(root / "data", train=34, test=1)
    run_study(Study(data=str(data), weights="none", out=root / "run", cache=root / "cache", max_epochs=1,
                    configurations=("initial",), device="cpu", precision="fp32"))  # fmt: skip
    shutil.rmtree(data / "Testing")
    return root / "run", data, export_run(root / "run", "initial")


@pytest.fixture(scope="module")
def compared(exported):
    """The comparison of the run's graph with torch, made once."""
    trained = open_trained_run(exported[0], "initial")
    return export.compare_with_torch(trained, export.graph(trained), trained.split("validation"))


def test_the_file_records_its_provenance(exported):
    run, _, found = exported
    classifier = load_classifier(run, 1)
    card = classifier.card
    assert found["file"] == str(run / "classifier.onnx")
    assert found["bytes"] == (run / "classifier.onnx").stat().st_size
    assert card["classes"] == list(CLASSES)
    assert card["dataset"]["fingerprint"] == read_json(run / "study.json")["dataset"]["fingerprint"]
    measured = read_json(run / "initial" / "metrics.json")["parts"]
    assert card["measured"]["test"]["accuracy"] == measured["test"]["accuracy"]
    assert card["measured"]["validation"]["n"] == 20
    assert card["weights_origin"]["kind"] == "none"
    assert card["licence"]["code"] == "MIT"
    assert "Not for diagnosis" in card["intended_use"]
    assert "metastases" in card["limits"][0]
    assert classifier.uncertainty.classes == CLASSES


def test_it_agrees_with_the_runs_own_predictions(exported):
    run, data, found = exported
    assert found["parity"]["n"] == 20
    assert found["parity"]["max_probability_difference"] < 1e-4
    rows = (run / "initial" / "predictions.csv").read_text().splitlines()
    path, *_, probability = next(row for row in rows if "Training" in row).split(",")
    logits = load_classifier(run, 1).run(read_image(data / path)[0][None]).logits[0].astype(float)
    assert np.exp(logits[-1]) / np.exp(logits).sum() == pytest.approx(float(probability), abs=1e-4)


def test_a_graph_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    def wrong(state, k, *, plain):
        return build_graph(state | {"fc.bias": state["fc.bias"] + np.float32([0.1, 0, 0, 0])}, k)

    monkeypatch.setattr(export, "build_graph", wrong)
    with pytest.raises(RunError, match="differ from torch"):
        export_run(exported[0], "initial", out=tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_int8_that_costs_accuracy_exits_with_1_and_leaves_no_file(exported, compared, tmp_path, monkeypatch, capsys):
    def broken(model, pixels):
        assert [node.op_type for node in model.graph.node].count("Conv") == 21, "not the plain graph"
        return build_graph(arrays(network(5)), 4)

    monkeypatch.setattr(export, "compare_with_torch", lambda *_: compared)
    monkeypatch.setattr(export, "quantize", broken)
    monkeypatch.setattr("tumorlens.export.quantize.MAX_DROP", -1.0)
    out = tmp_path / "a.onnx"
    assert main(["export", str(exported[0]), "--configuration", "initial", "--int8", "--out", str(out)]) == 1
    assert "int8 graph was not written" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_prints_what_was_measured(exported, compared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "compare_with_torch", lambda *_: compared)
    monkeypatch.setattr(export, "fit_uncertainty", lambda *_, **__: load_classifier(exported[0], 1).uncertainty)
    out = tmp_path / "b.onnx"
    assert main(["export", str(exported[0]), "--configuration", "initial", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["changed_decisions"] == 0
    assert load_classifier(out, 1).card["precision"] == "fp32"


def test_a_refit_on_validation_images_is_not_calibrated_on_them(exported, tmp_path):
    run = Path(shutil.copytree(exported[0], tmp_path / "run"))
    record = read_json(run / "initial" / "training.json")
    record["configuration"]["refit"] = True
    (run / "initial" / "training.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="trained on the validation images"):
        export_run(run, "initial")


def test_what_is_not_trained_cannot_be_exported(exported):
    with pytest.raises(RunError, match="no finished training of 'finetuned'") as caught:
        export_run(exported[0])
    assert "initial" in caught.value.cure


def test_a_place_that_cannot_be_written_is_reported_before_anything_is_computed(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "build_graph", lambda *_, **__: pytest.fail("computed"))
    (tmp_path / "file").touch()
    for out, match in ((tmp_path, "is a folder"), (tmp_path / "file" / "m.onnx", "is a file")):
        with pytest.raises(RunError, match=match):
            export_run(exported[0], "initial", out=out)


def test_accuracy_without_twins_quotes_the_frozen_lists_in_the_card(tmp_path):
    scores = {"n": 4, "correct": 3, "accuracy": 0.75, "interval": [0.3, 0.95]}
    parts = {"test": scores | {"accuracy_interval": [0.3, 0.95]}}
    run = Run(tmp_path)
    run.folder("net").mkdir()
    write_json(run.metrics("net"), {"checkpoint_sha256": "0a", "parts": parts})
    write_json(run.study, {})
    names = ("official", "twin_free", "below_0.95", "other_patients")
    subsets = {name: {"configurations": {"net": scores}} for name in names}
    write_json(run.comparison, {"leakage": {"frozen_lists": "tumorlens-v1/1", "parts": subsets}})
    measured = TrainedRun(run, "net", ("a", "b"), (), tmp_path, tmp_path, "0a").measured()
    assert {name: one.get("frozen_lists") for name, one in measured.items()} == {
        "test": None, "twin_free": "tumorlens-v1/1", "below_0.95": "tumorlens-v1/1", "other_patients": None,
    }  # fmt: skip


def test_moved_and_changed_images_are_refused(exported, compared, tmp_path):
    run, data, _ = exported
    moved = tmp_path / "moved"
    shutil.move(data, moved)
    try:
        with pytest.raises(RunError, match="no longer in") as caught:
            open_trained_run(run, "initial")
        assert "--data" in caught.value.cure
        there = open_trained_run(run, "initial", str(moved))
        assert compare_with_torch(there, graph(there), there.split("validation"))[0] == compared[0]
        shutil.copytree(moved, data)
        for path in (data / "Training").rglob("*.png"):
            path.write_bytes(path.read_bytes() + b"x")
        changed = open_trained_run(run, "initial")
        with pytest.raises(DataError, match="is not the file"):
            list(changed.batches(changed.split("validation"), "Validation"))
    finally:
        shutil.rmtree(data, ignore_errors=True)
        shutil.move(moved, data)
