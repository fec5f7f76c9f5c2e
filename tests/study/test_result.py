"""What `run_study` returns: attributes, the table that it prints, and the JSON of `tumorlens study --json`."""

from __future__ import annotations

import pickle
from pathlib import Path

import tumorlens
from tumorlens.study.result import StudyResult

FOLDER, REPORT = Path("runs/x"), Path("runs/x/report.html")


def part(n: int, accuracy: float) -> dict[str, object]:
    return {"n": n, "accuracy": accuracy, "accuracy_interval": [0.25, 0.875], "macro": {"f1": 0.7}}


def of_run() -> StudyResult:
    parts = {"train": part(1000, 1.0), "validation": part(20, 0.9), "test": part(1311, 0.8125)}
    metrics = {"<b>": {"parts": parts}, "finetuned": {"parts": {"test": part(1311, 0.5)}}}
    return StudyResult.of_run(FOLDER, REPORT, {"pairs": []}, metrics)


def of_folds() -> StudyResult:
    pooled = {"n": 44, "accuracy": 0.75, "interval": [0.5, 1.0], "macro_f1": 0.7}
    return StudyResult.of_folds(FOLDER, REPORT, {"done": [1], "configurations": {"initial": {"pooled": pooled}}})


def test_metrics_are_attributes() -> None:
    result = of_run()
    assert (result.folder, result.report) == (FOLDER, REPORT)
    assert result.metrics["<b>"].test.accuracy == 0.8125
    assert result.metrics["<b>"].test.interval == (0.25, 0.875)
    assert result.metrics["finetuned"].validation is None
    assert of_folds().metrics["initial"].test.n == 44


def test_to_dict_is_the_json_of_the_command() -> None:
    assert of_run().to_dict() == {
        "run": "runs/x", "report": "runs/x/report.html", "comparison": {"pairs": []},
        "accuracy": {"<b>": {"train": 1.0, "validation": 0.9, "test": 0.8125}, "finetuned": {"test": 0.5}},
    }  # fmt: skip
    found = of_folds().to_dict()
    assert found["accuracy"] == {"initial": 0.75}
    assert found["cv"]["done"] == [1]
    assert set(found) == {"run", "report", "cv", "accuracy"}


def test_it_prints_a_small_table() -> None:
    lines = repr(of_run()).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "configuration test accuracy 95 % interval macro F1 test images",
        "<b> 81.25 % 25.0–87.5 % 0.700 1,311",
        "finetuned 50.00 % 25.0–87.5 % 0.700 1,311",
        "Report: runs/x/report.html",
    ]
    assert max(map(len, lines)) <= 80
    html = of_run()._repr_html_()
    assert html.count("<tr>") == 3
    assert "<td>&lt;b&gt;</td>" in html
    assert "<th>test accuracy</th>" in html


def test_it_travels_between_processes() -> None:
    assert pickle.loads(pickle.dumps(of_run())) == of_run()


def test_public_names_are_listed() -> None:
    assert set(tumorlens.__all__) <= set(dir(tumorlens))
    assert tumorlens.StudyResult is StudyResult
