"""DICOM: the same picture in every transfer syntax, contrast per the standard, reasons for bad files, no names."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from input_files import only, reason, seeds, slices
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from tumorlens.readers import (
    ReadLimits,
    Slice,
    Unreadable,
    read_bytes,
    read_inputs,
)
from tumorlens.readers.scaling import contrast_range, to_uint8
from tumorlens.readers.types import fit_square

dicom, picture, SECRET = seeds.dicom, seeds.picture, seeds.SECRET
GREY = picture()
DEEP = GREY.astype(np.uint16) * 16
SIGNED = DEEP.astype(np.int16) - 1000
SQUARE = (1.0, 1.0)
WINDOW = {"WindowCenter": 2000, "WindowWidth": 3000}


def by_percentiles(values: np.ndarray) -> np.ndarray:
    return fit_square(to_uint8(values, *contrast_range(values)), SQUARE)


@pytest.mark.parametrize("pixels", [GREY, DEEP, SIGNED, SIGNED.astype(np.int8)], ids=["u1", "u2", "i2", "i1"])
@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", seeds.DEFLATED, seeds.JPEG_LS,
     seeds.JPEG_2000, seeds.RLE],
    ids=["implicit", "explicit", "big-endian", "deflated", "jpeg-ls", "jpeg-2000", "rle"],
)  # fmt: skip
def test_lossless_syntaxes_give_the_same_picture(pixels: np.ndarray, syntax: str) -> None:
    found = only(read_bytes(dicom(pixels, syntax=syntax), "x"))
    assert np.array_equal(found.pixels, by_percentiles(pixels))
    assert found.metadata["contrast"] == "percentiles"
    assert (found.metadata["width"], found.metadata["height"], found.metadata["modality"]) == (32, 40, "MR")


def test_jpeg_baseline_is_decoded() -> None:
    found = only(read_bytes(dicom(GREY, syntax=seeds.JPEG, encapsulated=[seeds.raster("JPEG", quality=95)]), "x"))
    assert np.abs(found.pixels.astype(int) - by_percentiles(GREY)).mean() < 4


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_files_without_preamble_or_without_any_meta_information(syntax: str) -> None:
    wanted = by_percentiles(DEEP)
    assert np.array_equal(only(read_bytes(dicom(DEEP, syntax=syntax, preamble=False), "x")).pixels, wanted)
    whole = pydicom.dcmread(io.BytesIO(dicom(DEEP, syntax=syntax)))
    bare = Dataset()
    bare.update(whole)
    file = io.BytesIO()
    bare.save_as(file, implicit_vr=syntax == "1.2.840.10008.1.2", little_endian=True)
    assert np.array_equal(only(read_bytes(file.getvalue(), "x")).pixels, wanted)


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, written out."""
    y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
    return np.where(x <= c - 0.5 - (w - 1) / 2, 0, np.where(x > c - 0.5 + (w - 1) / 2, 255, y))


@pytest.mark.parametrize(
    ("elements", "wanted"),
    [
        (WINDOW, linear(DEEP, 2000, 3000)),
        ({"WindowCenter": [1000, 2000], "WindowWidth": [500, 9]}, linear(DEEP, 1000, 500)),
        (WINDOW | {"RescaleSlope": 2, "RescaleIntercept": -500}, linear(DEEP * 2.0 - 500, 2000, 3000)),
        (WINDOW | {"VOILUTFunction": "LINEAR_EXACT"}, np.clip(((DEEP - 2000.0) / 3000 + 0.5) * 255, 0, 255)),
        (WINDOW | {"VOILUTFunction": "SIGMOID"}, 255 / (1 + np.exp(-4 * (DEEP - 2000.0) / 3000))),
        (WINDOW | {"RescaleSlope": 0, "RescaleIntercept": 7}, linear(DEEP, 2000, 3000)),
    ],
    ids=["linear", "first-of-two", "rescaled", "exact", "sigmoid", "slope-0"],
)
def test_windows_follow_the_standard(elements: dict[str, object], wanted: np.ndarray) -> None:
    found = only(read_bytes(dicom(DEEP, **elements), "x"))
    assert found.metadata["contrast"] == "window"
    assert np.array_equal(found.pixels, fit_square(np.rint(wanted).astype(np.uint8), SQUARE))


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_window_that_is_none_gives_way_to_percentiles(width: float) -> None:
    found = only(read_bytes(dicom(DEEP, WindowCenter=100, WindowWidth=width), "x"))
    assert found.metadata["contrast"] == "percentiles"
    assert np.array_equal(found.pixels, by_percentiles(DEEP))


