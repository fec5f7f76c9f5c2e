"""Images of a series → volumes, and their places in order."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tumorlens.readers.places import TRAITS, Image, choose_volume, part
from tumorlens.readers.types import Place, Slice

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def at(z: float | None, number: int | None = None, *, plane: tuple[float, ...] = AXIAL, uid: int | None = None,
       times: tuple[float, ...] = (), **traits: str) -> Image:  # fmt: skip
    """An image at a position; spaces in names of traits are written as underscores."""
    known = {name.replace(" ", "_").replace("-", "_"): name for name in TRAITS}
    values = {known[name]: value for name, value in traits.items()}
    return Place(z, plane, tuple(values.get(name, "") for name in TRAITS), times, uid), number


def shape(images: list[Image]) -> list[tuple[str, list[int], list[list[int]]]]:
    """Per volume its name, the numbers of its places and the images there."""
    return [(v.name, [n for n, _ in v.spots], [members for _, members in v.spots]) for v in part(images)]


@pytest.mark.case(1)
def test_places_are_in_the_order_of_positions_whatever_the_numbers() -> None:
    images = [at(z, n) for n, z in enumerate([0.0, 10.0, 20.0, 5.0, 15.0])]
    assert shape(images) == [("", [0, 1, 2, 3, 4], [[0], [3], [1], [4], [2]])]
    assert shape([at(-z, n) for n, z in enumerate([0.0, 10.0, 5.0])]) == [("", [0, 1, 2], [[1], [2], [0]])]


@pytest.mark.case(1)
def test_a_gap_parts_neighbours_and_jitter_does_not() -> None:
    assert shape([at(z) for z in (0.0, 5.02, 9.97, 20.0, 25.0)])[0][1] == [0, 1, 2, 4, 5]


@pytest.mark.case(1)
def test_without_positions_numbers_count() -> None:
    assert shape([at(None, 3), at(None, 1), at(None, None), at(None, 2)])[0][2] == [[1], [3], [0], [2]]
    assert part([at(None, 3), at(None, 1)])[0].placed is False


@pytest.mark.case(1)
@pytest.mark.parametrize(
    ("trait", "values"),
    [("echo_time", ("12", "80")), ("b_value", ("0", "500", "1000")), ("image_type", ("M", "P")),
     ("temporal_position", ("1", "2")), ("inversion_time", ("50", "400")), ("acquisition", ("1", "2")),
     ("time", ("1015", "1016"))],
)  # fmt: skip
@pytest.mark.parametrize("shuffled", [False, True])
def test_images_of_one_place_are_parted_by_what_tells_them_apart(
    trait: str, values: tuple[str, ...], shuffled: bool
) -> None:
    images = [at(float(z), uid=100 * z + k, **{trait: value}) for z in range(4) for k, value in enumerate(values)]
    if shuffled:
        random.Random(0).shuffle(images)
    volumes = part(images)
    assert len(volumes) == len(values)
    for k, (volume, value) in enumerate(zip(volumes, values, strict=True)):
        assert [(images[i][0].image or 0) % 100 for i in volume.images] == [k] * 4
        # The time of day is not shown.
        assert volume.name == (
            f"time {k + 1}" if trait == "time" else f"{trait.replace('_', ' ')} {value}".replace("b ", "b-")
        )


@pytest.mark.case(1)
def test_several_elements_part_together() -> None:
    images = [at(float(z), echo=e, temporal_position=t) for z in range(3) for e in "12" for t in "123"]
    assert [name for name, *_ in shape(images)] == [
        f"echo {e}, temporal position {t}" for e in "12" for t in "123"
    ]  # fmt: skip


@pytest.mark.case(1)
def test_an_element_that_varies_from_slice_to_slice_parts_nothing() -> None:
    images = [at(float(z), echo_time=f"{12 + z / 1000}", acquisition=str(z)) for z in range(5)]
    assert [name for name, *_ in shape(images)] == [""]


@pytest.mark.case(1)
def test_what_nothing_tells_apart_is_parted_by_time_and_number() -> None:
    images = [at(float(z), 10 * t + z, uid=10 * t + z, times=(float(9 - t),)) for z in range(3) for t in range(3)]
    found = part(images)
    assert [v.name for v in found] == ["repetition 1", "repetition 2", "repetition 3"]
    assert [(images[i][1] or 0) // 10 for i in found[0].images] == [2, 2, 2]  # the earliest


@pytest.mark.case(1)
def test_orientations_are_volumes_of_their_own() -> None:
    images = [at(float(z), plane=plane) for z in range(3) for plane in (SAGITTAL, AXIAL, CORONAL)]
    assert [(name, len(spots)) for name, _, spots in shape(images)] == [("axial", 3), ("coronal", 3), ("sagittal", 3)]
    oblique = (0.9, 0.436, 0.0, -0.436, 0.9, 0.0)
    assert [name for name, *_ in shape([at(0.0), at(0.0, plane=oblique)])] == ["axial 1", "axial 2"]
    nearly = (0.9999, 0.0141, 0.0, -0.0141, 0.9999, 0.0)
    assert len(part([at(0.0), at(5.0, plane=nearly), at(10.0)])) == 1


@pytest.mark.case(1)
def test_images_without_a_position_are_apart_from_those_with_one() -> None:
    assert [name for name, *_ in shape([at(0.0), at(5.0), at(None, 1), at(None, 2)])] == ["axial", "no position"]


@pytest.mark.case(1)
def test_an_image_with_junk_in_its_orientation_comes_after_the_volume_that_it_is_missing_from() -> None:
    images = [at(z, plane=() if z == 5.0 else AXIAL) for z in (0.0, 5.0, 10.0)]
    assert [name for name, *_ in shape(images)] == ["axial", "no orientation"]


@pytest.mark.case(1)
def test_copies_stay_together_and_equal_numbers_of_other_formats_are_copies() -> None:
    assert shape([at(0.0, uid=1), at(0.0, uid=1), at(5.0, uid=2)]) == [("", [0, 1], [[0, 1], [2]])]
    assert shape([(Place(), 4), (Place(), 4), (Place(), 5)]) == [("", [4, 5], [[0, 1], [2]])]


@pytest.mark.case(1)
def test_one_image_more_at_one_place_is_a_volume_of_its_own() -> None:
    images = [at(float(z), z, uid=z) for z in range(5)] + [at(2.0, 9, uid=9)]
    assert [(name, len(spots)) for name, _, spots in shape(images)] == [("repetition 1", 5), ("repetition 2", 1)]


@pytest.mark.case(1)
def test_a_volume_is_chosen_by_its_number() -> None:
    pixels = np.zeros((0, 0, 3), np.uint8)
    images = [
        Slice(f"{e}{z}.dcm", z, None, "series-1", pixels, {}, place=at(float(z), z, echo=e, uid=z + 10 * int(e))[0])
        for e in "21" for z in range(3)
    ]  # fmt: skip
    chosen, lacking = choose_volume(images, 2)
    assert chosen == {("20.dcm", 0), ("21.dcm", 1), ("22.dcm", 2)}
    assert not lacking
    chosen, lacking = choose_volume(images, 3)
    assert not chosen
    assert [(e.reason, e.cure) for e in lacking] == [
        ("holds 2 volumes, so there is no volume 3", "Use --volume 1 to --volume 2.")
    ]
