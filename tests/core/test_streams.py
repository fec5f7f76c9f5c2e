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
@pytest.mark.parametrize(
    ("streams", "words", "code"),
    [
        (">&-", "predict {0}/a.png --model {0}", 0),
        ("2>&-", "data check {1} --cache {0}/cache", 0),
        ("2>&-", "data check {0}/none", 1),
        ("<&- >&- 2>&-", "predict {0}/a.png {0}/none.png --model {0} --out {0}/rows.csv", 3),
    ],
)
def test_every_command_does_its_work(tmp_path: Path, small_folder: Path, streams: str, words: str, code: int) -> None:
    (tmp_path / "a.png").write_bytes(seeds.raster("PNG"))
    write_classifier(tmp_path / "classifier.onnx")
    done = with_closed(streams, "-m", "tumorlens", *(word.format(tmp_path, small_folder) for word in words.split()))
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    if "--out" in words:
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3
    if "--cache" in words:
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
