"""Generated data sets, paths that cannot be used, and which folders hold training and test images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tumorlens.core.errors import DataError
from tumorlens.data import fetch


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_phantom_is_made_once_a_seed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Generator:
        GENERATOR = 7

        @staticmethod
        def write_dataset(folder: Path, *, seed: int = 0) -> Path:
            made.append(seed)
            for name in ("Training/glioma/1.png", "Training/notumor/1.png", "masks/1.png", "phantom.json"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            return folder

    monkeypatch.setitem(sys.modules, "tumorlens.data.phantom.generator", Generator)  # type: ignore[arg-type]
    first = fetch.fetch("phantom", cache=cache, seed=3)
    assert first == fetch.fetch("phantom", cache=cache, seed=3)
    assert first.root == cache / "phantom" / "v7-seed3"
    assert first.classes == ("glioma", "notumor")
    assert first.generated
    assert "seed 3" in first.source
    assert made == [3]


@pytest.mark.parametrize("data", ["", "nowhere", "Kaggle", "a\0b", "x" * 5000, "nowhere/archive.zip"])
def test_a_path_that_is_not_there(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"not found|not a usable path") as error:
        fetch.fetch(data, cache=cache)
    assert error.value.cure


def test_a_path_that_is_no_file(cache: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a zip nor a folder"):
        fetch.fetch(str(tmp_path / "pipe"), cache=cache)
