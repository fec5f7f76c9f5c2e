"""The table of ResNet18's stages."""

from __future__ import annotations

from tumorlens.readers.pixels import SIZE
from tumorlens.training.architecture import SHAPES


def test_images_have_the_size_that_readers_make() -> None:
    assert SHAPES["image"] == (SIZE, SIZE, 3)
