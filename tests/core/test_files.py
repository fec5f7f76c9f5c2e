"""Locks between processes, and folders that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tumorlens.core.errors import RunError
from tumorlens.core.files import locked, probe_writable, writing

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
