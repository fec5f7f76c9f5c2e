"""Zips, good, damaged and hostile: what is extracted is whole and stays inside."""

from __future__ import annotations

import io
import stat
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kaggle_server import CLASSES, dataset_files, everything, zipped

from tumorlens.core.errors import DataError, RunError
from tumorlens.data import archives, fetch
from tumorlens.data.archives import LIMITS, cached_folder, extract_zip


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def zip_path(tmp_path: Path) -> Path:
    path = tmp_path / "archive.zip"
    path.write_bytes(zipped(dataset_files()))
    return path


@pytest.mark.parametrize("prefix", ["", "archive/brain tumours/"])
def test_a_zip_is_extracted_once(tmp_path: Path, cache: Path, prefix: str) -> None:
    path = tmp_path / "archive.zip"
    junk = {"__MACOSX/Training/._x.jpg": b"x", f"{prefix}.DS_Store": b"x", f"{prefix}Training/glioma/Thumbs.db": b"x"}
    path.write_bytes(zipped({**dataset_files(prefix), **junk}))
    folder = fetch.fetch(str(path), cache=cache)
    assert everything(folder.root) == dataset_files()
    assert folder.training == folder.root / "Training"
    assert folder.classes == CLASSES
    assert folder.root.is_relative_to(cache / "datasets")
    image = folder.training / "glioma" / "Tr_0.jpg"
    before = image.stat().st_ino
    assert fetch.fetch(str(path), cache=cache) == folder
    assert image.stat().st_ino == before


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_a_damaged_extraction_is_made_again(zip_path: Path, cache: Path, damage: str) -> None:
    folder = extract_zip(zip_path, cache)
    image = folder / "Training/glioma/Tr_0.jpg"
    image.unlink() if damage == "removed" else image.write_bytes(b"")
    assert everything(extract_zip(zip_path, cache)) == dataset_files()


