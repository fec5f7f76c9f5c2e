"""What the report refuses: files that are missing, damaged or do not belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_fixture import build_run, change

from tumorlens.core.errors import RunError
from tumorlens.core.run_folder import Run
from tumorlens.report import write_report


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
        ("initial/predictions.csv", lambda p: p.write_text(p.read_text() + "a,b\n"), "2 values, but the header has 8"),
        ("initial/metrics.json", lambda p: change(p, classes=["a", "b", "c", "d"]), "has the classes ['glioma'"),
        ("index.csv", lambda p: p.write_text(p.read_text() + "a,b\n"), "is damaged"),
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
