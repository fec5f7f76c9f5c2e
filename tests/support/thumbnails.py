"""Thumbnails of smooth pictures, some of them near-duplicates of one another."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from tumorlens.data import near_duplicates as module
from tumorlens.data.near_duplicates import TRANSFORMATIONS

TURN = {
    "direct": lambda a: a, "mirrored": np.fliplr, "flipped": np.flipud, "rotated 180": lambda a: np.rot90(a, 2),
    "transposed": lambda a: a.T, "rotated 90": lambda a: np.rot90(a, -1), "rotated 270": lambda a: np.rot90(a, 1),
    "anti-transposed": lambda a: np.rot90(a, 2).T,
}  # fmt: skip


def blobs(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    found = np.stack([gaussian_filter(random.normal(size=(32, 32)), 2.5) for _ in range(n)])
    low, high = found.min(axis=(1, 2), keepdims=True), found.max(axis=(1, 2), keepdims=True)
    return ((found - low) / (high - low) * 200 + 20).astype(np.uint8)


@pytest.fixture
def images(monkeypatch) -> np.ndarray:
    monkeypatch.setattr(module, "_BLOCK", 37)  # several blocks, the last one short
    found = blobs(150)
    for k, name in enumerate(TRANSFORMATIONS):
        found[2 * k] = TURN[name](found[2 * k + 1])
    found[40] = found[41] = found[42]  # copies
    found[50] = np.clip(found[51] * 0.5 + 60, 0, 255)  # darker, with less contrast
    found[60:62] = 7  # without any structure
    return found


def unit_thumbnails(images: list[np.ndarray]) -> np.ndarray:
    """float32 [n, 1024], mean-centred and of unit length."""
    small = [np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BILINEAR), np.float32) for i in images]
    flat = np.stack(small).reshape(len(images), -1)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
