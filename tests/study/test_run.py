"""The whole study on small generated data: what it leaves, how it goes on, what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from tumorlens import (
    Configuration,
    Study,
    compare_run,
    evaluate_run,
    report_run,
    run_study,
)
from tumorlens.cli.app import main
from tumorlens.core.errors import (
    ConfigError,
    DataError,
    FetchError,
    RunError,
)
from tumorlens.core.files import read_json
from tumorlens.core.progress import Clock, log
from tumorlens.data.dataset import split_hash
from tumorlens.data.index import read_index
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.study import experiment
from tumorlens.study.experiment import Experiment
from tumorlens.study.prepare import prepare
from tumorlens.study.run import train_study
from tumorlens.training import devices, weights
from tumorlens.training import fit as train


def options(small_folder: Path, small_cache: Path, out: Path, **changes: object) -> Study:
    values: dict[str, object] = {
        "data": str(small_folder), "weights": "none", "out": out, "cache": small_cache, "max_epochs": 2,
        "device": "cpu", "precision": "fp32",  # on every processor
    }  # fmt: skip
    return Study(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished(small_folder: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = run_study(options(small_folder, small_cache, out), command="tumorlens study --data x")
    assert result.report == out / "report.html"
    return out


def test_a_study_leaves_what_the_design_names(finished: Path) -> None:
    found = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    expected = {"study.json", "index.csv", "audit.json", "baselines.csv", "comparison.json", "report.html"}
    for name, checkpoint in (
        ("initial", "best_brain_tumor_resnet18"),
        ("finetuned", "best_brain_tumor_resnet18_finetuned"),
    ):
        files = (
            f"{checkpoint}.pth",
            f"{checkpoint}.json",
            "history.jsonl",
            "predictions.csv",
            "metrics.json",
            "training.json",
        )
        expected |= {f"{name}/{file}" for file in files}
    assert found == expected


def test_study_json_says_what_went_in(finished: Path, small_folder: Path) -> None:
    record = read_json(finished / "study.json")
    assert record["config"]["data"] == str(small_folder)
    assert record["split"].pop("sha256") == split_hash(read_index(finished / "index.csv"))
    assert record["split"] == {"train": 27, "validation": 5, "test": 12, "seed": 0,
                               "source": "85/15 stratified by seed", "test_source": "folder",
                               "protocol": "official", "left_out": 0, "groups_sha256": None,
                               "frozen_lists": None, "patients": None}  # fmt: skip
    assert record["weights"]["kind"] == "none"
    assert record["device"]["why"]
    assert record["environment"]["torch"] == torch.__version__.split("+")[0] or record["environment"]["torch"]
    assert len(record["dataset"]["fingerprint"]) == 64
    assert record["dataset"]["comparable_to_published"] is False
    assert record["peak_memory_gb"] > 0
    assert record["timing"]["total_s"] > 0


def test_evaluation_convolves_as_training_did(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(train, "fast_convolutions", lambda modules: chosen.append(len(modules)) or nullcontext())
    evaluate_run(finished)
    # initial learns one module, fc, which convolves nothing; finetuned three, layer3, layer4 and fc
    assert chosen == [1, 3]


def test_data_is_checked_before_weights_are_downloaded(
    small_folder: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: str) -> None:
        raise FetchError("Too early.", cure="")

    monkeypatch.setattr(weights, "find_weights", find)
    out = tmp_path / "run"
    with pytest.raises(DataError, match="is not found"):
        run_study(options(tmp_path / "absent", small_cache, out, weights="imagenet"))
    with pytest.raises(FetchError, match="Too early"):
        run_study(options(small_folder, small_cache, out, weights="imagenet"))


def test_equal_files_are_predicted_once(small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_folder, data)
    one = next((data / "Testing" / "glioma").iterdir())
    shutil.copy(one, one.with_stem("copy"))
    asked: list[str] = []
    predict = experiment.predict_logits
    monkeypatch.setattr(
        experiment,
        "predict_logits",
        lambda m, s, hashes, *a, **k: asked.extend(hashes) or predict(m, s, hashes, *a, **k),
    )
    run_study(options(data, tmp_path / "cache", tmp_path / "run", max_epochs=1, configurations=("initial",)))
    rows = read_index(tmp_path / "run" / "index.csv")
    assert len(asked) == len(set(asked)) == len({row.sha256 for row in rows}) < len(rows)
    found = read_predictions(tmp_path / "run" / "initial" / "predictions.csv")
    assert found.paths == tuple(row.path for row in rows)
    answers = dict(zip(found.paths, found.probabilities.tolist(), strict=True))
    first, second = (path.relative_to(data).as_posix() for path in (one, one.with_stem("copy")))
    assert answers[first] == answers[second]


@pytest.mark.parametrize("name", ["initial", "finetuned"])
def test_checkpoints_load_in_plain_torchvision(finished: Path, name: str) -> None:
    training = read_json(finished / name / "training.json")
    path = finished / name / training["checkpoint"]
    model = resnet18(num_classes=4)
    model.load_state_dict(torch.load(path, weights_only=True))
    card = read_json(path.with_suffix(".json"))
    assert card["classes"] == ["glioma", "meningioma", "notumor", "pituitary"]
    assert card["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert card["sha256"] == training["checkpoint_sha256"]


def test_finetuned_starts_from_initials_best(finished: Path) -> None:
    a = torch.load(finished / "initial" / "best_brain_tumor_resnet18.pth", weights_only=True)
    b = torch.load(finished / "finetuned" / "best_brain_tumor_resnet18_finetuned.pth", weights_only=True)
    for key in a:
        assert torch.equal(a[key], b[key]) != key.startswith(("layer3.", "layer4.", "fc.")), key


def test_predictions_are_those_of_the_checkpoint(finished: Path, small_folder: Path) -> None:
    from tumorlens.readers.pixels import read_image
    from tumorlens.training.model import normalise

    model = resnet18(num_classes=4).eval()
    path = finished / "finetuned" / "best_brain_tumor_resnet18_finetuned.pth"
    model.load_state_dict(torch.load(path, weights_only=True))
    with (finished / "finetuned" / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"][:6]
    x = torch.stack([torch.from_numpy(read_image(small_folder / r["path"])[0]).permute(2, 0, 1) for r in rows])
    with torch.inference_mode():
        wanted = torch.softmax(model(normalise(x)), 1)
    ours = torch.tensor([[float(r[f"p_{c}"]) for c in ("glioma", "meningioma", "notumor", "pituitary")] for r in rows])
    assert torch.allclose(ours, wanted, atol=1e-4)


def test_the_same_command_again_does_nothing_new(
    finished: Path, small_folder: Path, small_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "finetuned" / "training.json").read_bytes()
    run_study(options(small_folder, small_cache, finished))
    assert "finetuned: already trained.\n" in capsys.readouterr().err
    assert (finished / "finetuned" / "training.json").read_bytes() == before
    checkpoint = finished / "finetuned" / "best_brain_tumor_resnet18_finetuned.pth"
    checkpoint.rename(checkpoint.with_suffix(".kept"))
    run_study(options(small_folder, small_cache, finished))
    checkpoint.with_suffix(".kept").rename(checkpoint)
    assert f"finetuned: already trained, but {checkpoint.name} is missing" in capsys.readouterr().err


def test_stages_give_what_the_study_gives(
    finished: Path, small_folder: Path, small_cache: Path, tmp_path: Path
) -> None:
    whole = read_json(finished / "comparison.json")
    out = tmp_path / "staged"
    words = ["train", "--data", str(small_folder), "--weights", "none", "--max-epochs", "2", "--device", "cpu",
             "--precision", "fp32", "--cache", str(small_cache), "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    evaluate_run(out)
    staged = compare_run(out)
    for key in ("pairs", "verdict"):
        assert staged[key] == whole[key]
    assert report_run(out).exists()


def test_auto_goes_on_in_the_precision_that_a_run_began_in(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    record = read_json(run / "study.json")
    record["config"]["precision"] = "auto"
    (run / "study.json").write_text(json.dumps(record))
    native = dataclasses.replace(devices.BACKENDS["cpu"], has_bf16=lambda: True)
    monkeypatch.setitem(devices.BACKENDS, "cpu", native)  # as on another processor
    evaluate_run(run)
    device = read_json(run / "study.json")["device"]
    assert (device["precision"], device["precision_why"]) == ("fp32", "the run began in it")


def test_other_studies_folders_are_refused(finished: Path, small_folder: Path, small_cache: Path) -> None:
    with pytest.raises(RunError, match="another study: its config seed is 0"):
        run_study(options(small_folder, small_cache, finished, seed=1))
    before = (finished / "study.json").read_bytes()
    with pytest.raises(RunError, match="max_epochs = 2, not 3"):
        run_study(options(small_folder, small_cache, finished, max_epochs=3))
    assert (finished / "study.json").read_bytes() == before  # else reports would tell of what was refused


def test_a_configuration_can_be_added_later(finished: Path, small_folder: Path, small_cache: Path) -> None:
    run_study(options(small_folder, small_cache, finished, configurations=("initial_lbfgs",)))
    comparison = read_json(finished / "comparison.json")
    assert comparison["configurations"] == ["initial", "finetuned", "initial_lbfgs"]


def test_configurations_may_be_objects_and_epochs_are_reported(
    small_folder: Path, small_cache: Path, tmp_path: Path
) -> None:
    records: list[dict[str, object]] = []
    mine = Configuration("mine", ("fc",), 1e-3, start="initial")
    study = options(
        small_folder, small_cache, tmp_path / "run", configurations=("initial", mine), on_epoch=records.append
    )
    result = run_study(study)
    assert [(r["configuration"], r["epoch"]) for r in records] == [
        ("initial", 1), ("initial", 2), ("mine", 1), ("mine", 2)
    ]  # fmt: skip
    assert records[0].keys() >= {"train_loss", "validation_loss", "validation_accuracy", "seconds", "best"}
    assert set(result.metrics) == {"initial", "mine"}
    before = (tmp_path / "run" / "mine" / "training.json").read_bytes()
    run_study(study)  # resumed: nothing is trained again
    assert len(records) == 4
    evaluate_run(tmp_path / "run")  # from the record alone
    assert (tmp_path / "run" / "mine" / "training.json").read_bytes() == before
    other = dataclasses.replace(study, configurations=("initial", dataclasses.replace(mine, learning_rate=0.1)))
    with pytest.raises(RunError, match=r"holds mine with learning_rate = 0\.001, not 0\.1"):
        run_study(other)


def test_strengths_of_the_solver_are_reported_like_epochs(
    small_folder: Path, small_cache: Path, tmp_path: Path
) -> None:
    records: list[dict[str, object]] = []
    study = options(small_folder, small_cache, tmp_path / "run", configurations=("initial_lbfgs",))
    train_study(dataclasses.replace(study, on_epoch=records.append))
    assert {r["configuration"] for r in records} == {"initial_lbfgs"}
    assert all(isinstance(r["c"], float) for r in records)


def test_the_api_prints_nothing(
    small_folder: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # As in a new process, where no command has called log_to_stderr.
    for name, value in {"handlers": [logging.NullHandler()], "level": logging.NOTSET, "propagate": True}.items():
        monkeypatch.setattr(log, name, value)
    result = run_study(options(small_folder, small_cache, tmp_path / "run", max_epochs=1))
    assert 0 <= result.metrics["finetuned"].test.accuracy <= 1
    assert capfd.readouterr() == ("", "")


def test_activations_that_nothing_reads_are_not_computed(
    small_folder: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_text(
        '[[configuration]]\nname = "later"\nstart = "finetuned"\nlearns = ["layer4", "fc"]\nlearning_rate = 1e-3\n'
        '[[configuration]]\nname = "head"\nstart = "initial"\nlearns = ["fc"]\nlearning_rate = 1e-3\n'
    )
    study = options(small_folder, small_cache, tmp_path / "run", config=tmp_path / "c.toml",
                    configurations=("initial", "head", "finetuned", "later"))  # fmt: skip
    asked: list[list[str]] = []
    monkeypatch.setattr(Experiment, "_features", lambda *words: (asked.append(words[2]), (None, 1))[1])
    prepare(study).compute_features(Clock())
    assert asked == [["avgpool", "layer2"]]  # layer3 of the fine-tuned weights comes later


def test_killed_and_started_again_ends_the_same(
    small_folder: Path, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(
        '[[configuration]]\nname = "layer4"\nlearns = ["layer4", "fc"]\nlearning_rate = 1e-3\nbatch_size = 16\n'
        "max_epochs = 3\n"
    )

    def words(out: Path) -> list[str]:
        return ["train", "--data", str(small_folder), "--weights", "none", "--device", "cpu",
                "--cache", str(small_cache), "--out", str(out), "--configurations", "initial",
                "--config", str(tmp_path / "c.toml")]  # fmt: skip

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    last = killed / "layer4" / "last.pt"
    command = [sys.executable, "-m", "tumorlens", *words(killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "layer4 epoch  2" in line:  # so that the first one's state is on the disk
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    assert last.exists()
    assert main(words(killed)) == 0
    assert "layer4: resuming after epoch" in capsys.readouterr().err
    assert main(words(whole)) == 0
    name = "best_brain_tumor_resnet18_layer4.pth"
    a, b = (torch.load(run / "layer4" / name, weights_only=True) for run in (killed, whole))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not last.exists()


def test_ctrl_c_prints_how_to_go_on(small_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tumorlens", "study", "--data", str(small_folder), "--weights", "none",
               "--device", "cpu", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]  # fmt: skip
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if "initial epoch  1" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "tumorlens study --data" in err
    assert "Traceback" not in seen + out + err


def test_an_unwritable_folder_is_named_before_any_work(small_folder: Path, small_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    began = time.monotonic()
    with pytest.raises(RunError, match="is a file"):
        run_study(options(small_folder, small_cache, tmp_path / "file"))
    with pytest.raises(RunError, match="cannot be written"):
        run_study(options(small_folder, small_cache, tmp_path / "file" / "below"))
    assert time.monotonic() - began < 20


def test_missing_weights_stop_a_study_by_default(
    small_folder: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip

    def offline() -> Path:
        raise FetchError("The ImageNet weights could not be downloaded (offline).", cure="Name a file.")

    monkeypatch.setattr(weights, "_download", offline)
    with pytest.raises(FetchError):
        run_study(options(small_folder, small_cache, tmp_path / "a", weights="imagenet"))
    study = options(
        small_folder, small_cache, tmp_path / "b", weights="imagenet", random_weights_if_unavailable=True,
        configurations=("initial",),
    )  # fmt: skip
    run_study(study)
    assert "WARNING: random weights" in capsys.readouterr().err
    assert "random" in (tmp_path / "b" / "report.html").read_text().lower()


def test_tensorboard_events(small_folder: Path, small_cache: Path, tmp_path: Path) -> None:
    run_study(options(small_folder, small_cache, tmp_path / "run", tensorboard=True, configurations=("initial",)))
    assert list((tmp_path / "run" / "initial" / "tensorboard").glob("events*"))


def test_seeds_are_summed_up(finished: Path, small_folder: Path, small_cache: Path, tmp_path: Path) -> None:
    from tumorlens.study.stages import sum_up

    other = tmp_path / "other"
    run_study(options(small_folder, small_cache, other, seed=1, configurations=("initial",)))
    summary = sum_up([finished, other])
    values = [read_json(r / "initial" / "metrics.json")["parts"]["test"]["accuracy"] for r in (finished, other)]
    assert summary["initial"]["values"] == values
    assert summary["initial"]["mean"] == pytest.approx(sum(values) / 2)
    assert set(summary) == {"initial"}
    with pytest.raises(RunError, match="with the same seed 0"):
        sum_up([finished, Path(shutil.copytree(finished, tmp_path / "copy"))])
    longer = tmp_path / "longer"
    shutil.copytree(other, longer)
    record = read_json(longer / "initial" / "training.json")
    record["configuration"]["learning_rate"] = 0.5
    (longer / "initial" / "training.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="its initial's learning_rate is"):
        sum_up([finished, longer])
    with pytest.raises(RunError, match="given twice"):
        sum_up([finished, finished / "initial" / ".."])
    index = other / "index.csv"
    content = next(row.sha256 for row in read_index(index) if row.split == "test")
    index.write_text(index.read_text().replace(content, "0" * 64))  # another picture of the same name
    with pytest.raises(RunError, match="on other images"):
        sum_up([finished, other])


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    for stage in (evaluate_run, compare_run, report_run):
        with pytest.raises(RunError, match="missing"):
            stage(tmp_path)
    with pytest.raises(ConfigError):
        Study(max_epochs=-1)


def test_history_is_a_line_an_epoch(finished: Path) -> None:
    lines = (finished / "initial" / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["epoch"] for r in records] == [1, 2]


def test_areas_are_compared_and_shown(finished: Path) -> None:
    pairs = read_json(finished / "comparison.json")["pairs"]
    areas = [area for pair in pairs for area in pair["auc"].values()]
    assert len(areas) == 4 * len(pairs)
    tested = [area for area in areas if "p_holm" in area]
    assert tested
    assert all(area["p_holm"] >= area["p_value"] for area in tested)
    page = (finished / "report.html").read_text()
    assert "Area under the ROC curve by class" in page
    assert f"{areas[0]['auc_first']:.4f}" in page


def test_the_report_is_whole(finished: Path) -> None:
    assert os.path.getsize(finished / "report.html") > 10_000  # noqa: PTH202
