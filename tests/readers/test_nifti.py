"""NIfTI: the same slices from every stored orientation, sizes checked first, reasons for damaged files."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from input_files import reason, seeds, slices
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from phantom_files import write_nifti

from tumorlens.readers import (
    Plane,
    ReadLimits,
    Slice,
    Unreadable,
    read_bytes,
    read_inputs,
)
from tumorlens.readers.scaling import BLACK, WHITE, contrast_range, to_uint8
from tumorlens.readers.types import fit_square

nifti, SECRET = seeds.nifti, seeds.SECRET
SHAPE = (24, 20, 16)  # to the right, to the front, up
SIZES = np.array([1.0, 2.0, 3.0])  # mm
RAS = np.diag([*SIZES, 1.0])
R, A, S = np.mgrid[0:24, 0:20, 0:16]
VOLUME = (R * 40 + A * 7 + S * 90 + 300 * (R > 18) * (A > 14) * (S > 10)).astype(np.int16)
ORIENTATIONS = [
    "".join(pair[0 if sign else 1] for pair, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(["RL", "AP", "SI"])
    for signs in itertools.product([True, False], repeat=3)
]


def stored_as(codes: str) -> bytes:
    """The volume stored along other axes: the same head in the same place."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return bytes(nifti(apply_orientation(VOLUME, turn), RAS @ inv_ornt_aff(turn, SHAPE)))


def expected(plane: Plane, at: int) -> np.ndarray:
    """Written out: rows from the top, columns from the left, of the slice at an RAS index."""
    low, high = np.percentile(VOLUME, (BLACK, WHITE))
    if plane == "axial":  # front to back, patient's right to left
        return fit_square(to_uint8(VOLUME[::-1, ::-1, at].T, low, high), (SIZES[1], SIZES[0]))
    if plane == "coronal":  # top to bottom, patient's right to left
        return fit_square(to_uint8(VOLUME[::-1, at, ::-1].T, low, high), (SIZES[2], SIZES[0]))
    return fit_square(
        to_uint8(VOLUME[at, ::-1, ::-1].T, low, high), (SIZES[2], SIZES[1])
    )  # top to bottom, face to the left


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_gives_the_same_pictures(codes: str) -> None:
    planes: tuple[tuple[Plane, str, int], ...] = (("axial", "SI", 2), ("coronal", "AP", 1), ("sagittal", "RL", 0))
    for plane, letters, axis in planes:
        found = slices(read_bytes(stored_as(codes), "x", plane=plane))
        assert [s.index for s in found] == list(range(SHAPE[axis]))
        assert {(s.count, s.series, s.metadata["plane"]) for s in found} == {(SHAPE[axis], "series-1", plane)}
        along = any(letters[0] == code for code in codes)  # else stored from the other end
        for i in (0, 5, SHAPE[axis] - 1):
            at = i if along else SHAPE[axis] - 1 - i
            assert np.array_equal(found[i].pixels, expected(plane, at))


def test_right_front_and_top_lie_where_radiologists_see_them() -> None:
    def corner(plane: Plane, *, on: tuple[int, int, int]) -> tuple[float, float]:
        volume = np.zeros((40, 40, 40), np.uint8)
        volume[tuple(slice(25, 35) if side else slice(5, 15) for side in on)] = 200
        picture = slices(read_bytes(nifti(volume), "x", plane=plane))[30].pixels[..., 0].astype(float)
        rows, columns = np.indices(picture.shape)
        return float((rows * picture).sum() / picture.sum()), float((columns * picture).sum() / picture.sum())

    row, column = corner("axial", on=(1, 1, 1))
    assert row < 90  # the front is up
    assert column < 90  # the patient's right is on the left
    row, column = corner("coronal", on=(1, 1, 1))
    assert row < 90  # the top is up
    assert column < 90
    row, column = corner("sagittal", on=(1, 1, 1))
    assert row < 90
    assert column < 90  # the face looks to the left


def test_an_oblique_volume_goes_by_its_nearest_axes() -> None:
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = slices(read_bytes(nifti(VOLUME, turn @ RAS), "x"))
    assert np.array_equal(found[3].pixels, expected("axial", 3))


def test_sform_comes_before_qform_and_a_missing_orientation_is_reported() -> None:
    flipped = RAS @ np.diag([-1, 1, 1, 1])
    image = nibabel.Nifti1Image(VOLUME, None)
    image.set_qform(flipped, 1)
    by_qform = slices(read_bytes(image.to_bytes(), "x"))[3]
    assert np.array_equal(by_qform.pixels[:, ::-1], expected("axial", 3))
    image.set_sform(RAS, 1)
    both = slices(read_bytes(image.to_bytes(), "x"))[3]
    assert np.array_equal(both.pixels, expected("axial", 3))
    assert "orientation" not in both.metadata
    neither = slices(read_bytes(nifti(VOLUME, RAS, sform_code=0, qform_code=0), "x"))[3]
    assert "not recorded" in str(neither.metadata["orientation"])


