"""Minimal filtering: the definition of a convolution, by fewer multiplications."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.training.kernels.minimal_filtering import matrices, of_a_shorter_tile, of_an_axis


@pytest.mark.parametrize("outputs", [2, 4, 5])
def test_a_tile_is_the_convolution(outputs: int) -> None:
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=(outputs + 2, outputs + 2)), rng.normal(size=(3, 3))
    b, kernel, a = matrices(outputs)
    assert b.shape == ((outputs + 2) ** 2,) * 2
    found = a @ ((kernel @ g.ravel()) * (b @ d.ravel()))
    wanted = [(d[y : y + 3, x : x + 3] * g).sum() for y in range(outputs) for x in range(outputs)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("outputs", [2, 4, 5])
def test_shorter_tiles_share_the_filters(outputs: int) -> None:
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=outputs + 2), rng.normal(size=3)
    b, kernel, a = of_an_axis(outputs)
    shorter_b, shorter_a = of_a_shorter_tile(outputs)
    wanted = np.correlate(d, g)
    np.testing.assert_allclose(a @ ((kernel @ g) * (b @ d)), wanted, rtol=1e-12)
    found = shorter_a @ ((kernel @ g) * (shorter_b @ d))
    np.testing.assert_allclose(found[:-1], wanted[:-1], rtol=1e-12)
    for zero in (found[-1], shorter_b[-1], shorter_b[:, -1], shorter_a[-1], shorter_a[:, -1]):
        assert not np.any(zero)  # of the point, the input and the output that a shorter tile lacks
