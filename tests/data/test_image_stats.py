"""Statistics of an image file against values that are known by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.image_stats import colour_share, measure_image


def test_statistics_of_a_bright_square_on_black(tmp_path: Path) -> None:
    pixels = np.zeros((224, 224), np.uint8)
    pixels[56:168, 56:168] = 200
    Image.fromarray(pixels).save(tmp_path / "x.png")
    stats, thumbnail = measure_image(tmp_path / "x.png")
    assert (stats.width, stats.height, stats.mode, stats.tables) == (224, 224, "L", "")
    assert stats.bytes == (tmp_path / "x.png").stat().st_size
    assert (stats.colour, stats.brightness, stats.border) == (0, 50, 1)
    assert thumbnail.shape == (32, 32)
    assert thumbnail[16, 16] == 200
    assert thumbnail[0, 0] == 0


def test_share_of_colour() -> None:
    pixels = np.full((10, 10, 3), 100, np.uint8)
    pixels[:3, :, 0] = 121
    pixels[3:5, :, 0] = 120
    assert colour_share(pixels) == pytest.approx(0.3)


@pytest.mark.case(10)
@pytest.mark.parametrize("name", ["x.jfif", "x.JPE", "x", "x.001"])
def test_the_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    assert measure_image(tmp_path / name)[0].width == 20
