"""Standard streams that the parent process has closed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from classifier_fixture import write_classifier
from input_files import seeds

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell to close streams")


def with_closed(streams: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command whose parent has closed the streams, such as `>&- 2>&-`."""
    closing = ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, *map(str, command)]
    return subprocess.run(closing, capture_output=True, text=True, timeout=120)


@pytest.mark.case(22)
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_every_command_does_its_work(tmp_path: Path, small_folder: Path, streams: str) -> None:
    (tmp_path / "a.png").write_bytes(seeds.raster("PNG"))
    write_classifier(tmp_path / "classifier.onnx")
    rows = tmp_path / "rows.csv"
    for words, wanted in (
        (["predict", tmp_path / "a.png", "--model", tmp_path], 0),
        (["predict", tmp_path / "a.png", tmp_path / "none.png", "--model", tmp_path, "--out", rows], 3),
        (["data", "check", small_folder, "--cache", tmp_path / "cache"], 0),
        (["data", "check", tmp_path / "none"], 1),
    ):
        done = with_closed(streams, "-m", "tumorlens", *words)
        assert done.returncode == wanted, (words, done)
        assert "Traceback" not in done.stderr
    assert len(rows.read_text().splitlines()) == 3
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.case(22)
def test_no_message_is_written_into_a_file(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tumorlens.core.streams import replace_closed_streams; replace_closed_streams();"
        "file = open(sys.argv[1], 'w'); print('a message'); os.write(2, b'from a library'); file.write('content');"
        "assert file.fileno() > 2 and sys.stdin is None"
    )
    done = with_closed("<&- >&- 2>&-", "-c", code, tmp_path / "file")
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "content"
