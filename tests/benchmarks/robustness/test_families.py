"""Families of changed and foreign images: pure, named, and kept apart."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from robustness import artefacts
from robustness.families import (
    FAMILIES,
    changed,
    families,
    half_of,
    phantom_plane,
)
from robustness.near import head_of, to_grey

from tumorlens.core.errors import ConfigError
from tumorlens.data.phantom.generator import make_slice
from tumorlens.readers.pixels import resized


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    made = [make_slice(0, label, i, 0).pixels for i, label in enumerate(("glioma", "notumor"))]
    return np.stack([resized(Image.fromarray(pixels).convert("RGB")) for pixels in made])


def test_those_for_fitting_and_for_judging_are_disjoint():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert len({family.make for family in FAMILIES}) == len(FAMILIES)
    for kind in ("near", "far"):
        fit, judge = families(kind, "fit"), families(kind, "judge")
        assert min(len(fit), len(judge)) >= 8
        assert not {f.make for f in fit} & {f.make for f in judge}


def test_fresh_ones_are_near_and_for_judging():
    fresh = [family for family in FAMILIES if family.fresh]
    assert [family.name for family in fresh] == [make.__name__ for make in artefacts.JUDGING]
    assert {(family.kind, family.use) for family in fresh} == {("near", "judge")}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
class TestEachFamily:
    def test_gives_other_images_of_the_same_form_again_and_again(self, family, slices):
        before = slices.copy()
        made = changed(family, slices, seed=1)
        assert (made.shape, made.dtype) == (slices.shape, np.uint8)
        assert (slices == before).all()
        assert (made != slices).any((1, 2, 3)).all()
        # image i depends on (seed, family, i) alone
        assert (made[:1] == changed(family, slices[:1], seed=1)).all()
        assert family.name == "inverted" or (made != changed(family, slices, seed=2)).any()

    def test_bears_a_black_image(self, family, slices):
        assert changed(family, np.zeros_like(slices[:1])).shape == (1, 224, 224, 3)

    def test_of_no_image_is_none(self, family, slices):
        assert changed(family, slices[:0]).shape == (0, 224, 224, 3)


def test_near_families_keep_the_head_in_its_place(slices):
    there = head_of(to_grey(slices[0]))
    for family in (*families("near", "fit"), *families("near", "judge")):
        if family.name not in (
            "zoomed",
            "wide_field",
            "coil_bias",
            "tilted",
            "moved",
            "rotated",
            "squeezed",
            "wrapped",
        ):
            found = head_of(to_grey(changed(family, slices[:1])[0]))
            # skull_stripped takes the most away; a little noise over air adds the most
            assert (found & there).sum() > 0.5 * there.sum(), family.name


def test_wavelet_without_a_threshold_gives_the_image_back(slices):
    from robustness.near import _shrunk

    grey = to_grey(slices[0])
    assert _shrunk(grey, 0.0, 3) == pytest.approx(grey, abs=1e-6)


def test_what_is_folded_in_was_outside_the_field():
    # A point near the top: folded along columns it comes back below the middle, along rows it stays.
    image = np.zeros((224, 224, 3), np.uint8)
    image[5, 112], image[112, 112] = 100, 200
    for seed in range(6):
        made = artefacts.wrapped(image, np.random.default_rng(seed))[..., 0]
        assert made[112, 112] == 200
        assert sorted(made[made > 0].tolist()) == [100, 200]
        assert (made[5, 112] == 100) != (made[120:, 112].max() == 100)


def test_ghosts_lie_beside_what_moved_and_take_from_its_brightness():
    image = np.zeros((224, 224, 3), np.uint8)
    image[100:124, 100:124] = 200
    made = artefacts.ghosted(image, np.random.default_rng(0))[..., 0].astype(int)
    inside, rows, columns = made[100:124, 100:124], made[100:124].sum(), made[:, 100:124].sum()
    assert inside.mean() < 200
    assert made.sum() - inside.sum() > 0.1 * inside.sum()
    assert max(rows, columns) > 0.99 * made.sum()  # along one axis alone


def test_long_voxels_blur_along_one_axis_alone():
    stripes = np.zeros((224, 224, 3), np.uint8)
    stripes[::2] = 200
    upright = np.ascontiguousarray(stripes.swapaxes(0, 1))
    for seed in range(4):
        blurred = [artefacts.anisotropic(x, np.random.default_rng(seed)).std() < 60 for x in (stripes, upright)]
        assert sorted(blurred) == [False, True]


def test_aperture_leaves_the_middle_and_takes_the_corners():
    made = artefacts.aperture(np.full((224, 224, 3), 90, np.uint8), np.random.default_rng(0))
    assert (made[112, 40:184] == 90).all()
    assert made[20:21, 20:21].max() == made[-1].max() == 0


def test_phantoms_come_from_the_plane_asked_for():
    pixels, labels = phantom_plane("coronal", 4)
    assert pixels.shape == (4, 224, 224, 3)
    assert labels == ["glioma", "meningioma", "notumor", "pituitary"]
    assert (phantom_plane("coronal", 2)[0] == pixels[:2]).all()
    assert (phantom_plane("sagittal", 1)[0] != pixels[:1]).any()
    with pytest.raises(ConfigError, match="oblique"):
        phantom_plane("oblique", 1)


def test_halves_are_about_equal_and_follow_from_the_bytes_alone():
    halves = [half_of(hashlib.sha256(bytes([i])).hexdigest()) for i in range(200)]
    assert halves[:3] == [half_of(hashlib.sha256(bytes([i])).hexdigest().upper()) for i in range(3)]
    assert 75 < halves.count("look") < 125
    assert {half_of("0" * 64), half_of("f" * 64)} == {"look", "judge"}
    for wrong in ("", "xyz"):
        with pytest.raises(ConfigError, match="SHA-256"):
            half_of(wrong)
