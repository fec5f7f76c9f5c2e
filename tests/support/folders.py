"""Generated images, and folders of them laid out as Kaggle ships them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def draw(label: int, number: int, size: int = 96) -> Image.Image:
    """A grey disc on black with a brighter blob whose place depends on the class."""
    random = np.random.default_rng([label, number])
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    head = (x**2 + y**2 < 0.2) * 0.5
    centre = np.array([[-0.2, -0.2], [0.2, -0.2], [-0.2, 0.2], [0.2, 0.2]])[label] + random.normal(0, 0.02, 2)
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.01) * 0.4
    grey = np.clip(head + blob + random.normal(0, 0.03, head.shape), 0, 1)
    return Image.fromarray((grey * 255).astype(np.uint8))


def picture(number: int) -> np.ndarray:
    """A smooth picture of its own, uint8 [64, 64], unlike any other and unlike its mirror image."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6), dtype=np.uint8))
    return np.array(coarse.resize((64, 64), Image.Resampling.BICUBIC))


def write_folder(root: Path, *, train: int, test: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Training/ and Testing/ with `train` and `test` images a class."""
    for part, n, first in (("Training", train, 0), ("Testing", test, 1000)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                draw(label, first + i).save(folder / f"{name[:2]}_{i:04d}.png")
    return root