@pytest.mark.case(18)
@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [0, *SIZES, 1, 1, 1, 1]},  # a factor of the third axis of 0 means 1
        {"pixdim": [1, 1, -2, 3, 1, 1, 1, 1]},
        {"pixdim": [1, *SIZES, 1, 1, 1, 1], "sform_code": 9, "srow_x": [-1, 0, 0, 0]},  # no such code
    ],
)
def test_damaged_orientation_fields_are_repaired_as_nibabel_does(fields: dict[str, object]) -> None:
    content = nifti(VOLUME, RAS, **{"sform_code": 0, "qform_code": 1} | fields)
    assert np.array_equal(nibabel.Nifti1Image.from_bytes(content).affine, RAS)
    assert np.array_equal(slices(read_bytes(content, "x"))[3].pixels, expected("axial", 3))


@pytest.mark.case(18)
@pytest.mark.parametrize("srow", [[0, 0, 0, 0], [np.nan, 0, 0, 0]])
def test_a_broken_sform_gives_way_to_a_sound_qform(srow: list[float]) -> None:
    turned = {"qform_code": 1, "quatern_b": 0, "quatern_c": 0, "quatern_d": 1}  # half a turn: LPS
    found = slices(read_bytes(nifti(VOLUME, sform_code=2, srow_x=srow, **turned), "x"))
    wanted = slices(read_bytes(nifti(VOLUME, sform_code=0, **turned), "x"))
    assert len(found) == len(wanted) == SHAPE[2]
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(found, wanted, strict=True))


@pytest.mark.case(17)
def test_the_pictures_of_the_chosen_plane_must_be_large_enough() -> None:
    stored = np.zeros((32, 5, 24), np.int16)  # five coronal slices, reoriented to RAS
    assert len(slices(read_bytes(nifti(stored), "x", plane="coronal"))) == 5
    for plane, size in (("axial", "32x5"), ("sagittal", "5x24")):
        refused = list(read_bytes(nifti(stored), "x", plane=plane))
        assert reason(refused) == f"only {size} voxels in each {plane} slice"
        assert refused[0].cure == "Use --plane coronal."  # type: ignore[union-attr]
    few = np.zeros((4, 4, 24), np.int16)
    assert next(iter(read_bytes(nifti(few), "x"))).cure == "Leave it out."  # type: ignore[union-attr]