@pytest.mark.parametrize("cause", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_interrupted_extraction_leaves_nothing(
    zip_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, cause: type[BaseException]
) -> None:
    read, count = archives._read, iter(range(100))

    def stops(*given: object) -> Iterator[bytes]:
        if next(count) == 7:
            raise cause
        return read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_read", stops)
    with pytest.raises(RunError if cause is OSError else cause):
        extract_zip(zip_path, cache)
    assert [p.name for p in (cache / "datasets").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert everything(extract_zip(zip_path, cache)) == dataset_files()


def test_an_extraction_that_was_killed_is_cleaned_up(zip_path: Path, cache: Path, tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from tumorlens.data import archives;"
        "\n"
        "class Bar(archives.Bar):\n"
        "    def advance(self, n=1):\n"
        "        super().advance(n)\n"
        "        if self.unit == 'files' and self.done == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "archives.Bar = Bar; archives.extract_zip(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(zip_path), str(cache)], check=False)
    assert done.returncode == -9
    (left_over,) = (cache / "datasets").glob("*.part")
    assert len(everything(left_over)) == 7
    folder = extract_zip(zip_path, cache)
    assert everything(folder) == dataset_files()
    assert {p.name for p in (cache / "datasets").iterdir()} == {".lock", folder.name}


def test_a_second_process_waits_for_the_first(zip_path: Path, cache: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tumorlens.data.archives import extract_zip;"
        "from tumorlens.core.progress import log_to_stderr; log_to_stderr();"
        "print(extract_zip(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, str(zip_path), str(cache)]
    second: list[subprocess.Popen[str]] = []

    def make(folder: Path) -> None:
        second.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        assert second[0].stderr is not None
        assert "Waiting" in second[0].stderr.readline()
        (folder / "file").write_text("first")

    first = cached_folder(cache / "datasets" / "other", make, lambda _: True)
    out, _ = second[0].communicate()
    assert (first / "file").read_text() == "first", "the second did not take the first's work for a left-over"
    assert everything(Path(out.strip())) == dataset_files()


def test_an_unwritable_cache(zip_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written") as error:
        extract_zip(zip_path, tmp_path / "file")
    assert "--cache" in error.value.cure


HOSTILE = [
    "../out.jpg", "Training/../../out.jpg", "/out.jpg", "//out.jpg", "C:/out.jpg", "c:out.jpg", "\\out.jpg",
    "..\\out.jpg", "Training/a\x00.jpg", "Training/a\n.jpg", "Training/" + "n" * 300 + ".jpg", "..", "a/" * 1200 + "b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leaves_the_target_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(name, b"x", 0o100644)]))
    with pytest.raises(DataError, match=r"refused"):
        extract_zip(path, cache)
    assert not everything(cache).keys() - {"datasets/.lock"}


_pieces = st.sampled_from(["..", ".", "", "a", "b.jpg", "C:", "\\", "..\\", "é", " ", "...", "/", "a\x00", "~", "%2e"])


@settings(max_examples=150, deadline=None)
@given(names=st.lists(st.lists(_pieces, min_size=1, max_size=5).map("/".join), min_size=1, max_size=4))
@example(names=["a", "a/b.jpg"])
@example(names=["a/b.jpg", "a"])
@example(names=[""])
def test_no_name_whatever_writes_outside(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder) / "1" / "2" / "3" / "4" / "5"
        cache = top / "cache"
        cache.mkdir(parents=True)
        (top / "x.zip").write_bytes(raw_zip([(name, b"payload", 0o100644) for name in names]))
        try:
            target = extract_zip(top / "x.zip", cache)
        except DataError:
            target = cache / "datasets" / "none"
        for path in Path(folder).rglob("*"):
            if path.is_file():
                assert path.name == ".lock" or path == top / "x.zip" or path.is_relative_to(target)


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFCHR | 0o644])
def test_links_and_devices_are_refused(tmp_path: Path, cache: Path, mode: int) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([("Training/glioma/a.jpg", b"/etc/passwd", mode)]))
    with pytest.raises(DataError, match=r"Training/glioma/a\.jpg' is (a symbolic link|neither)"):
        extract_zip(path, cache)


def raw_zip(entries: list[tuple[str, bytes, int]], *, flags: int = 0, method: int = 0) -> bytes:
    """A zip written field by field, with stored content: names and flags that zipfile would not write."""
    body, table = b"", b""
    for name, data, mode in entries:
        encoded = name.encode()
        common = struct.pack(
            "<HHHHHLLLHH", 20, 0x800 | flags, method, 0, 0x21, zlib.crc32(data), len(data), len(data), len(encoded), 0
        )
        table += struct.pack("<LBB", 0x02014B50, 20, 3) + common
        table += struct.pack("<HHHLL", 0, 0, 0, (mode << 16) & 0xFFFFFFFF, len(body)) + encoded
        body += struct.pack("<L", 0x04034B50) + common + encoded + data
    end = struct.pack("<LHHHHLLH", 0x06054B50, 0, 0, len(entries), len(entries), len(table), len(body), 0)
    return body + table + end


def bomb(claimed: int) -> bytes:
    """A zip of about 1 MB whose only entry inflates to 1 GiB of zeros and claims `claimed` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("Training/glioma/a.jpg", block * 1024 + packer.flush())
        archive.filelist[0].compress_type = zipfile.ZIP_DEFLATED
        archive.filelist[0].file_size = claimed
    return content.getvalue()


@pytest.mark.parametrize(
    ("claimed", "options", "why"),
    [
        (1 << 30, {}, "1,073,741,824 bytes, over the limit of 500,000,000"),
        (400_000_000, {}, "over 200 times"),
        (4_000, {}, "damaged"),
        (
            1 << 30,
            {"limits": replace(LIMITS, bytes=1 << 40, ratio=1e9), "total_bytes": 10**6},
            r"1,073,741,824 bytes decompressed, over the limit of 1,000,000",
        ),
    ],
    ids=["size", "ratio", "lies", "total"],
)
def test_a_bomb_is_refused(tmp_path: Path, cache: Path, claimed: int, options: dict[str, Any], why: str) -> None:
    path = tmp_path / "bomb.zip"
    path.write_bytes(bomb(claimed))
    tracemalloc.start()
    with pytest.raises(DataError, match=why):
        extract_zip(path, cache, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert not list(cache.rglob("*.jpg"))


def test_no_more_is_written_than_the_archive_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that inflates to 1 GiB and claims 4,000 bytes."""
    (tmp_path / "bomb.zip").write_bytes(bomb(4_000))
    read, written = archives._read, []

    def counting(*given: Any) -> Iterator[bytes]:
        for piece in read(*given):
            written.append(len(piece))
            yield piece

    monkeypatch.setattr(archives, "_read", counting)
    with pytest.raises(DataError, match="damaged"):
        extract_zip(tmp_path / "bomb.zip", tmp_path / "cache")
    assert sum(written) <= 4_000


def test_too_many_entries(zip_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="20 entries, over the limit of 19"):
        extract_zip(zip_path, cache, limits=replace(LIMITS, entries=19))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("second", ["Training/glioma/a.jpg", "Training//glioma/./a.jpg", "Training/glioma/a.jpg/b.jpg"])
def test_names_that_collide_are_refused(tmp_path: Path, cache: Path, second: str) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([("Training/glioma/a.jpg", b"1", 0o100644), (second, b"2", 0o100644)]))
    with pytest.raises(DataError, match=r"twice|lies inside"):
        extract_zip(path, cache)


@pytest.mark.parametrize(
    ("flags", "method", "why"),
    [(1, 0, "is encrypted"), (0, 12, "is packed by method 12"), (0, 99, "is packed by method 99")],
)
def test_what_cannot_be_read_safely_is_refused(tmp_path: Path, cache: Path, flags: int, method: int, why: str) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([("Training/glioma/a.jpg", b"1", 0o100644)], flags=flags, method=method))
    with pytest.raises(DataError, match=rf"refused: .*a\.jpg.*{why}"):
        extract_zip(path, cache)


