"""What the user names → slices: pictures, folders, zips, lists, standard input, and a reason for the rest."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_files import only, reason, seeds, slices
from PIL import Image

from tumorlens.core.text import shown
from tumorlens.readers import (
    ReadLimits,
    Slice,
    Unreadable,
    count_inputs,
    read_bytes,
    read_inputs,
)
from tumorlens.readers.pixels import read_image
from tumorlens.readers.sources import _files
from tumorlens.readers.types import contrast, grey, squared

PICTURE = seeds.picture(90, 60)
RGB = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE], axis=-1)
PNG = seeds.raster("PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("pixels", [PICTURE, RGB], ids=["grey", "colour"])
def test_pictures_are_what_the_study_sees_whatever_their_name(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    path = tmp_path / "wrong.dcm"
    path.write_bytes(seeds.raster(kind, pixels))
    found = only(read_inputs([str(path)]))
    assert np.array_equal(found.pixels, read_image(path)[0])
    assert (found.source, found.index, found.count, found.series) == (str(path), None, None, None)
    assert found.facts == {"format": kind, "width": 60, "height": 90}


def test_pages_of_a_tiff_are_a_series() -> None:
    pages = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    content = seeds.raster("TIFF", PICTURE, save_all=True, append_images=pages)
    found = slices(read_bytes(content, "x"))
    assert [(s.index, s.count, s.series) for s in found] == [(i, 3, "series-1") for i in range(3)]
    assert np.array_equal(found[1].pixels, found[0].pixels)
    assert not np.array_equal(found[2].pixels, found[0].pixels)
    assert "more pages than the limit of 2" in reason(read_bytes(content, "x", limits=ReadLimits(frames=2)))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_deep_tiff_whose_white_is_zero_is_not_shown_inverted(dtype: type) -> None:
    deep = PICTURE.astype(dtype) * 100
    content = seeds.raster("TIFF", deep)
    tag = struct.pack("<HHIH", 262, 3, 1, 1)
    assert content.count(tag) == 1
    inverted = content.replace(tag, tag[:-2] + b"\0\0")
    plain = only(read_bytes(seeds.raster("TIFF", deep.max() - deep + deep.min()), "x")).pixels
    assert np.array_equal(only(read_bytes(inverted, "x")).pixels, plain)


def test_libtiff_keeps_its_errors_to_itself_and_the_reason_comes(capfd: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray(PICTURE)] * 2
    content = bytearray(seeds.raster("TIFF", PICTURE, compression="tiff_lzw", save_all=True, append_images=pages))
    start = 8  # of the first page's LZW codes
    content[start : start + 200] = b"\xff" * 200
    found = list(read_bytes(bytes(content), "x"))
    assert [(type(one), one.index, one.series) for one in found] == [
        (Unreadable, 0, "series-1"), (Slice, 1, "series-1"), (Slice, 2, "series-1"),
    ]  # fmt: skip
    print("still heard", file=sys.stderr)
    assert capfd.readouterr() == ("", "still heard\n")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "empty file"),
        (b"hello " * 200, "of no format that is read"),
        (seeds.raster("GIF"), "of no format that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + b" " * 600, "of no format that is read"),
        (PNG[: len(PNG) // 2], "cannot be decoded"),
        (seeds.raster("PNG", seeds.picture(4, 4)), "only 4x4 pixels"),
        (seeds.raster("TIFF", np.full((40, 40), np.nan, np.float32)), "holds values that are no numbers"),
    ],
)  # fmt: skip
def test_each_bad_file_has_its_reason(content: bytes, wanted: str) -> None:
    assert wanted in reason(read_bytes(content, "x"))


def test_limits_on_pictures() -> None:
    assert "over the limit of 1,000" in reason(read_bytes(PNG, "x", limits=ReadLimits(pixels=1000)))
    assert "longer than the limit" in reason(read_bytes(PNG, "x", limits=ReadLimits(bytes=100)))


def test_folders_are_walked_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", ".hidden.png", ".git/x.png", "__MACOSX/a.png", "b/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "b" / "bad.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    found = list(read_inputs([str(tmp_path)]))
    assert [one.source for one in found] == [
        str(tmp_path / name) for name in ("a.png", "b/1.png", "b/2.png", "b/bad.txt")
    ]
    assert [isinstance(one, Slice) for one in found] == [True, True, True, False]
    assert count_inputs([str(tmp_path), str(tmp_path / "a.png")]) == 5
    os.mkfifo(tmp_path / "pipe.zip")  # opening it would wait for a writer
    assert count_inputs([str(tmp_path)]) == 5
    (tmp_path / "pipe.zip").unlink()
    assert "without files" in reason(read_inputs([str(tmp_path / "empty")]))


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
    assert sum(isinstance(one, str) for one in _files(["@list.txt"], None, frozenset())) == 30_000
    for content in (b"", b"\n\r\n"):
        Path("list.txt").write_bytes(content)
        assert reason(read_inputs(["@list.txt"])) == "a list without names"


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_zips_long_list_of_files_is_refused_before_it_is_held(
    comment: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for i in range(200):
            archive.writestr(f"{i}", b"")
    monkeypatch.setattr(zipfile, "ZipFile", lambda _: pytest.fail("the list was held"))
    limits = ReadLimits(entries=20)
    assert "over the limit of 6,000" in reason(read_bytes(file.getvalue(), "many.zip", limits=limits))


def test_a_zip_is_read_entry_by_entry_and_names_stay_inside(tmp_path: Path) -> None:
    entries = {
        "b/1.png": PNG, "a.dcm": seeds.dicom(seeds.picture()), "../../etc/x.png": PNG, "/root\\..\\y.png": PNG,
        "__MACOSX/._a": b"x", "in\x1b[31mner.png": PNG, "note.txt": b"text", "deep.zip": seeds.zipped({"c.png": PNG}),
    }  # fmt: skip
    path = tmp_path / "set.zip"
    path.write_bytes(seeds.zipped(entries))
    found = list(read_inputs([str(path)]))
    names = ["b/1.png", "a.dcm", "etc/x.png", "root/y.png", "in\\x1b[31mner.png", "note.txt", "deep.zip"]
    assert [one.source for one in found] == [f"{path}/{name}" for name in names]
    assert [one.reason for one in found if isinstance(one, Unreadable)] == [
        "of no format that is read", "a zip inside a zip",
    ]  # fmt: skip
    assert count_inputs([str(path)]) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.zip"]  # nothing was extracted


def test_bad_entries_do_not_stop_a_zip() -> None:
    content = bytearray(seeds.zipped({"1.png": PNG, "2.png": PNG}, zipfile.ZIP_STORED))
    content[content.find(b"IDAT") + 5] ^= 1  # the checksum of the first no longer fits
    found = list(read_bytes(bytes(content), "z"))
    assert [type(one) for one in found] == [Unreadable, Slice]
    assert isinstance(found[0], Unreadable)
    assert found[0].reason == "damaged inside its zip"
    nameless = seeds.zipped({"X1.png": PNG, "2.png": PNG}).replace(b"X1.png", b"\0" + b"1.png")
    assert [one.source for one in read_bytes(nameless, "z")] == ["z/(no name)", "z/2.png"]
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "packed by method" in reason(read_bytes(seeds.zipped({"1.png": PNG}, method), "z"))
    encrypted = bytearray(seeds.zipped({"1.png": PNG}))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.find(mark) + at] |= 1
    assert reason(read_bytes(bytes(encrypted), "z")) == "encrypted"
    assert "damaged zip" in reason(read_bytes(bytes(content[:-30]), "z"))
    assert "a zip without files" in reason(read_bytes(seeds.zipped({}), "z"))
    assert "over the limit of 1" in reason(read_bytes(bytes(content), "z", limits=ReadLimits(entries=1)))


def test_a_zip_whose_entry_lies_beyond_all_files_is_damaged(tmp_path: Path) -> None:
    content = bytearray(seeds.zipped({"1.png": PNG}))
    entry, end = content.find(b"PK\x01\x02"), content.find(b"PK\x05\x06")
    more = struct.pack("<HHQ", 1, 8, 2**63)  # zip64: the offset of its header
    content[entry + 30 : entry + 32] = struct.pack("<H", len(more))
    content[entry + 42 : entry + 46] = b"\xff" * 4
    content[end + 12 : end + 16] = struct.pack("<I", end - entry + len(more))
    content[end:end] = more
    assert "damaged" in reason(read_bytes(bytes(content), "z"))
    (tmp_path / "a.zip").write_bytes(content)
    assert count_inputs([str(tmp_path)]) == 1


def test_a_zip_bomb_costs_no_memory() -> None:
    bomb = seeds.zipped({"zeros.png": bytes(50_000_000)})
    lying = bytearray(bomb)  # its table of contents promises little
    place = lying.rfind(b"PK\x01\x02") + 24
    lying[place : place + 4] = (1000).to_bytes(4, "little")
    tracemalloc.start()
    try:
        assert "over the limit" in reason(read_bytes(bomb, "z", limits=ReadLimits(bytes=10_000_000)))
        assert "200 times" in reason(read_bytes(bomb, "z", limits=ReadLimits(ratio_from=10_000_000)))
        assert reason(read_bytes(bytes(lying), "z"))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


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


def test_pydicom_nibabel_and_torch_stay_out_until_they_are_needed() -> None:
    code = (
        "import sys, tumorlens.readers as i; list(i.read_bytes(sys.stdin.buffer.read(), 'x'));"
        "print([m for m in ('pydicom', 'nibabel', 'torch', 'scipy') if m in sys.modules])"
    )

    def loaded(content: bytes) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode()

    assert loaded(PNG).strip() == "[]"
    assert loaded(seeds.dicom(seeds.picture())).strip() == "['pydicom']"


def test_squaring_keeps_the_aspect_and_contrast_the_percentiles() -> None:
    white = np.full((100, 50), 255, np.uint8)
    made = squared(white, (1.0, 1.0))
    assert made.shape == (224, 224, 3)
    assert made[:, 56:168].min() == 255
    assert made[:, :56].max() == made[:, 168:].max() == 0
    assert squared(white, (1.0, 2.0)).min() == 255
    for unusable in ((0.0, 1.0), (float("nan"), 1.0), (-1.0, 1.0)):
        assert np.array_equal(squared(white, unusable), made)
    assert squared(white, (1e-9, 1.0)).shape == (224, 224, 3)
    values = np.arange(1001.0)
    assert contrast(values) == (5.0, 995.0)
    assert list(grey(values, 5, 995)[[0, 5, 500, 995, 1000]]) == [0, 0, 128, 255, 255]
    assert contrast(np.zeros((9, 9))) == (0.0, 0.0)
    assert contrast(np.r_[np.zeros(1000), 1.0]) == (0.0, 1.0)  # a mask
    assert contrast(np.array([np.nan, np.inf])) == (0.0, 0.0)
    assert list(grey(np.array([np.nan, -np.inf, np.inf]), 0, 1)) == [0, 0, 255]


@given(st.text(max_size=30))
def test_shown_names_are_printable(name: str) -> None:
    made = shown(name)
    assert made.encode("utf-8").decode("utf-8") == made
    assert not any(ord(c) < 32 or ord(c) == 127 for c in made)
    if name.isascii() and name.isprintable():
        assert made == name


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([name for name in seeds.seeds() if name != "DICOM JPEG-LS"]))
def test_any_bytes_after_a_true_beginning_give_slices_or_reasons(tail: bytes, name: str) -> None:
    for content in (tail, seeds.seeds()[name][0][:200] + tail):
        for one in read_bytes(content, "x"):
            assert isinstance(one, (Slice, Unreadable))


@pytest.mark.parametrize("name", list(seeds.seeds()))
def test_mutants_give_slices_or_reasons(name: str) -> None:
    """The short version of benchmarks/fuzz.py; any exception and any warning fails."""
    random = np.random.default_rng(1)
    kinds = set()
    originals = seeds.seeds()[name]
    for content in (*originals, *(fuzz.mutate(random, originals, name) for _ in range(200))):
        found = list(read_bytes(content, "x"))
        assert found
        kinds |= {type(one) for one in found}
        assert all(one.pixels.shape == (224, 224, 3) if isinstance(one, Slice) else one.reason for one in found)
    assert kinds == {Slice, Unreadable}


def test_the_fuzzer_counts_and_is_reproducible(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, fuzz.__file__, "--files", "20", "--formats", "BMP", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(out.read_text())
    counts = result["formats"]["BMP"]
    assert result["files"] == counts["files"] == counts["read"] + counts["unreadable"] == 20
    assert result["crashes"] == result["hangs"] == result["over_memory"] == 0
    assert 0 < counts["peak_bytes"] < 1_000_000_000
    originals = seeds.seeds()["zip"]
    first, again = ([fuzz.mutate(np.random.default_rng(i), originals, "zip") for i in range(5)] for _ in range(2))
    assert first == again
