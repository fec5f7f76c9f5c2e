"""Locks between processes, and folders that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import cache_dir, expanded, locked, probe_writable, writing

HOLD = """
import pathlib, sys
from tumorlens.core.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_waits_and_logs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cache" / ".lock"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        assert other.stdout.readline() == "locked\n"
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"from tumorlens.core.progress import log_to_stderr; log_to_stderr(){HOLD}", file],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert (
            waiting.stderr.readline() == f"Waiting for another tumorlens process that is writing to {file.parent} …\n"
        )
        assert waiting.poll() is None
        other.stdin.close()
        assert waiting.communicate(timeout=60)[0] == "locked\n"
    with locked(file):  # nobody holds it any more
        pass
    assert capsys.readouterr().err == ""


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(TypeError), writing(path) as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


def test_folders_are_probed(tmp_path: Path) -> None:
    probe_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--cache .*file is a file"):
        probe_writable(tmp_path / "file", "--cache")
    with pytest.raises(RunError, match=r"below cannot be written .*file is a file"):
        probe_writable(tmp_path / "file" / "below")


def no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.case(23)
@pytest.mark.skipif(sys.platform == "darwin", reason="caches lie in Library there")
@pytest.mark.parametrize("xdg", [None, "", "relative/folder"])
def test_a_variable_that_names_no_absolute_folder_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, xdg: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert cache_dir() == tmp_path / ".cache" / "tumorlens"


@pytest.mark.case(23)
def test_home_is_looked_up_only_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ConfigError, match="no home folder") as caught:
        cache_dir()
    assert "--cache" in caught.value.cure
    assert "TUMORLENS_CACHE" in caught.value.cure
    with pytest.raises(ConfigError, match="~nobody/x begins with a home folder"):
        expanded("~nobody/x")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "tumorlens"


@pytest.mark.case(23)
def test_an_empty_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ConfigError, match="HOME is not set"):
        cache_dir()
