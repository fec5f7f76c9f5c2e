"""Groups of near-duplicates: chains are cut at a cap, and coarser groups are unions of finer ones."""

from __future__ import annotations

import numpy as np
from thumbnails import blobs
from thumbnails import images as images  # a fixture

from tumorlens.data.groups import group_near_duplicates
from tumorlens.data.near_duplicates import find_near_duplicates


def test_a_chain_of_like_images_is_cut_at_the_cap() -> None:
    ends = blobs(2, seed=3).astype(float)
    steps = np.linspace(0, 1, 40)[:, None, None]
    chain = ((1 - steps) * ends[0] + steps * ends[1]).round().astype(np.uint8)
    images = np.concatenate([chain, blobs(20, seed=4)])
    found = find_near_duplicates(images, np.ones(60, bool), floor=0.9)
    whole = group_near_duplicates(found, 0.99, cap=60)
    assert np.bincount(whole.numbers).max() == 40
    assert (whole.oversized, whole.cut_pairs) == (0, 0)
    cut = group_near_duplicates(found, 0.99, cap=15)
    assert np.bincount(cut.numbers).max() <= 15
    assert cut.oversized == 1
    assert cut.cut_pairs > 0
    assert len(np.unique(cut.numbers)) > len(np.unique(whole.numbers))


def test_coarser_groups_are_unions_of_finer_ones() -> None:
    ends = blobs(2, seed=3).astype(float)
    steps = np.linspace(0, 1, 200)[:, None, None]
    chain = ((1 - steps) * ends[0] + steps * ends[1]).round().astype(np.uint8)
    found = find_near_duplicates(chain, np.ones(200, bool), floor=0.9)
    for cap in (20, 60, 120):
        fine, coarse = (group_near_duplicates(found, threshold, cap=cap) for threshold in (0.99, 0.95))
        assert coarse.oversized
        assert len(np.unique(np.stack([fine.numbers, coarse.numbers]), axis=1).T) == len(np.unique(fine.numbers))


def test_groups_are_numbered_by_first_appearance(images) -> None:
    of = group_near_duplicates(find_near_duplicates(images, np.ones(150, bool)), 0.99).numbers
    first = [int(np.flatnonzero(of == g)[0]) for g in range(of.max() + 1)]
    assert first == sorted(first)
    assert of[0] == of[1]
    assert of[40] == of[41] == of[42]
