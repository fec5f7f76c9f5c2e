"""predict and explain as commands: what is checked before inputs are read, the summary, and the table's width."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from classifier_fixture import grey, write_classifier

from tumorlens.cli.app import main
from tumorlens.inference.uncertainty import REFUSED, UNCERTAIN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_classifier(tmp_path_factory.mktemp("model") / "classifier.onnx"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    root.mkdir()
    grey("glioma").save(root / "a.png")
    grey("meningioma", UNCERTAIN).save(root / "b.png")
    grey("pituitary", REFUSED).save(root / ("c" * 60 + ".png"))
    (root / "d.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    grey("notumor").save(root / "e.png")
    return root


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which an input is read."""
    monkeypatch.setattr("tumorlens.inference.predict.read_inputs", lambda *_, **__: pytest.fail("read"))


def test_names_after_two_hyphens_are_inputs(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "-x.png").write_bytes(next(folder.glob("*.png")).read_bytes())
    assert main(["predict", "--model", model, "--", "-x.png"]) == 0
    assert main(["predict", "--model", model, "-x.png"]) == 2


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict", "--out", "rows.xlsx"], 2, "--out rows.xlsx: rows cannot be written as .xlsx."),
        (["predict", "--out", "rows"], 2, "--out rows: rows cannot be written as a file without a suffix."),
        (["predict", "--heatmaps", "a-file"], 1, "--heatmaps a-file is a file."),
        (["predict", "--batch", "0"], 1, "--batch 0 is below 1."),
        (["predict", "--model", "absent.onnx", "-q"], 1, "--model absent.onnx does not exist."),
        (["explain", "--out", "a-file"], 1, "--out a-file is a file."),
        (["explain", "-o", "p", "--opacity", "2"], 1, "--opacity 2.0 is out of range."),
        (["explain", "-o", "p", "-m", "absent.onnx"], 1, "--model absent.onnx does not exist."),
    ],
)
def test_what_is_wrong_is_reported_before_inputs_are_read(
    words: list[str], code: int, message: str, folder: Path, model: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder.parent)
    Path("a-file").touch()
    model_of = [] if "absent.onnx" in words else ["--model", model]
    assert main([words[0], str(folder), *model_of, *words[1:]]) == code
    assert capsys.readouterr().err.startswith(f"Error: {message}\n  → ")


@pytest.mark.parametrize("name", ["rows.csv", "rows.JSON", "rows.jsonl", "rows.ndjson", "rows.txt"])
def test_suffixes_that_name_a_format(name: str, folder: Path, model: str, tmp_path: Path) -> None:
    assert main(["predict", str(folder / "a.png"), "-m", model, "-o", str(tmp_path / name)]) == 0
    assert main(["predict", str(folder / "a.png"), "-m", model, "-o", str(tmp_path / "x.out"), "--format", "csv"]) == 0


def test_predict_ends_with_a_summary(
    folder: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "rows.csv")
    assert main(["predict", str(folder), "-m", model, "-o", out]) == 3
    err = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"Files: 5\. Images and slices: 5 \(4 uncertain, 1 error\)\. Time: [0-9.]+ s\.", err[-2])
    assert err[-1] == "1 of 5 could not be read; their rows say why."
    assert main(["predict", str(folder), "-m", model, "-o", out, "--resume"]) == 3
    assert "Files: 5. Images and slices: 5 (4 uncertain, 1 error). Time:" in capsys.readouterr().err
    assert main(["predict", str(folder), "-m", model, "-q"]) == 3
    assert capsys.readouterr().err == "1 of 5 could not be read; their rows say why.\n"


def test_the_table_fits_80_columns_and_has_cures(
    folder: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["predict", ".", "-m", model]) == 3
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "slice inst." in out.splitlines()[0]
    assert "error" in out
    assert re.search(r"^    \S.*\. \S", out, flags=re.M)  # reason and cure, indented below the row
