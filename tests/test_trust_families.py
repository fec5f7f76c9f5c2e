"""Families of changed and foreign images: pure, named, and kept apart."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from tumorlens.datasets.phantom import make_slice
from tumorlens.errors import ConfigError
from tumorlens.images import resized
from tumorlens.trust.families import FAMILIES, changed, families, half_of, phantom_plane
from tumorlens.trust.near import head_of, to_grey


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
        if family.name not in ("zoomed", "wide_field", "coil_bias", "tilted"):
            found = head_of(to_grey(changed(family, slices[:1])[0]))
            # skull_stripped takes the most away; a little noise over air adds the most
            assert (found & there).sum() > 0.5 * there.sum(), family.name


def test_wavelet_without_a_threshold_gives_the_image_back(slices):
    from tumorlens.trust.near import _shrunk

    grey = to_grey(slices[0])
    assert _shrunk(grey, 0.0, 3) == pytest.approx(grey, abs=1e-6)


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
