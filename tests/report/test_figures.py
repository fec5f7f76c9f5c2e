"""What the report refuses, its figures and its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixture import build_run, change

from tumorlens.core.errors import RunError
from tumorlens.core.run_folder import Run
from tumorlens.report import figures, text, write_report
from tumorlens.report.material import read_material


def test_missing_stages_name_the_command_to_run(tmp_path):
    run = build_run(tmp_path, images=False)
    (run.folder("finetuned") / "predictions.csv").rename(tmp_path / "kept")
    with pytest.raises(RunError, match=f"tumorlens evaluate {run.root}"):
        write_report(run)
    (tmp_path / "kept").rename(run.predictions("finetuned"))
    run.comparison.unlink()
    with pytest.raises(RunError) as error:
        write_report(run)
    assert error.value.cure == f"Write it first: tumorlens compare {run.root}"
    for name in ("initial", "finetuned"):
        run.metrics(name).unlink()
    with pytest.raises(RunError, match=f"tumorlens evaluate {run.root}, then tumorlens compare {run.root}"):
        write_report(run)
    with pytest.raises(RunError, match="tumorlens study"):
        write_report(Run(tmp_path / "nowhere"))
    assert not run.report.exists()


def _without(key):
    def edit(path):
        record = json.loads(path.read_text())
        del record[key]
        path.write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("study.json", _without("weights"), "lacks 'weights.name'"),
        ("comparison.json", _without("verdict"), "lacks 'verdict'"),
        ("comparison.json", lambda p: change(p, configurations=[]), "names no configuration"),
        ("comparison.json", lambda p: change(p, configurations=["initial"]), "which it does not name"),
        ("initial/metrics.json", _without("classes"), "lacks 'classes'"),
        ("initial/training.json", _without("best_epoch"), "lacks 'best_epoch'"),
        ("initial/history.jsonl", lambda p: p.write_text(""), "is empty"),
        ("initial/history.jsonl", lambda p: p.write_text('{"epoch": 1}\n'), "lacks 'train_loss'"),
        ("initial/history.jsonl", lambda p: p.write_text("{\n"), "line 1 is not valid JSON"),
        ("initial/predictions.csv", lambda p: p.write_text("path,label\n"), "column 'predicted' is missing"),
        ("initial/predictions.csv", lambda p: p.write_bytes(b"\xff\xfe"), "can't decode"),
        (
            "initial/predictions.csv",
            lambda p: p.write_text("".join(p.read_text().splitlines(keepends=True)[:-1])),
            "do not belong together",
        ),
        ("initial/predictions.csv", lambda p: p.write_text(p.read_text() + "a,b\n"), "2 values where the header has 8"),
        ("initial/metrics.json", lambda p: change(p, classes=["a", "b", "c", "d"]), "has the classes ['glioma'"),
        ("index.csv", lambda p: p.write_text(p.read_text() + "a,b\n"), "too few or too many values"),
        ("index.csv", Path.unlink, "is missing"),
    ],
)
def test_damaged_files_are_one_clear_message(file, edit, message, tmp_path):
    run = build_run(tmp_path, images=False)
    edit(run.root / file)
    with pytest.raises(RunError) as error:
        write_report(run)
    assert message in str(error.value)
    assert error.value.cure
    assert not run.report.exists()


def test_comparison_of_another_evaluation_is_refused(tmp_path):
    run = build_run(tmp_path, images=False)
    pair = json.loads(run.comparison.read_text())["pairs"][0]
    pair["corrected_images"].pop()
    change(run.comparison, pairs=[pair])
    with pytest.raises(RunError, match="corrected images from initial to finetuned"):
        write_report(run)


def test_learning_curves_mark_the_best_epoch_and_take_one_epoch_or_a_solver(tmp_path):
    run = build_run(tmp_path, names=("initial",), images=False)
    loss, accuracy = figures.learning_curves(read_material(run).measured)[0]
    assert "best: 4" in loss
    assert "best epoch 4" in accuracy
    assert "initial, loss by epoch: training from 0.7200 to 0.0560" in loss
    run.history("initial").write_text(run.history("initial").read_text().splitlines()[0] + "\n")
    change(run.training("initial"), solver="lbfgs", best_epoch=1)
    loss, _ = figures.learning_curves(read_material(run).measured)[0]
    assert "Regularisation strength tried" in loss
    assert "nan" not in loss
    write_report(run)


def test_roc_corner_is_shown_only_where_curves_reach_it(tmp_path):
    good = read_material(build_run(tmp_path / "good", error_rates=(0.0, 0.0), images=False)).measured
    assert all(corner is not None and "up to a false positive rate of 0.05" in corner
               for _, corner in figures.roc_curves(good))  # fmt: skip
    poor = read_material(build_run(tmp_path / "poor", error_rates=(0.0, 0.9), images=False)).measured
    assert [corner for _, corner in figures.roc_curves(poor)] == [None, None]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.91, 0.9893), (0.5, 0.5), (0.0, 3e-5), (0.0, 1234.5), (0.9999, 1.0)]
)
def test_axes_are_round_and_hold_their_values(low, high):
    axis = figures.nice_axis(low, high, "x")
    assert axis.low <= low
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 9
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels)
    assert all(float(label) == pytest.approx(value, abs=1e-12) for value, label in axis.ticks)


def test_numbers_read_well():
    nbsp = "\N{NO-BREAK SPACE}"
    assert text.percent(0.9868) == f"98.68{nbsp}%"
    assert text.percent(0.99999) == f"99.999{nbsp}%"
    assert text.percent(1.0) == f"100.00{nbsp}%"
    assert text.interval(0.978, 0.9912) == f"97.8–99.1{nbsp}%"
    assert [text.points(d) for d in (0.0602, -0.001, 0.0)] == ["+6.02", "−0.10", "0.00"]
    assert [text.p_value(p).replace(nbsp, " ") for p in (1e-9, 0.0123, 0.34)] == ["p < 0.001", "p = 0.012", "p = 0.34"]
    assert [text.duration(s).replace(nbsp, " ") for s in (0.5, 12, 125, 7300)] == [
        "0.50 s", "12 s", "2 min 5 s", "2 h 1 min",
    ]  # fmt: skip
    assert text.listed(["a"]) == "a"
    assert text.listed(["a", "b", "c"]) == "a, b and c"
    assert text.moment("yesterday") == "yesterday"
    assert text.bound("98.7 % of p < 0.001") == f"98.7{nbsp}% of p{nbsp}<{nbsp}0.001"
    assert text.plural(1, "image") == f"1{nbsp}image"
    assert text.number(None) == "–"


def test_diverged_training_is_drawn_as_far_as_it_goes(tmp_path):
    run = build_run(tmp_path, names=("initial",), images=False)
    epochs = [json.loads(line) for line in run.history("initial").read_text().splitlines()]
    epochs[-1] |= {"train_loss": float("nan"), "validation_loss": float("inf")}
    run.history("initial").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    loss, _ = figures.learning_curves(read_material(run).measured)[0]
    paths = [piece.split('"')[0] for piece in loss.split(' d="')[1:]]
    assert not any("nan" in path or "inf" in path for path in paths)
    write_report(run)