def test_monochrome1_is_inverted_and_padding_is_black() -> None:
    plain = only(read_bytes(dicom(DEEP, **WINDOW), "x")).pixels.astype(int)
    inverted = only(read_bytes(dicom(DEEP, photometric="MONOCHROME1", **WINDOW), "x")).pixels.astype(int)
    inside = np.s_[:, 23:201]  # without the black that squares it
    assert np.abs(plain + inverted - 255)[inside].max() <= 1
    padded = SIGNED.copy()
    padded[:, :16] = -2000
    found = only(read_bytes(dicom(padded, photometric="MONOCHROME1", PixelPaddingValue=-2000), "x"))
    assert found.pixels[:, :100].max() == 0
    assert found.pixels[:, 130:190].max() > 250  # the padding did not count for the contrast
    assert found.pixels[:, 130:190].min() < 5


def test_bits_above_those_stored_are_ignored() -> None:
    clean = (DEEP & 0x0FFF).astype(np.uint16)
    found = only(read_bytes(dicom(clean | 0xF000, BitsStored=12, HighBit=11, **WINDOW), "x"))
    assert np.array_equal(found.pixels, only(read_bytes(dicom(clean, **WINDOW), "x")).pixels)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_tables_are_applied(syntax: str) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], (np.arange(256) ** 2).astype("<u2").tobytes()
    found = only(read_bytes(dicom(GREY, syntax=syntax, VOILUTSequence=[table], **WINDOW), "x"))
    assert found.metadata["contrast"] == "VOI LUT"
    wanted = np.rint(GREY.astype(float) ** 2 / 65535 * 255).astype(np.uint8)
    assert np.array_equal(found.pixels, fit_square(wanted, SQUARE))
    modality = Dataset()
    modality.LUTDescriptor, modality.ModalityLUTType = [256, 0, 16], "US"
    modality.LUTData = np.arange(255, -1, -1).astype("<u2").tobytes()
    found = only(read_bytes(dicom(GREY, syntax=syntax, ModalityLUTSequence=[modality]), "x"))
    assert np.array_equal(found.pixels, by_percentiles(255 - GREY))


def test_colours() -> None:
    rgb = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
    wanted = fit_square(rgb, SQUARE)
    for syntax in ("1.2.840.10008.1.2.1", seeds.RLE, seeds.JPEG_2000):
        assert np.array_equal(only(read_bytes(dicom(rgb, photometric="RGB", syntax=syntax), "x")).pixels, wanted)
    neutral = np.stack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 128)], axis=-1)
    found = only(read_bytes(dicom(neutral, photometric="YBR_FULL"), "x"))
    assert np.abs(found.pixels.astype(int) - fit_square(GREY, SQUARE)).max() <= 1
    palette = {}
    for name, values in zip(("Red", "Green", "Blue"), (range(256), range(255, -1, -1), [9] * 256), strict=True):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = bytes(values)
    found = only(read_bytes(dicom(GREY, photometric="PALETTE COLOR", **palette), "x"))
    assert np.array_equal(found.pixels, fit_square(np.stack([GREY, 255 - GREY, np.full_like(GREY, 9)], -1), SQUARE))


def test_rows_and_columns_keep_their_physical_aspect() -> None:
    tall = only(read_bytes(dicom(DEEP), "x")).pixels  # 40 x 32 square pixels
    assert (tall.max(axis=(0, 2)) > 0).sum() == round(224 * 32 / 40)
    wide = only(read_bytes(dicom(DEEP, PixelSpacing=[1, 2.5]), "x")).pixels  # 40 x 80 mm
    assert (wide.max(axis=(1, 2)) > 0).sum() == 112


def enhanced(frames: np.ndarray) -> bytes:
    groups = []
    for i in range(len(frames)):
        window, transform, group = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = 1000 * (i + 1), 2000
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1 + i, 10 * i, "US"
        group.FrameVOILUTSequence, group.PixelValueTransformationSequence = [window], [transform]
        groups.append(group)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [1, 2.5]
    shared.PixelMeasuresSequence = [measures]
    return bytes(dicom(frames, PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[shared]))


