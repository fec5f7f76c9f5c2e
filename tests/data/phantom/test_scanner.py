"""Slices of a patient are neighbours, and the scanner is independent of the class."""

from __future__ import annotations

import numpy as np
from thumbnails import unit_thumbnails

from tumorlens.data.phantom.generator import (
    LABELS,
    make_slice,
)


def test_slices_of_a_patient_are_neighbours() -> None:
    made = [make_slice(0, "meningioma", 9, n) for n in range(6)]
    assert len({one.view for one in made}) == len({one.pixels.shape for one in made}) == 1
    depths = sorted(one.depth for one in made)
    assert depths[-1] - depths[0] <= 9
    assert min(np.diff(depths)) > 0.3
    flat = unit_thumbnails([one.pixels for one in made])
    stranger = unit_thumbnails([make_slice(0, "meningioma", 10, 0).pixels])
    assert (flat @ flat.T).min() > 0.9 > (flat @ stranger.T).max()


def test_the_scanner_does_not_look_at_the_class() -> None:
    for patient in range(10):
        made = [make_slice(0, label, patient, 0) for label in LABELS]
        assert len({(one.view, one.pixels.shape) for one in made}) == 1
        assert len({tuple(np.flatnonzero(one.pixels.max(1) == 0)) for one in made}) == 1  # rows of the border
