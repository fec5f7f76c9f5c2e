"""Commands on data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import write_folder

from tumorlens.cli.app import main
from tumorlens.study import audit as auditing


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data", train=4, test=2)
    (folder / "Training" / "glioma" / "empty.jpg").write_bytes(b"")
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "cache"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"]["counts"]["Testing"] == {"glioma": 2, "meningioma": 2, "notumor": 2, "pituitary": 2}
    assert found["audit"]["unreadable"][0]["path"] == "Training/glioma/empty.jpg"
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "cache")]) == 0
    assert "empty" in capsys.readouterr().out


@pytest.mark.case(6)
@pytest.mark.case(7)
def test_what_was_decided_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "data", train=4, test=2)
    (folder / "Testing").rename(folder / "valid")
    (folder / "Training" / "glioma" / "empty.jpg").write_bytes(b"")
    (folder / "figures").mkdir()
    (folder / "figures" / "1.png").write_bytes(b"x")
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  Note: valid/ is the validation split of the official protocol: none is drawn from Training/.",
        "  Note: 1 image(s) left out, outside the class folders: figures/ (1).",
        "  Validation (valid): glioma 2, meningioma 2, notumor 2, pituitary 2",
        "  Testing: no folder; a study splits its images off Training",
        "Unreadable files: 1 (1 empty file (0 bytes))",
    ):
        assert line in printed.splitlines()
    assert main(["data", "fetch", str(folder)]) == 0
    assert "Note: 1 image(s) left out" in capsys.readouterr().err


def test_an_audit_looks_at_its_weights_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auditing, "open_split_dataset", lambda *_: pytest.fail("indexed"))
    assert main(["data", "audit", "phantom", "--weights", str(tmp_path / "absent.pth"), "--cache", str(tmp_path)]) == 1
    assert "absent.pth is no file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "audit"])
def test_a_cache_that_cannot_be_written_is_reported_first(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    cache.touch()
    assert main(["data", command, "kaggle", "--cache", str(cache)]) == 1
    assert capsys.readouterr().err == f"Error: --cache {cache} is a file.\n  → Choose a folder.\n"