def test_frames_have_transformations_of_their_own() -> None:
    frames = np.stack([DEEP, DEEP[::-1], DEEP // 2])
    found = slices(read_bytes(enhanced(frames), "x"))
    assert [(s.index, s.count, s.series) for s in found] == [(i, 3, "series-1") for i in range(3)]
    for i, one in enumerate(found):
        wanted = linear(frames[i] * (1.0 + i) + 10 * i, 1000 * (i + 1), 2000)
        assert np.array_equal(one.pixels, fit_square(np.rint(wanted).astype(np.uint8), (1, 2.5)))


@pytest.mark.parametrize("syntax", [seeds.RLE, seeds.JPEG_LS, seeds.JPEG_2000])
def test_a_damaged_frame_does_not_stop_the_others(syntax: str) -> None:
    data = pydicom.dcmread(io.BytesIO(dicom(np.stack([DEEP, DEEP[::-1], DEEP]), syntax=syntax)))
    frames = list(generate_frames(data.PixelData, number_of_frames=3))
    data.PixelData = encapsulate([frames[0], frames[1][: len(frames[1]) // 4], frames[2]])
    file = io.BytesIO()
    data.save_as(file)
    found = list(read_bytes(file.getvalue(), "x"))
    assert [(type(one), one.index) for one in found] == [(Slice, 0), (Unreadable, 1), (Slice, 2)]
    assert isinstance(found[1], Unreadable)
    assert (found[1].reason, found[1].series) == ("frame 2 cannot be decoded", "series-1")


def test_missing_frames_are_reported() -> None:
    found = list(read_bytes(dicom(np.stack([DEEP, DEEP]), NumberOfFrames=4), "x"))
    assert [(one.index, one.series) for one in found] == [(i, "series-1") for i in (0, 1, 3)]
    assert isinstance(found[2], Unreadable)
    assert found[2].reason == "promises 4 frames and holds 2"


def test_a_series_keeps_its_name_and_its_order(tmp_path: Path) -> None:
    uids = [generate_uid(entropy_srcs=[name]) for name in "ab"]
    for name, uid, number in [("1", uids[0], 2), ("2", uids[1], 1), ("3", uids[0], 1), ("4", uids[1], None)]:
        (tmp_path / name).write_bytes(dicom(DEEP, SeriesInstanceUID=uid, InstanceNumber=number))
    (tmp_path / "5").write_bytes(dicom(DEEP, SeriesInstanceUID=None, InstanceNumber=123456789))
    found = slices(read_inputs([str(tmp_path)]))
    assert [(s.series, s.index, s.count) for s in found] == [
        ("series-1", 1, None), ("series-2", 0, None), ("series-1", 0, None), ("series-2", None, None),
        ("series-3", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        dicom(DEEP, SeriesInstanceUID="1.2.3", InstanceNumber=7)[:-2000],
        dicom(DEEP, SeriesInstanceUID="1.2.3", InstanceNumber=7, syntax=seeds.RLE)[:-100],
        dicom(DEEP, SeriesInstanceUID="1.2.3", InstanceNumber=7, BitsAllocated=12),
    ],
    ids=["cut off", "damaged", "of a wrong depth"],
)
def test_an_unusable_file_names_the_series_that_lacks_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1").write_bytes(dicom(DEEP, SeriesInstanceUID="1.2.3", InstanceNumber=6))
    (tmp_path / "2").write_bytes(content)
    (tmp_path / "3").write_bytes(dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"))
    found = list(read_inputs([str(tmp_path)]))
    assert [(type(one), one.index, one.series) for one in found] == [
        (Slice, 5, "series-1"), (Unreadable, 6, "series-1"), (Unreadable, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), "without an image (Basic Text SR Storage)"),
        (dicom(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3"), "without an image (RT Structure Set Storage)"),
        (dicom(None, SOPClassUID="1.2.840.10008.1.3.10"), "without an image (Media Storage Directory Storage)"),
        (dicom(None, SOPClassUID="1.2.3"), "a DICOM file without an image"),
        (dicom(DEEP)[:-9], "cut off: its pixels are missing"),
        (dicom(DEEP)[: -2 * DEEP.size - 12], "cut off: it ends before its pixels do"),
        (dicom(DEEP, Rows=None), "header lacks Rows"),
        (dicom(DEEP, PhotometricInterpretation="CMYK"), "neither grey"),
        (dicom(DEEP, syntax="1.2.840.10008.1.2.4.70", encapsulated=[b"\xff\xd8"]), "no readable size"),
        (dicom(DEEP, syntax="1.2.840.10008.1.2.4.100", encapsulated=[b"\0\0"]), "stored as MPEG2"),
        (dicom(DEEP, Rows=60_000, Columns=60_000), "1 frames of 60000x60000 pixels"),
        (dicom(DEEP, NumberOfFrames=1_000_000), "1,000,000 frames"),
        (dicom(DEEP, Rows=4), "only 32x4 pixels"),
        (b"\0" * 128 + b"DICM", "without an image"),
    ],
)
def test_each_bad_file_has_its_reason(content: bytes, wanted: str) -> None:
    assert wanted in reason(read_bytes(content, "x"))


def test_a_deflated_file_may_be_long_and_padded() -> None:
    large = picture(1500, 1200).astype(np.uint16)  # inflates in several steps
    content = dicom(large, syntax=seeds.DEFLATED)
    for padded in (content, content + b"\0"):
        assert only(read_bytes(padded, "x")).metadata["width"] == 1200


def test_large_frames_are_rendered_in_blocks_that_do_not_show() -> None:
    large = picture(1500, 1200).astype(np.uint16) * 9
    found = only(read_bytes(dicom(large, **WINDOW), "x"))
    assert np.array_equal(found.pixels, fit_square(np.rint(linear(large, 2000, 3000)).astype(np.uint8), SQUARE))


def test_nothing_identifying_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    whole = seeds.named(dicom(DEEP, **WINDOW))
    assert SECRET.encode() in whole
    printed = [repr(only(read_bytes(whole, "x")))]
    # Damage it in many ways, so that errors get their chance to quote what they found.
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(6):
            data[int(random.integers(len(data)))] = int(random.integers(256))
        printed.append(repr(list(read_bytes(bytes(data[: int(random.integers(200, len(data)))]), "x"))))
    # Elements that are read, but hold a name.
    for keyword in ("Modality", "PhotometricInterpretation"):
        data = pydicom.dcmread(io.BytesIO(whole))
        data[keyword] = DataElement(data[keyword].tag, "CS", SECRET[:16].upper(), validation_mode=IGNORE)
        file = io.BytesIO()
        data.save_as(file)
        printed.append(repr(list(read_bytes(file.getvalue(), "x"))))
    printed += capfd.readouterr()
    for text in printed:
        assert "weifel" not in text.lower()
        assert "xaverine" not in text.lower()
        assert "1.2.3.4" not in text  # the series' identifier


def test_a_deflated_bomb_costs_no_memory() -> None:
    whole = dicom(DEEP, syntax=seeds.DEFLATED)
    start = 144 + struct.unpack("<I", whole[140:144])[0]
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1_000_000)
    bomb = whole[:start] + b"".join(pack.compress(zeros) for _ in range(100)) + pack.flush()
    tracemalloc.start()
    try:
        assert "inflates" in reason(read_bytes(bomb, "x", limits=ReadLimits(ratio_from=5_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 40_000_000  # pydicom's own import among them
    finally:
        tracemalloc.stop()


def raw(tag: bytes, vr: bytes, value: bytes) -> bytes:
    """An element in Explicit VR Little Endian; the tag as it is stored."""
    value += b" " * (len(value) % 2)
    return tag + vr + len(value).to_bytes(2, "little") + value


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("InstanceNumber", b"IM 7"), ("NumberOfFrames", b"one"), ("NumberOfFrames", b"1\\1"), ("Modality", b"MR\\PR"),
        ("EchoTime", b"long"), ("PixelSpacing", b"wide\\1"), ("PixelSpacing", b"1e400\\1"),
        ("ImagePositionPatient", b"left\\of\\it"), ("WindowCenter", b"middle"), ("WindowWidth", b"nan"),
        ("BodyPartExamined", b"K\xc3\x28\xff"), ("ImageType", b"\xff\xfe\\\xff"), ("SliceLocation", b"-"),
        ("PixelAspectRatio", b"2:1"), ("RescaleSlope", b"steep"), ("TemporalPositionIdentifier", b"?"),
        ("AcquisitionTime", b"noon"), ("AcquisitionNumber", b"x"), ("InversionTime", b"0x7"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("vr", [b"", b"XX"])
def test_junk_in_a_hint_counts_as_absent(keyword: str, value: bytes, vr: bytes) -> None:
    from pydicom.datadict import dictionary_VR, tag_for_keyword

    plain = only(read_bytes(dicom(DEEP, **dict.fromkeys(["InstanceNumber", "Modality"])), "x"))
    tag = tag_for_keyword(keyword) or 0
    content = dicom(DEEP, **dict.fromkeys(["InstanceNumber", "Modality"]))
    element = raw((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"),
                  vr or dictionary_VR(tag).encode(), value)  # fmt: skip
    # Before the first element of a higher tag.
    at = next(m for m in range(132, len(content)) if _tag_at(content, m) > tag and _starts(content, m))
    found = only(read_bytes(content[:at] + element + content[at:], "x"))
    np.testing.assert_array_equal(found.pixels, plain.pixels)
    assert (found.index, found.header_verdict) == (None, None)


def _tag_at(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 2], "little") << 16 | int.from_bytes(content[at + 2 : at + 4], "little")


def _starts(content: bytes, at: int) -> bool:
    """Whether an element of the main dataset starts here, walking the elements from the start."""
    here = 132
    while here < at:
        long = content[here + 4 : here + 6] in (b"OB", b"OW", b"SQ", b"UN")
        start, size = (here + 12, 4) if long else (here + 8, 2)
        here = start + int.from_bytes(content[start - size : start], "little")
    return here == at


@pytest.mark.case(19)
def test_number_of_frames_in_junk_is_that_of_the_pixels() -> None:
    """Not one of three, in silence."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.stack([DEEP] * 3))))
    content = dicom(np.stack([DEEP] * 3)).replace(b"\x28\0\x08\0IS\x02\x003 ", b"\x28\0\x08\0IS\x02\0x ")
    assert data.NumberOfFrames == 3
    assert len(slices(read_bytes(content, "x"))) == 3
