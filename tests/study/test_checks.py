"""What can be checked is checked before any download or long step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tumorlens import Study, run_study
from tumorlens.core.errors import DataError, MissingExtraError, RunError
from tumorlens.study import checks, prepare


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are looked for, no data set is opened, no device is resolved."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("too early")

    for name in ("_find_weights", "open_split_dataset", "_resolve_compute"):
        monkeypatch.setattr(prepare, name, refuse)


def check(tmp_path: Path, **options: Any) -> None:
    run_study(Study(**{"data": "phantom", "out": tmp_path / "run", "cache": tmp_path / "cache"} | options))


@pytest.mark.parametrize(
    ("option", "content", "error", "message"),
    [
        ("data", None, DataError, "is not found"),
        ("split", None, DataError, "--split .* cannot be read"),
        ("split", "path,part\na.png,test\n", DataError, "lacks the columns"),
        ("split", "path,split\na.png,testing\n", DataError, "line 2: split is 'testing'"),
        ("groups", None, DataError, "--groups .* cannot be read"),
        ("groups", "path\na.png\n", DataError, "lacks the columns"),
        ("out", "", RunError, "--out .* is a file"),
        ("cache", "", RunError, "--cache .* is a file"),
    ],
)
def test_files_and_folders(
    option: str, content: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "named"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        check(tmp_path, **{option: path})


@pytest.mark.parametrize(
    ("options", "module", "extra"),
    [
        ({}, "torch", "study"),
        ({"data": "kaggle"}, "kagglehub", "study"),
        ({"tensorboard": True}, "tensorboard", "tensorboard"),
    ],
)
def test_packages(
    options: dict[str, Any], module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == module else found(name))
    with pytest.raises(MissingExtraError, match=rf"'{module}'.*\n.*tumorlens\[{extra}\]"):
        check(tmp_path, **options)
    assert not (tmp_path / "run").exists()
