"""Shapes cut by a plane agree with their geometry, in a window or as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.data.phantom.planes import VIEWS, Plane, make_plane


def plane(view: str, depth: float = 0.0) -> Plane:
    return make_plane((1.0, 1.0, 1.0), np.zeros((3, 24, 24, 24), np.float32), view, depth)


@pytest.mark.parametrize("view", VIEWS)
def test_a_ball_and_a_capsule_are_as_far_away_as_they_should_be(view: str) -> None:
    cut = plane(view)
    away = np.sqrt(cut.x**2 + cut.y**2 + cut.z**2)
    assert np.allclose(cut.capsule((0, 0, 0), (0, 0, 0.001), 10, 10, whole=True), 10 - away, atol=0.01)
    ball = cut.ellipsoid((0, 0, 0), (10.3, 10.3, 10.3), whole=True)  # no point of the grid lies on it
    assert np.array_equal(ball >= 0, away < 10.3)  # the estimate is 0 at the centre too


@pytest.mark.parametrize("view", VIEWS)
def test_a_window_holds_all_that_is_near(view: str) -> None:
    cut = plane(view, 5)
    for mirrored in (False, True):
        whole = cut.ellipsoid((20, 10, 5), (6, 8, 10), mirrored=mirrored, whole=True)
        part = cut.ellipsoid((20, 10, 5), (6, 8, 10), mirrored=mirrored)
        assert np.array_equal(part[part > -99], whole[part > -99])
        assert (whole[part == -99] < 0).all()
        if view != "sagittal":  # which lies in the midline, at the edge of the shape
            assert (whole > 0).any()


def test_a_shape_far_from_the_plane_is_nowhere() -> None:
    assert (plane("axial", 60).ellipsoid((0, 0, -20), (5, 5, 5)) == -99).all()
