"""Inputs that the user names: files, folders, lists and standard input, and a reason for what cannot be opened."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from input_files import only, reason, seeds, slices
from pydicom import FileDataset, dcmwrite
from pydicom.dataset import FileMetaDataset

from tumorlens.readers import (
    ReadLimits,
    Slice,
    Unreadable,
    count_inputs,
    read_inputs,
)
from tumorlens.readers.companions import Skipped
from tumorlens.readers.sources import _files

PICTURE = seeds.picture(90, 60)
RGB = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], axis=-1)
PNG = seeds.raster("PNG")


def dicomdir() -> bytes:
    """The beginning of a disc's table of contents."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    file = io.BytesIO()
    dcmwrite(file, FileDataset("", {}, file_meta=meta, preamble=bytes(128)), enforce_file_format=True)
    return file.getvalue()


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")


@needs_pipes
def test_folders_are_walked_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", ".hidden.png", ".git/x.png", "__MACOSX/a.png", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "b" / "bad.png").write_text("text")
    (tmp_path / "empty").mkdir()
    found = list(read_inputs([str(tmp_path)]))
    assert [one.source for one in found] == [
        str(tmp_path / name) for name in ("a.png", "b/1.png", "b/2.png", "b/bad.png")
    ]
    assert [isinstance(one, Slice) for one in found] == [True, True, True, False]
    assert count_inputs([str(tmp_path), str(tmp_path / "a.png")]) == 5
    os.mkfifo(tmp_path / "pipe.zip")  # opening it would wait for a writer
    assert count_inputs([str(tmp_path)]) == 5
    (tmp_path / "pipe.zip").unlink()
    assert "without pictures" in reason(read_inputs([str(tmp_path / "empty")]))


COMPANIONS = {
    "DICOMDIR": dicomdir(), "dicomdir.dcm": dicomdir(), "README": b"About these pictures.\n", "LICENSE.md": b"Free.",
    "notes.txt": "für später".encode("latin-1"), "list.csv": b"a,b\n", "report.pdf": b"%PDF-1.4\0\1",
    "table.xlsx": seeds.zipped({"xl/a.xml": b"<a/>"}), "viewer.exe": b"MZ\0\1", "bids.json": b"{}",
    ".DS_Store": b"\0\1", "Thumbs.db": b"\0\1", "desktop.ini": b"[x]", ".git/config": b"x",
}  # fmt: skip
PICTURES = {"a.png": PNG, "noext": PNG, "scan": seeds.dicom(PICTURE), "a.jfif": seeds.raster("JPEG"), "b.jpe": PNG}
ERRORS = {"page.jpg": b"<html>not found</html>", "cut": b"\x89PNG\r\n\x1a\n", "scan.mgz": b"text",
          "odd.bin": bytes(range(9)), "empty": b""}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_lies_beside_pictures_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    files = COMPANIONS | PICTURES | ERRORS
    top = tmp_path / "disc"
    for name, content in files.items():
        (top / name).parent.mkdir(exist_ok=True, parents=True)
        (top / name).write_bytes(content)
    if kind == "zip":
        top = tmp_path / "disc.bin"
        top.write_bytes(seeds.zipped(files))
    found = {one.source.removeprefix(f"{top}/"): one for one in read_inputs([str(top)])}
    assert {name for name, one in found.items() if isinstance(one, Slice)} == set(PICTURES)
    assert {name for name, one in found.items() if isinstance(one, Unreadable)} == set(ERRORS)
    logged = capsys.readouterr().err.splitlines()
    assert len(logged) == 1
    assert logged[0].startswith(f"Skipped {len(COMPANIONS)} files that are not pictures: ")
    assert count_inputs([str(top)]) == len(PICTURES | ERRORS) + (len(COMPANIONS) - 4 if kind == "zip" else 0)


def test_a_file_that_is_named_is_never_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DICOMDIR", "README", "Thumbs.db"):
        (tmp_path / name).write_bytes(COMPANIONS[name])
        assert isinstance(next(read_inputs([str(tmp_path / name)])), Unreadable)
    assert "Skipped" not in capsys.readouterr().err
    assert reason(read_inputs([str(tmp_path)])) == "a folder without pictures"
    assert "Skipped 3 files" in capsys.readouterr().err


@needs_pipes
def test_what_cannot_be_opened_does_not_stop_the_rest(tmp_path: Path) -> None:
    good, pipe, long = tmp_path / "a.png", tmp_path / "pipe", "x" * 5000
    good.write_bytes(PNG)
    os.mkfifo(pipe)
    found = list(read_inputs([str(tmp_path / "no"), str(pipe), long, "nul\0", str(good)]))
    reasons = [one.reason for one in found if isinstance(one, Unreadable)]
    assert reasons[:2] == ["no such file", "no regular file"]
    assert all("cannot be opened" in why for why in reasons[2:])
    assert isinstance(found[-1], Slice)
    assert all("\0" not in one.source for one in found)


def test_lists_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b c.png", "@d.png"):
        Path(name).write_bytes(PNG)
    Path("list.txt").write_bytes(b"a.png\r\n\nb c.png\nno.png")
    found = list(read_inputs(["@list.txt", "./@d.png"]))
    assert [one.source for one in found] == ["a.png", "b c.png", "no.png", "./@d.png"]
    assert [isinstance(one, Slice) for one in found] == [True, True, False, True]
    assert count_inputs(["@list.txt", "./@d.png"]) == 4
    assert "no such file" in reason(read_inputs(["@absent"]))
    listed = slices(read_inputs(["@-"], stdin=io.BytesIO(b"b c.png\na.png\n")))
    assert [one.source for one in listed] == ["b c.png", "a.png"]
    assert only(read_inputs(["-"], stdin=io.BytesIO(PNG))).source == "-"
    archive = seeds.zipped({"x/1.png": PNG})
    assert only(read_inputs(["-"], stdin=io.BytesIO(archive))).source == "-/x/1.png"
    assert "longer than the limit" in reason(read_inputs(["-"], stdin=io.BytesIO(PNG), limits=ReadLimits(bytes=99)))
    assert count_inputs(["a.png", "-"]) is None
    Path("-").touch()
    assert count_inputs(["@-"]) is None  # which stands for standard input all the same
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa.png")  # as some editors begin a file
    assert only(read_inputs(["@list.txt"])).source == "a.png"
    Path("list.txt").write_bytes(b"a.png\n" * 30_000)  # longer than what is read at once
    assert sum(isinstance(one, str) for one in _files(["@list.txt"], None, frozenset(), Skipped())) == 30_000
    for content in (b"", b"\n\r\n"):
        Path("list.txt").write_bytes(content)
        assert reason(read_inputs(["@list.txt"])) == "a list without names"


def test_many_files_stream_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            assert sum(isinstance(one, Slice) for one in read_inputs([str(path)] * n)) == n
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(400) < peak(20) + 400_000  # 400 slices held would be 60 MB
