"""Places of DICOM images, from classic and enhanced headers."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from input_files import only, seeds, slices
from pydicom.dataset import Dataset

from tumorlens.readers import read_bytes
from tumorlens.readers.places import TRAITS, part
from tumorlens.readers.sources import read_file
from tumorlens.readers.types import Place, ReadContext

DEEP = seeds.picture().astype(np.uint16) * 16
AXIAL = [1, 0, 0, 0, 1, 0]


def place(**elements: object) -> Place:
    return only(read_bytes(seeds.dicom(DEEP, **elements), "x")).place


def item(**elements: object) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def enhanced(groups: list[Dataset], shared: Dataset) -> bytes:
    return seeds.dicom(
        np.stack([DEEP] * len(groups)), PerFrameFunctionalGroupsSequence=groups, SharedFunctionalGroupsSequence=[shared]
    )


@pytest.mark.case(1)
def test_the_position_is_along_the_normal_of_the_plane() -> None:
    assert place(ImagePositionPatient=[-100, -90, 35.5], ImageOrientationPatient=AXIAL).position == 35.5
    tilted = place(ImagePositionPatient=[0, -30, 40], ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])
    assert tilted.position == pytest.approx(0.6 * -30 + 0.8 * 40)


@pytest.mark.case(1)
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ImagePositionPatient": [0, 0, 5]},
        {"ImageOrientationPatient": AXIAL},
        {"ImagePositionPatient": [0, 0], "ImageOrientationPatient": AXIAL},
        {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
    ],
)
def test_without_a_sound_position_and_orientation_there_is_no_position(elements: dict[str, object]) -> None:
    assert place(**elements).position is None
    assert place(**elements, SliceLocation=7.5).position == 7.5


def test_traits_come_from_the_header() -> None:
    found = place(EchoTime=12.5, EchoNumbers=2, DiffusionBValue=1000.0, TemporalPositionIdentifier=3,
                  ImageType=["DERIVED", "PRIMARY", "M", "ND"], AcquisitionTime="101112.5")  # fmt: skip
    traits = dict(zip(TRAITS, found.traits, strict=True))
    assert (traits["echo time"], traits["echo"], traits["b-value"], traits["temporal position"]) == (
        "12.5", "2", "1000", "3",
    )  # fmt: skip
    assert traits["image type"] == "M ND"
    assert 101112.5 in found.times


def frame(z: float, **more: Dataset) -> Dataset:
    made = item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, z])])
    for keyword, value in more.items():
        setattr(made, keyword, [value])
    return made


SHARED = item(PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)])


@pytest.mark.case(2)
def test_frames_lie_where_their_groups_say() -> None:
    found = slices(read_bytes(enhanced([frame(z) for z in (10, 0, 5)], SHARED), "x"))
    assert [one.place.position for one in found] == [10, 0, 5]
    assert [one.index for one in found] == [0, 1, 2]


@pytest.mark.case(2)
def test_frames_without_positions_lie_by_their_number_in_the_stack() -> None:
    groups = [item(FrameContentSequence=[item(InStackPositionNumber=n, StackID="A")]) for n in (3, 1, 2)]
    found = slices(read_bytes(enhanced(groups, item()), "x"))
    assert [one.place.position for one in found] == [3, 1, 2]


@pytest.mark.case(2)
def test_frames_of_echoes_and_b_values_are_volumes() -> None:
    groups = [
        frame(z, MREchoSequence=item(EffectiveEchoTime=float(e)), MRDiffusionSequence=item(DiffusionBValue=float(b)))
        for z in (0, 5, 10) for e, b in ((12, 0), (80, 0), (80, 1000))
    ]  # fmt: skip
    found = slices(read_bytes(enhanced(groups, SHARED), "x"))
    volumes = part([(one.place, one.index) for one in found])
    assert [v.name for v in volumes] == ["echo time 12", "echo time 80, b-value 0", "echo time 80, b-value 1000"]
    assert [v.images for v in volumes] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.case(2)
def test_the_chosen_volume_alone_is_read() -> None:
    groups = [frame(z, MRDiffusionSequence=item(DiffusionBValue=b)) for b in (0.0, 1000.0) for z in (0, 5)]
    content = enhanced(groups, SHARED)
    found = slices(read_file(ReadContext(BytesIO(content), "x", volume=2)))
    assert [one.index for one in found] == [2, 3]
    (lacking,) = read_file(ReadContext(BytesIO(content), "x", volume=3))
    assert "so there is no volume 3" in lacking.reason