@pytest.mark.case(17)
@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ((1, 1, 1), False),  # voxel sizes that a program has lost
        ((1, 1, 5), True),
        ((1, 1, 400), False),
        ((1, 1, 2.2), True),  # thin, but recorded
    ],
)
def test_implausible_voxel_sizes_are_ignored_and_logged(
    sizes: tuple[float, ...], kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = np.full((120, 120, 24), 300, np.int16)
    volume[0] = 0
    content = nifti(volume, np.diag([*sizes, 1.0]))
    found = slices(read_bytes(content, "x", plane="coronal"))
    rows = int((found[60].pixels[:, 112, 0] > 0).sum())  # of the picture, without black above and below
    assert rows == (round(224 * 24 * sizes[2] / 120) if kept else 224)
    assert ("spacing" in found[60].metadata) is not kept
    assert ("x: voxels of " in capsys.readouterr().err) is not kept
    axial = slices(read_bytes(content, "x"))
    assert all("spacing" not in one.metadata for one in axial)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("version", [1, 2])
def test_types_and_versions(dtype: str, version: int) -> None:
    volume = (VOLUME // 16 if dtype == "u1" else VOLUME).astype(dtype)
    found = slices(read_bytes(gzip.compress(nifti(volume, RAS, version=version)), "x.nii.gz"))
    low, high = contrast_range(volume)
    assert np.array_equal(found[3].pixels, fit_square(to_uint8(volume[::-1, ::-1, 3].T, low, high), (2, 1)))


def test_one_window_holds_for_the_volume_and_a_falling_slope_inverts() -> None:
    rising = slices(read_bytes(nifti(VOLUME, RAS), "x"))
    assert rising[0].pixels.max() < rising[15].pixels.max() == 255
    falling = slices(read_bytes(nifti(VOLUME, RAS, scl_slope=-2, scl_inter=7), "x"))
    low, high = contrast_range(VOLUME)
    assert np.array_equal(
        falling[3].pixels, fit_square(to_uint8(-VOLUME[::-1, ::-1, 3].T.astype(float), -high, -low), (2, 1))
    )


def test_of_four_dimensions_the_first_volume_is_read_and_the_others_are_reported() -> None:
    *read, last = read_bytes(nifti(np.stack([VOLUME, VOLUME * 0, VOLUME // 2], axis=-1), RAS), "x")
    found = slices(read)
    assert len(found) == 16
    assert np.array_equal(found[3].pixels, expected("axial", 3))
    assert "holds 3 volumes, of which the first alone was read" in reason([last])
    assert isinstance(last, Unreadable)
    assert (last.index, last.series) == (None, None), "the whole of the first volume does not count it"
    assert len(slices(read_bytes(nifti(VOLUME[..., None], RAS), "x"))) == 16, "a fourth dimension of one holds no more"


def test_signalling_nan_and_the_ends_of_floats_give_no_warning() -> None:
    volume = VOLUME.astype(np.float32)
    volume.view(np.uint32)[3, 3, 3] = 0x7F800001
    assert len(slices(read_bytes(nifti(volume, RAS), "x"))) == 16
    ends = np.where(VOLUME > 900, np.finfo(np.float64).max, np.finfo(np.float64).min)
    assert len(slices(read_bytes(nifti(ends, RAS), "x"))) == 16


def test_values_that_are_no_numbers_are_black_and_do_not_count() -> None:
    volume = VOLUME.astype(np.float32)
    volume[0], volume[1] = np.nan, np.inf
    found = slices(read_bytes(nifti(volume, RAS), "x", plane="sagittal"))
    assert found[0].pixels.max() == 0
    assert np.array_equal(
        found[9].pixels, fit_square(to_uint8(VOLUME[9, ::-1, ::-1].T, *contrast_range(VOLUME[2:])), (3, 2))
    )


WHOLE = gzip.compress(nifti(VOLUME, RAS), mtime=0)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (nifti(VOLUME)[:-100], "cut off: 15,260 of 15,360 bytes"),
        (nifti(VOLUME)[:300], "of no format"),
        (WHOLE[:-50], "damaged within its compressed data"),
        (WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], "damaged within its compressed data"),
        (gzip.compress(b"some text", mtime=0), "a gzip file without a NIfTI"),
        (nifti(VOLUME, magic=b"ni1"), "the header of a NIfTI pair"),
        (nifti(VOLUME, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "30000x30000x30000 voxels"),
        (nifti(VOLUME, dim=[3, 24, 0, 16, 1, 1, 1, 1]), "no sizes"),
        (nifti(VOLUME, dim=[9, 24, 20, 16, 1, 1, 1, 1]), "no sizes"),
        (nifti(VOLUME[:4]), "only 4x20 voxels in each axial slice"),
        (nifti(VOLUME, datatype=32, bitpix=64), "complex"),
        (nifti(VOLUME, datatype=128, bitpix=24), "colours"),
        (nifti(VOLUME, datatype=999), "unknown numbers"),
        (nifti(VOLUME, vox_offset=10), "places the voxels where they cannot be"),
        (nifti(VOLUME, vox_offset=1e30), "places the voxels where they cannot be"),
        (nifti(VOLUME, srow_x=[0, 0, 0, 0]), "its affine"),
        (nifti(VOLUME, srow_x=[0, 1, 0, 0], srow_y=[0, 1, 0, 0]), "its affine"),
        (nifti(VOLUME, srow_x=[np.nan, 0, 0, 0]), "its affine"),
        (nifti(VOLUME, sform_code=0, qform_code=1, quatern_b=0.9, quatern_c=0.9, quatern_d=0.9), "its affine"),
    ],
)
def test_each_bad_file_has_its_reason(content: bytes, wanted: str) -> None:
    assert wanted in reason(read_bytes(content, "x"))


def test_limits_hold_before_anything_is_inflated() -> None:
    bomb = gzip.compress(nifti(np.zeros((400, 400, 200), np.int16)), 9)
    assert "has 20 coronal" in reason(read_bytes(nifti(VOLUME), "x", plane="coronal", limits=ReadLimits(frames=19)))
    assert "over the limits" in reason(read_bytes(nifti(VOLUME), "x", limits=ReadLimits(pixels=100)))
    tracemalloc.start()
    try:
        assert "takes 64,000,000 bytes" in reason(read_bytes(bomb, "x", limits=ReadLimits(bytes=10_000_000)))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    for content in (bomb, bomb + bytes(400_000)):  # the second is long enough for what its header promises
        tracemalloc.start()
        try:
            found = reason(read_bytes(content, "x", limits=ReadLimits(ratio_from=5_000_000)))
            assert "inflates to over 200 times" in found
            assert content is not bomb or tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()


def test_nothing_identifying_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    whole = nifti(VOLUME, RAS, aux_file=SECRET[:23].encode())
    assert whole.count(SECRET[:12].encode()) >= 3
    printed = [repr(found.metadata) + found.source for found in slices(read_bytes(whole, "x"))]
    random = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(6):
            data[int(random.integers(348))] = int(random.integers(256))
        for found in read_bytes(bytes(data), "x"):
            assert isinstance(found, (Slice, Unreadable))
            printed.append(found.reason + found.cure if isinstance(found, Unreadable) else repr(found.metadata))
    printed += capfd.readouterr()
    assert not any("weifel" in text for text in printed)


def test_a_phantom_is_read_whole(tmp_path: Path) -> None:
    path, _ = write_nifti(tmp_path / "a.nii.gz", 0, "glioma", 0)
    found = slices(read_inputs([str(path)]))
    assert len(found) == 37
    assert found[0].source == str(path)
    middle = found[18].pixels[..., 0]
    assert middle[100:124, 100:124].mean() > 40  # a head in the middle
    assert middle[:8, :8].max() < 40  # on black
