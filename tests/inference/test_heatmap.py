"""Heatmaps: colours, opacity and pictures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import zoom

from tumorlens.inference.heatmap import (
    class_heatmap,
    colormap,
    overlay,
    picture,
    upsample,
)


def linear(rgb: np.ndarray) -> np.ndarray:
    c = rgb / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """From Ottosson's forward matrices, which the module does not use."""
    to_lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
              [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
              [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear(rgb) @ np.array(to_lms).T) @ np.array(to_lab).T


def derived_colours() -> np.ndarray:
    """The colours, uint8 [256, 3]: 255 steps of equal length in OKLab along a path of hues, lightness and chroma."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
                       [-0.0041960863, -0.7034186147, 1.7076147010]])  # fmt: skip
    t = np.linspace(0, 1, 4096)
    chroma = np.interp(t, (0, 0.5, 1), (0.11, 0.09, 0.165))  # inside sRGB everywhere
    hue = np.radians(300 + t * (105 - 300))  # violet to yellow
    lab = np.stack([0.28 + t * (0.93 - 0.28), chroma * np.cos(hue), chroma * np.sin(hue)], 1)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(lab, axis=0), axis=1))])
    even = np.stack([np.interp(np.linspace(0, along[-1], 256), along, lab[:, i]) for i in range(3)], 1)
    rgb = np.clip((even @ to_lms.T) ** 3 @ to_rgb.T, 0, 1)
    srgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8)


class TestColours:
    def test_the_table_is_the_derived_one(self):
        # Rounding may differ by one grey level between processors.
        assert np.abs(colormap().astype(int) - derived_colours()).max() <= 1

    def test_steps_are_even(self):
        lab = oklab(colormap().astype(float))
        steps = np.linalg.norm(lab[8::8] - lab[:-8:8], axis=1)  # of 8, as 8 bits round single ones
        assert steps.max() / steps.min() < 1.2

    def test_lightness_rises_all_the_way(self):
        lightness = oklab(colormap().astype(float))[:, 0]
        assert (np.diff(lightness[::4]) > 0).all()
        assert lightness[-1] - lightness[0] > 0.6

    @pytest.mark.parametrize(
        "seen",
        [
            # Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009, severity 1: protanopia, deuteranopia, tritanopia
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
            [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
        ],
    )
    def test_the_colour_blind_see_the_same_order(self, seen):
        luminance = np.clip(linear(colormap()) @ np.array(seen).T, 0, 1) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance[::8]) > 0).all()


class TestHeat:
    @pytest.fixture
    def heatmap(self) -> np.ndarray:
        found = np.zeros((4, 7, 7), np.float32)
        found[0, 1, 5], found[0, 4, 4], found[1, 1, 5] = 3, -5, 3
        return found

    def test_it_is_from_0_to_1_and_hottest_where_the_map_is(self, heatmap):
        heat = class_heatmap(heatmap, 0)
        assert heat.shape == (224, 224)
        assert (heat.min(), heat.max()) == (0, 1)
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        assert (y // 32, x // 32) == (1, 5)
        assert heat[4 * 32 + 16, 4 * 32 + 16] == 0  # negative evidence is no heat

    def test_a_contrast_takes_away_what_both_share(self, heatmap):
        heatmap[0, 6, 0] = 1
        heat = class_heatmap(heatmap, 0, 1)
        assert heat[48, 176] == 0
        assert heat[-1, 0] == 1

    def test_nothing_is_nothing(self):
        assert not class_heatmap(np.full((2, 7, 7), -1, np.float32), 0).any()

    def test_enlarging_is_bilinear_between_centres(self):
        small = np.random.default_rng(0).random((7, 7)).astype(np.float32)
        wanted = zoom(small, 32, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(upsample(small), wanted, atol=1e-5)

    def test_opacity(self, heatmap):
        pixels = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        heat = class_heatmap(heatmap, 0)
        np.testing.assert_array_equal(overlay(pixels, heat, 0), pixels)
        full = overlay(pixels, heat, 1)
        np.testing.assert_array_equal(full[heat == 1], np.broadcast_to(colormap()[255], full[heat == 1].shape))
        np.testing.assert_array_equal(full[heat == 0], pixels[heat == 0])


def test_the_slice_stands_beside_its_overlay():
    pixels = np.full((224, 224, 3), 90, np.uint8)
    heat = np.zeros((224, 224), np.float32)
    heat[100:120, 100:120] = 1
    image = np.asarray(picture(pixels, heat, ["glioma 90.0%"], 1.0))
    assert (image[:448, :448] == 90).all()
    assert (image[220, 456 + 220] == colormap()[255]).all()
    assert image[456:].any()  # text