@pytest.mark.parametrize("damage", ["content", "header", "table", "cut end", "cut start", "empty", "text", "not utf-8"])
def test_a_damaged_zip_is_refused_by_name(tmp_path: Path, cache: Path, damage: str) -> None:
    good = zipped(dataset_files())
    name = b"Training/notumor/Tr_1.jpg"
    first, last = good.index(name), good.rindex(name)
    bad, why = {
        "content": (good[: first + 300] + b"\0\0\0\0" + good[first + 304 :], r"Tr_1\.jpg' is damaged"),
        "header": (good[: first - 30] + b"XXXX" + good[first - 26 :], r"Tr_1\.jpg' is damaged"),
        "table": (good[: last - 46] + b"XXXX" + good[last - 42 :], "table of contents"),
        "cut end": (good[:-100], "cut off"),
        "cut start": (good[4000:], "damaged|table of contents"),
        "empty": (b"", r"empty \(0 bytes\)"),
        "text": (b"Training/glioma", "not a zip"),
        "not utf-8": (raw_zip([("aé.jpg", b"1", 0)]).replace(b"\xc3\xa9", b"\xff\xfe"), "table of contents"),
    }[damage]
    path = tmp_path / "bad.zip"
    path.write_bytes(bad)
    with pytest.raises(DataError, match=why) as error:
        fetch.fetch(str(path), cache=cache)
    assert str(path) in error.value.what
    assert error.value.cure
    assert not list(cache.rglob("*.jpg"))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.booleans())
def test_any_damaged_byte_gives_the_same_files_or_a_message(place: int, value: int, cut: bool) -> None:
    good = zipped(dataset_files())
    place %= len(good)
    bad = good[:place] if cut else good[:place] + bytes([value]) + good[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.zip").write_bytes(bad)
        try:
            content = everything(extract_zip(Path(folder) / "x.zip", Path(folder) / "cache"))
        except DataError:
            return
        # A name may change and a folder's entry may become skipped; content never does.
        assert set(content.values()) <= set(dataset_files().values())


def test_cached_folder_replaces_what_is_not_whole(tmp_path: Path) -> None:
    target = tmp_path / "x" / "made"
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("new")

    assert cached_folder(target, make, lambda _: False) == target
    (target / "old").write_text("")
    assert cached_folder(target, make, lambda _: False) == target
    assert [p.name for p in target.iterdir()] == ["file"]
    assert cached_folder(target, make, lambda _: True) == target
    assert len(made) == 2


@pytest.mark.case(12)
def test_names_with_backslashes_and_utf_8_without_its_flag(tmp_path: Path, cache: Path) -> None:
    files = [("Training\\größe\\", b""), ("Training\\größe\\1.jpg", b"1"), (".\\Training\\b\\2.jpg", b"2")]
    content = raw_zip([(name, data, 0o100644) for name, data in files]).replace(
        b"\x00\x08\x00\x00", b"\x00\x00\x00\x00"
    )
    (tmp_path / "x.zip").write_bytes(content)
    assert everything(extract_zip(tmp_path / "x.zip", cache)) == {
        "Training/größe/1.jpg": b"1",
        "Training/b/2.jpg": b"2",
    }


@pytest.mark.case(12)
@pytest.mark.parametrize(
    ("start", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a\x07", "RAR")]
)
def test_other_archives_are_named(tmp_path: Path, cache: Path, start: bytes, kind: str) -> None:
    (tmp_path / "x.tgz").write_bytes(start + bytes(100))
    with pytest.raises(DataError, match=kind) as error:
        extract_zip(tmp_path / "x.tgz", cache)
    assert "Unpack it" in error.value.cure


@pytest.mark.case(12)
def test_a_zip_in_a_zip_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"inner/data.zip": zipped(dataset_files())}))
    with pytest.raises(DataError, match=r"no images: it has 1 \.zip") as error:
        fetch.fetch(str(tmp_path / "x.zip"), cache=cache)
    assert "Unpack the .zip inside" in error.value.cure
