"""Facts of an image, their bounds, and distances, against cases whose answer is known."""

import numpy as np
import pytest

from tumorlens.inference.uncertainty.ood import (
    APPEARANCE_FEATURES,
    BOUNDED_FEATURES,
    Bounds,
    Distance,
    appearance_features,
    fit_bounds,
    fit_distance,
)


class TestDistance:
    def test_is_mahalanobis_where_every_direction_counts(self):
        # Covariance diag(9, 4, 1, 1), scaled by sd to 1: in four dimensions of which two are kept.
        rng = np.random.default_rng(0)
        mixing = rng.normal(size=(4, 4))
        x = rng.normal(size=(50_000, 4)) @ mixing
        x = x + 3
        z = (x - x.mean(0)) / x.std(0)
        spread, axes = np.linalg.eigh(np.cov(z.T))
        variances = np.r_[np.full(2, spread[:2].mean()), spread[2:]]
        expected = (((x[:20] - x.mean(0)) / x.std(0) @ axes) ** 2 / variances).sum(1)
        assert fit_distance(x, x, rank=2).squared(x[:20]) == pytest.approx(expected, rel=0.02)

    def test_nearest_class_counts(self):
        rng = np.random.default_rng(0)
        labels = np.arange(400) % 2
        x = rng.normal(size=(400, 8)) + 20 * labels[:, None]
        between = np.full((1, 8), 10.0)
        assert fit_distance(x, x, rank=3, labels=labels).scores(between) > 5
        assert fit_distance(x, x, rank=3).scores(between) < 1

    def test_scale_is_that_of_validation(self):
        x = np.random.default_rng(0).normal(size=(1000, 16))
        scores = fit_distance(x, x, rank=4).scores(x)
        assert (scores.mean(), scores.std()) == pytest.approx((0, 1), abs=1e-3)

    def test_a_channel_that_never_moves(self):
        x = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
        x[:, 2] = 0
        found = fit_distance(x, x, rank=3)
        assert np.isfinite(found.scores(x)).all()
        assert Distance.from_json(found.to_json(), 6, "x").scores(x) == pytest.approx(found.scores(x), abs=1e-5)


def test_facts_of_known_images():
    white, half = np.full((1, 224, 224, 3), 255, np.uint8), np.zeros((1, 224, 224, 3), np.uint8)
    half[:, :, 112:, 0] = 255  # the right half is red
    facts = dict(zip(APPEARANCE_FEATURES, appearance_features(white)[0], strict=True))
    assert (facts["mean"], facts["colour"], facts["bright share"], facts["entropy"]) == pytest.approx(
        (1, 0, 1, 0), abs=1e-3
    )
    facts = dict(zip(APPEARANCE_FEATURES, appearance_features(half)[0], strict=True))
    assert (facts["colour"], facts["mean"], facts["dark share"]) == pytest.approx((0.5, 1 / 6, 0.5), abs=1e-3)
    assert facts["centre x"] == pytest.approx(0.5, abs=0.01)
    assert facts["centre y"] == pytest.approx(0, abs=0.01)
    assert facts["entropy"] == pytest.approx(np.log(2), abs=1e-3)


def test_extent_of_a_known_head():
    image = np.zeros((2, 224, 224, 3), np.uint8)
    image[0, 56:168, 28:196] = 200  # half the height, three quarters of the width
    image[0, 10, 10] = 255  # a speck is no head
    facts = dict(zip(APPEARANCE_FEATURES, appearance_features(image).T, strict=True))
    assert facts["height"] == pytest.approx(np.log([0.55, 0.05]), abs=1e-3)
    assert facts["width"] == pytest.approx(np.log([0.8, 0.05]), abs=1e-3)
    assert facts["aspect"] == pytest.approx([np.log(0.55 / 0.8), 0], abs=1e-3)


class TestBounds:
    def test_count_from_the_median_in_percentiles_of_that_side(self):
        facts = np.zeros((1001, len(APPEARANCE_FEATURES)))
        facts[:, APPEARANCE_FEATURES.index("sd")] = (
            np.linspace(0, 1, 1001) ** 2
        )  # skewed: median 0.25, percentiles 0.0001, 0.9801
        bounds = fit_bounds(facts)
        probe = np.zeros((3, len(APPEARANCE_FEATURES)))
        probe[:, APPEARANCE_FEATURES.index("sd")] = (0.25, 0.9801, 0.0001 - 0.2499)
        assert bounds.excess(probe)[:, BOUNDED_FEATURES.index("sd")] == pytest.approx([0, 1, 2], abs=1e-4)

    def test_facts_that_never_change_divide_by_no_zero(self):
        bounds = fit_bounds(np.zeros((30, len(APPEARANCE_FEATURES))))
        assert bounds.excess(np.full((1, len(APPEARANCE_FEATURES)), 0.02)) == pytest.approx(np.full((1, 5), 2))
        read = Bounds.from_json(bounds.to_json(), "x")
        assert read.excess(np.ones((1, len(APPEARANCE_FEATURES)))) == pytest.approx(np.full((1, 5), 100))
