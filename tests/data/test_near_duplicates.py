"""The search for near-duplicates agrees with a literal comparison in all eight orientations."""

from __future__ import annotations

import numpy as np
import pytest
from thumbnails import TURN, blobs
from thumbnails import images as images  # a fixture

from tumorlens.data.groups import group_near_duplicates
from tumorlens.data.near_duplicates import TRANSFORMATIONS, find_near_duplicates, nearest_reference


def cosines(thumbnails: np.ndarray) -> np.ndarray:
    """[n, n, 8], the slow way."""
    x = thumbnails.astype(float) - thumbnails.mean(axis=(1, 2), keepdims=True)
    norm = np.linalg.norm(x, axis=(1, 2), keepdims=True)
    x = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    return np.stack([np.einsum("iab,jab->ij", x, np.stack([TURN[t](a) for a in x])) for t in TRANSFORMATIONS], -1)


def test_all_pairs_and_nearest_are_those_of_the_literal_comparison(images) -> None:
    reference = np.random.default_rng(1).random(150) < 0.6
    reference[[1, 3, 5, 7, 9, 11, 13, 15, 41, 51]] = True
    found = find_near_duplicates(images, reference, floor=0.6, workers=2)
    every = cosines(images)
    best = every.max(2)
    same = np.array([[np.array_equal(a, b) for b in images] for a in images])
    best[same] = 1
    np.fill_diagonal(best, -2)
    for i in range(150):
        row = np.where(reference, best[i], -2)
        assert found.similarity[i] == pytest.approx(row.max(), abs=2e-6)
        assert row[found.nearest[i]] == pytest.approx(row.max(), abs=2e-6)
        assert found.nearest[i] != i
        if not same[i, found.nearest[i]]:
            assert every[i, found.nearest[i], found.transformation[i]] == pytest.approx(row.max(), abs=2e-6)
    wanted = {
        (min(a, b), max(a, b))
        for i, j in np.argwhere(best >= 0.6)
        if (a := found.distinct[i]) != (b := found.distinct[j])
    }
    assert {tuple(pair) for pair in found.pairs.tolist()} == wanted
    for k, name in enumerate(TRANSFORMATIONS):
        if name not in ("transposed", "anti-transposed"):  # their own inverses are found either way
            assert found.similarity[2 * k] == pytest.approx(1, abs=1e-5)
            assert TRANSFORMATIONS[found.transformation[2 * k]] == name
    assert found.similarity[50] > 0.999
    assert found.similarity[40] == found.similarity[42] == 1


@pytest.mark.parametrize("orientations", [slice(0, 1), slice(0, 2), slice(None)])
def test_having_counts_copies_and_close_pairs_but_never_the_image_itself(images, orientations) -> None:
    reference = np.zeros(150, bool)
    reference[[1, 3, 5, 40]] = True
    found = find_near_duplicates(images, reference, floor=0.6)
    close = cosines(images)[:, :, orientations].max(2) >= 0.95
    for i in range(150):
        close[i] |= [np.array_equal(images[i], b) for b in images]
    np.fill_diagonal(close, False)
    assert np.array_equal(found.having(reference, 0.95, orientations), close[:, reference].any(1))


def test_nearest_reference_with_and_without_mirrors(images) -> None:
    chosen, reference = np.arange(150) < 30, np.arange(150) >= 30
    every = cosines(images)
    for found, kinds in zip(nearest_reference(images, chosen, reference), ([0], [0, 1]), strict=True):
        best = every[:30, 30:][:, :, kinds].max(2)
        got = found - 30
        assert np.allclose(best[np.arange(30), got], best.max(1), atol=2e-6)


def test_all_images_alike_and_none_alike() -> None:
    same = np.repeat(blobs(1), 500, axis=0)
    found = find_near_duplicates(same, np.ones(500, bool))
    assert len(found.pairs) == 0
    assert set(found.similarity) == {1.0}
    assert len(np.unique(group_near_duplicates(found).numbers)) == 1  # copies stay together, whatever the cap
    apart = find_near_duplicates(blobs(60), np.ones(60, bool), floor=0.95)
    assert len(np.unique(group_near_duplicates(apart).numbers)) == 60


def test_single_image_and_no_reference() -> None:
    one = find_near_duplicates(blobs(1), np.ones(1, bool))
    assert one.nearest.tolist() == [-1]
    assert np.isnan(one.similarity[0])
    none = find_near_duplicates(blobs(4), np.zeros(4, bool))
    assert none.nearest.tolist() == [-1] * 4
    assert not none.having(np.zeros(4, bool)).any()
