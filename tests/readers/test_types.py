"""Grey values → uint8, and slices padded to a square."""

from __future__ import annotations

import numpy as np

from tumorlens.readers.scaling import contrast_range, to_uint8
from tumorlens.readers.types import fit_square


def test_squaring_keeps_the_aspect_and_contrast_the_percentiles() -> None:
    white = np.full((100, 50), 255, np.uint8)
    made = fit_square(white, (1.0, 1.0))
    assert made.shape == (224, 224, 3)
    assert made[:, 56:168].min() == 255
    assert made[:, :56].max() == made[:, 168:].max() == 0
    assert fit_square(white, (1.0, 2.0)).min() == 255
    assert fit_square(white, None).min() == 255
    assert fit_square(white, (1e-9, 1.0)).shape == (224, 224, 3)
    values = np.arange(1001.0)
    assert contrast_range(values) == (5.0, 995.0)
    assert list(to_uint8(values, 5, 995)[[0, 5, 500, 995, 1000]]) == [0, 0, 128, 255, 255]
    assert contrast_range(np.zeros((9, 9))) == (0.0, 0.0)
    assert contrast_range(np.r_[np.zeros(1000), 1.0]) == (0.0, 1.0)  # a mask
    assert contrast_range(np.array([np.nan, np.inf])) == (0.0, 0.0)
    assert list(to_uint8(np.array([np.nan, -np.inf, np.inf]), 0, 1)) == [0, 0, 255]
