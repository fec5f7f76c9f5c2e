"""Tumours lie in the head, are as bright as they should be, and have a mask."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.phantom.generator import (
    LABELS,
    make_slice,
)


def test_masks_are_empty_for_notumor_alone_and_lie_in_the_head() -> None:
    for i in range(108):
        made = make_slice(2, LABELS[i // 3 % 4], i // 3, i % 3)
        assert made.mask.any() == (made.label != "notumor"), (i, made.view, made.depth)
        if made.mask.any():
            # The head is what is far brighter than the noise of the air, with its dark holes filled row by row.
            bright = made.pixels > 0.25 * np.quantile(made.pixels, 0.98)
            rows, columns = np.nonzero(made.mask)
            assert all(bright[r, :c].any() and bright[r, c:].any() for r, c in zip(rows, columns, strict=True)), i
            assert 20 < made.mask.sum() < 0.12 * made.mask.size, i


@pytest.mark.parametrize("label", ["meningioma", "pituitary"])
def test_a_solid_tumour_is_brighter_than_what_surrounds_it(label: str) -> None:
    for patient in range(12):
        made = make_slice(0, label, patient, 0)
        inner = made.pixels[made.mask].mean()
        assert inner > 1.3 * np.median(made.pixels[made.pixels > 40]), patient
