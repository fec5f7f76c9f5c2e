"""Zips: read entry by entry, with bounded memory, and a reason for each bad entry."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from input_files import reason, seeds

from tumorlens.readers import ReadLimits, Slice, Unreadable, count_inputs, read_bytes, read_inputs

PNG = seeds.raster("PNG")


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
        "__MACOSX/._a": b"x", "in\x1b[31mner.png": PNG, "note.bmp": b"text", "deep.zip": seeds.zipped({"c.png": PNG}),
    }  # fmt: skip
    path = tmp_path / "set.zip"
    path.write_bytes(seeds.zipped(entries))
    found = list(read_inputs([str(path)]))
    names = ["b/1.png", "a.dcm", "etc/x.png", "root/y.png", "in\\x1b[31mner.png", "note.bmp", "deep.zip"]
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
