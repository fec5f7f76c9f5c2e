"""Figures on verdicts, and compared scores, on outputs whose results are known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from robustness.comparison import compare_scores
from robustness.evaluation import assess, evaluate_trust
from uncertainty_cases import training_outputs

from tumorlens.core.errors import DataError
from tumorlens.inference.uncertainty import OK


class TestEvaluate:
    def test_tells_every_figure(self, trust, parts, slices):
        _, validation, test = parts
        far = replace(test, statistics=test.statistics + 5)
        wrong = replace(test, labels=(test.labels + 1) % 4)
        twin_free = np.arange(400) < 100
        found = evaluate_trust(
            trust,
            validation,
            test,
            twin_free=twin_free,
            near={"none": test, "wrong": wrong},
            far={"far": far, "like": test},
        )
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["far"]["families"]["far"]["rate"] == 1.0
        assert found["far"]["families"]["like"]["rate"] == found["parts"]["official"]["refused"]["rate"]
        assert found["far"]["lowest"] == "like"
        assert found["far"]["rate"] == pytest.approx((1 + found["far"]["families"]["like"]["rate"]) / 2)
        assert (found["parts"]["official"]["n"], found["parts"]["twin_free"]["n"]) == (400, 100)
        assert found["parts"]["official"]["after"]["adaptive_ece"] < 0.05

    def test_silent_errors_are_wrong_and_ok_on_tumours(self, trust, parts):
        test = parts[2]
        verdicts = np.array(assess(trust, test).verdicts)
        wrong = replace(test, labels=(test.logits.argmax(1) + 1) % 4)
        found = evaluate_trust(trust, parts[1], test, twin_free=np.ones(400, bool), near={"w": wrong}, far={})["near"]
        tumour = wrong.labels != 2
        assert found["accuracy"] == 0
        assert found["silent_error_rate"] == pytest.approx((verdicts == OK)[tumour].mean())
        assert found["deferred"] == pytest.approx((verdicts != OK)[tumour].mean())
        assert found["n"] == tumour.sum()
        assert found["silent_notumor_rate"] == pytest.approx(
            ((verdicts == OK) & (test.logits.argmax(1) == 2))[tumour].mean()
        )

    def test_marks_that_do_not_fit(self, trust, parts):
        with pytest.raises(DataError, match="do not match"):
            evaluate_trust(trust, parts[1], parts[2], twin_free=np.ones(3, bool), near={}, far={})


def test_compared_scores_see_what_moves(trust, parts):
    train, validation, test = parts
    moved = {"like": test, "features": replace(test, features=test.features + 5)}
    moved |= {"statistics": replace(test, statistics=test.statistics + 5)}
    found = compare_scores(trust, training_outputs(train), validation, moved)
    assert max(score["like"] for score in found.values()) < 0.06
    assert found["mahalanobis"]["features"] == found["features"]["features"] == found["neighbours"]["features"] == 1
    assert found["statistics"]["statistics"] == found["refusal"]["statistics"] == found["doubt"]["statistics"] == 1
    assert found["energy"]["features"] == found["energy"]["like"]
