"""The pointing game, and whether maps depend on the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from classifier_fixture import arrays, fake_classifier, level, network
from pointing_game import Case, centre_blob, heat_inside, measure_pointing, phantom_cases, pointing_game
from scipy.stats import spearmanr

from tumorlens.core.errors import ConfigError
from tumorlens.export.onnx_graph import build_graph
from tumorlens.inference.network import open_session


class TestPointing:
    @pytest.fixture
    def mask(self) -> np.ndarray:
        found = np.zeros((224, 224), bool)
        found[32:64, 64:96] = True  # cell (1, 2)
        return found

    def test_a_map_on_the_lesion_hits(self, mask):
        heat = np.zeros((7, 7))
        heat[1, 2] = 1
        assert pointing_game(heat, mask, 0)
        heat[5, 5] = 2
        assert not pointing_game(heat, mask)

    def test_tolerance_is_a_distance_in_pixels(self, mask):
        heat = np.zeros((224, 224))
        heat[78, 70] = 1  # 15 below row 63
        assert pointing_game(heat, mask, 15)
        assert not pointing_game(heat, mask, 14)

    def test_share_of_heat_counts_the_positive_alone(self, mask):
        heat = np.full((224, 224), -1.0)
        heat[40, 70], heat[0, 0] = 3, 1
        assert heat_inside(heat, mask) == pytest.approx(0.75)
        assert heat_inside(np.ones((224, 224)), mask) == pytest.approx(mask.mean())
        assert heat_inside(-np.ones((7, 7)), mask) == 0

    def test_a_mask_without_a_lesion_is_refused(self):
        for wrong in (np.zeros((224, 224), bool), np.ones((7, 7), bool), np.ones((224, 224), np.uint8)):
            with pytest.raises(ConfigError, match="mask"):
                pointing_game(np.zeros((7, 7)), wrong)

    def test_the_baseline_looks_at_the_centre(self):
        blob = centre_blob()
        assert {int(v) for v in np.unravel_index(blob.argmax(), blob.shape)} <= {111, 112}

    def test_measuring_counts_what_it_says(self, mask):
        """The fake's map is hot in cell (2, 5), whatever it sees."""
        hit = np.zeros((224, 224), bool)
        hit[64:96, 160:192] = True
        cases = [Case(np.full((224, 224, 3), level("glioma"), np.uint8), m, "glioma") for m in (hit, hit, hit, mask)]
        found = measure_pointing(fake_classifier(), cases)
        assert (found["n"], found["correct"]) == (4, 4)
        assert found["heatmap"]["rate"] == 0.75
        assert found["centre_blob"]["rate"] == 0
        assert found["heatmap"]["inside"] > found["centre_blob"]["inside"]

    def test_phantom_cases_show_the_lesion_where_the_mask_says(self):
        cases = list(phantom_cases(6))
        assert {case.label for case in cases} == {"glioma", "meningioma", "pituitary"}
        assert all(case.mask.any() and case.mask.mean() < 0.3 for case in cases)
        again = next(phantom_cases(1))
        np.testing.assert_array_equal(again.pixels, cases[0].pixels)


def test_random_weights_change_the_map():
    """The sanity check of Adebayo et al., NeurIPS 2018: a map must depend on what the network has learned.

    From the last stage downwards weights are heat_and_caption anew; the rank correlation with the map before must fall.
    """
    torch.manual_seed(0)
    pixels = np.stack([case.pixels for case in phantom_cases(4)])

    def maps(model) -> np.ndarray:
        session = open_session(build_graph(arrays(model), 4, plain=True).SerializeToString(), 1)
        return session.run(["heatmap"], {"pixels": pixels})[0]

    model, other = network(0), network(1)
    before = maps(model)
    assert spearmanr(before.ravel(), maps(network(0)).ravel()).statistic == pytest.approx(1)
    correlations = []
    for stages in (("fc",), ("fc", "layer4"), ("fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1")):
        for stage in stages:
            getattr(model, stage).load_state_dict(getattr(other, stage).state_dict())
        after = maps(model)
        each = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(before, after, strict=True)]
        correlations.append(float(np.mean(np.abs(each))))
    assert max(correlations) < 0.7, correlations
