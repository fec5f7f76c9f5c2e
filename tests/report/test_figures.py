"""The figures: what they show and how their axes are divided."""

from __future__ import annotations

import json
import math

import pytest
from report_fixture import build_run, change

from tumorlens.report import figures, write_report
from tumorlens.report.data import read_report_data


def test_learning_curves_mark_the_best_epoch_and_take_one_epoch_or_a_solver(tmp_path):
    run = build_run(tmp_path, names=("initial",), images=False)
    loss, accuracy = figures.learning_curves(read_report_data(run).results)[0]
    assert loss.best == (4, 10)
    assert "best epoch 4" in accuracy.label
    assert "initial, loss by epoch: training from 0.7200 to 0.0560" in loss.label
    run.history("initial").write_text(run.history("initial").read_text().splitlines()[0] + "\n")
    change(run.training("initial"), solver="lbfgs", best_epoch=1)
    loss, _ = figures.learning_curves(read_report_data(run).results)[0]
    assert loss.x.label == "Regularisation strength tried"
    page = write_report(run).read_text()
    assert "best: 1<" in page
    assert "nan" not in page


def test_roc_corner_is_shown_only_where_curves_reach_it(tmp_path):
    good = read_report_data(build_run(tmp_path / "good", error_rates=(0.0, 0.0), images=False)).results
    assert all(corner is not None and "up to a false positive rate of 0.05" in corner.label
               for _, corner in figures.roc_curves(good))  # fmt: skip
    poor = read_report_data(build_run(tmp_path / "poor", error_rates=(0.0, 0.9), images=False)).results
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


def test_diverged_training_is_drawn_as_far_as_it_goes(tmp_path):
    run = build_run(tmp_path, names=("initial",), images=False)
    epochs = [json.loads(line) for line in run.history("initial").read_text().splitlines()]
    epochs[-1] |= {"train_loss": float("nan"), "validation_loss": float("inf")}
    run.history("initial").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    loss, _ = figures.learning_curves(read_report_data(run).results)[0]
    assert all(math.isfinite(value) for mark in loss.marks for point in mark.points for value in point)
    page = write_report(run).read_text()
    paths = [piece.split('"')[0] for piece in page.split(' d="')[1:]]
    assert not any("nan" in path or "inf" in path for path in paths)
