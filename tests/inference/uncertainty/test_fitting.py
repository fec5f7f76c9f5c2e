"""Fitting the uncertainty model, on outputs whose results are known."""

from dataclasses import replace

import numpy as np
import pytest
from robustness.evaluation import assess, chosen
from uncertainty_cases import fit, training_outputs

from tumorlens.core.errors import DataError
from tumorlens.inference.uncertainty import OK, REFUSED
from tumorlens.inference.uncertainty.fitting import (
    DOUBT_SHARE,
    OUT_OF_BOUNDS_SHARE,
    REFUSED_SHARE,
    WITHHELD_SHARE,
    fit_uncertainty,
)
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.inference.uncertainty.verdicts import (
    MIN_PROBABILITY,
    NO_TUMOR_PENALTY,
    log_odds_against,
)


class TestFit:
    def test_holds_back_no_more_validation_images_than_it_may(self, trust, parts):
        v = parts[1]
        found, facts = assess(trust, v), appearance_features(v.pixels)
        refused = found.scores > trust.refuse_above
        beyond = trust.bounds.excess(facts).max(1) > trust.beyond_above
        assert refused.mean() <= REFUSED_SHARE
        assert beyond.mean() <= OUT_OF_BOUNDS_SHARE
        left = ~refused & ~beyond & (found.probabilities.max(1) >= MIN_PROBABILITY)
        over = trust.doubt(trust.distances(v.features, v.statistics, facts)[:, 0], v.logits) > trust.doubt_above
        share = max(DOUBT_SHARE, 1 - (1 - WITHHELD_SHARE) / left.mean())
        assert share - 0.01 < over[left].mean() <= share
        held = np.array([verdict != OK for verdict in found.verdicts])
        assert held[~left | over].all()
        several = found.sets.sum(1) > 1
        assert not held[left & ~over & ~several].any()

    @pytest.mark.parametrize("sure", [True, False])
    def test_holds_back_the_whole_budget_of_a_sure_network_and_more_of_an_unsure_one(self, parts, sure):
        train, v, _ = parts
        noise = np.random.default_rng(3).normal(0, 4, v.logits.shape).astype(np.float32)
        changed = replace(v, logits=v.logits + (8 * np.eye(4, dtype=np.float32)[v.labels] if sure else noise))
        trust = fit(changed, train)
        left = np.array([p >= MIN_PROBABILITY for p in assess(trust, changed).probabilities.max(1)])
        distances = trust.distances(v.features, v.statistics, appearance_features(v.pixels))
        left &= distances.mean(1) <= trust.refuse_above
        left &= trust.bounds.excess(appearance_features(v.pixels)).max(1) <= trust.beyond_above
        held = ~left | (trust.doubt(distances[:, 0], changed.logits) > trust.doubt_above)
        if sure:
            assert WITHHELD_SHARE - 0.005 < held.mean() <= WITHHELD_SHARE
        else:
            assert held.mean() > WITHHELD_SHARE + 0.01

    def test_like_images_are_refused_about_as_often(self, trust, parts):
        assert assess(trust, parts[2]).verdicts.count(REFUSED) / 400 < 0.02

    def test_every_score_of_validation_images_has_mean_0_and_sd_1(self, trust, parts):
        v = parts[1]
        unsure = trust.odds.transform(log_odds_against(v.logits, trust.temperature))
        found = np.column_stack([trust.distances(v.features, v.statistics, appearance_features(v.pixels)), unsure])
        assert found.mean(0) == pytest.approx(np.zeros(4), abs=1e-3)
        assert found.std(0) == pytest.approx(np.ones(4), abs=1e-3)

    def test_notumor_is_doubted_more_and_without_a_healthy_class_all_alike(self, trust, parts):
        v = parts[1]
        names = ("a", "b", "c", "d")
        other = fit_uncertainty(names, v, training_outputs(parts[0]))
        strange, healthy = trust.statistics.scores(v.statistics), v.logits.argmax(1) == 2
        more = trust.doubt(strange, v.logits) - other.doubt(strange, v.logits)
        assert more == pytest.approx(NO_TUMOR_PENALTY * healthy)
        assert other.refuse_above == trust.refuse_above

    def test_few_images_are_an_error(self, parts):
        few = chosen(parts[1], np.arange(500) < 19)
        with pytest.raises(DataError, match="19 validation images are too few"):
            fit(few, parts[0])
        with pytest.raises(DataError, match="19 Training images are too few"):
            fit(parts[1], few)
