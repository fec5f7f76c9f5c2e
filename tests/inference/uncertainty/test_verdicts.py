"""Fitting, judging and measuring on answers made so that what must come out is known."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from robustness.comparison import compare_scores
from robustness.evaluation import chosen, evaluate_trust, judged
from robustness.families import changed, families

from tumorlens.core.errors import ConfigError, DataError, WeightsError
from tumorlens.data.phantom.generator import make_slice
from tumorlens.inference.uncertainty import (
    OK,
    REFUSED,
    UNCERTAIN,
    LabelledOutputs,
    TrainingOutputs,
    UncertaintyModel,
    fit_uncertainty,
)
from tumorlens.inference.uncertainty.arrays import pack_array
from tumorlens.inference.uncertainty.fitting import DOUBT_SHARE, OUT_OF_BOUNDS_SHARE, REFUSED_SHARE, WITHHELD_SHARE
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.inference.uncertainty.verdicts import (
    MIN_PROBABILITY,
    NO_TUMOR_PENALTY,
    directions,
    log_odds_against,
)
from tumorlens.readers.pixels import resized

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    """Forty phantom slices, uint8 [40, 224, 224, 3]."""
    made = [make_slice(0, CLASSES[i % 4], i, 0).pixels for i in range(40)]
    return np.stack([resized(Image.fromarray(pixels).convert("RGB")) for pixels in made])


def answers(slices: np.ndarray, n: int, seed: int, shift: float = 0.0) -> LabelledOutputs:
    """Logits that are right about 95 % of the time; features and statistics Gaussian around their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(0, 1, (n, 4)) + 3.5 * np.eye(4)[labels]
    centres = np.random.default_rng(99).normal(0, 2, (4, 512))
    features = centres[labels] + rng.normal(0, 1, (n, 512)) + shift
    statistics = rng.normal(0, 1, (n, 1024)) + shift
    pixels = slices[rng.integers(0, len(slices), n)]
    return LabelledOutputs(
        labels, logits.astype(np.float32), features.astype(np.float32), statistics.astype(np.float32), pixels
    )


def training_outputs(train: LabelledOutputs) -> TrainingOutputs:
    return TrainingOutputs(train.labels, train.features, train.statistics, appearance_features(train.pixels))


def fit(validation: LabelledOutputs, train: LabelledOutputs) -> UncertaintyModel:
    return fit_uncertainty(CLASSES, validation, training_outputs(train))


@pytest.fixture(scope="module")
def parts(slices) -> tuple[LabelledOutputs, LabelledOutputs, LabelledOutputs]:
    """Train, validation, test."""
    return answers(slices, 400, 0), answers(slices, 500, 1), answers(slices, 400, 2)


@pytest.fixture(scope="module")
def trust(parts) -> UncertaintyModel:
    train, validation, _ = parts
    return fit(validation, train)


class TestFit:
    def test_holds_back_no_more_validation_images_than_it_may(self, trust, parts):
        v = parts[1]
        found, facts = judged(trust, v), appearance_features(v.pixels)
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
        left = np.array([p >= MIN_PROBABILITY for p in judged(trust, changed).probabilities.max(1)])
        distances = trust.distances(v.features, v.statistics, appearance_features(v.pixels))
        left &= distances.mean(1) <= trust.refuse_above
        left &= trust.bounds.excess(appearance_features(v.pixels)).max(1) <= trust.beyond_above
        held = ~left | (trust.doubt(distances[:, 0], changed.logits) > trust.doubt_above)
        if sure:
            assert WITHHELD_SHARE - 0.005 < held.mean() <= WITHHELD_SHARE
        else:
            assert held.mean() > WITHHELD_SHARE + 0.01

    def test_like_images_are_refused_about_as_often(self, trust, parts):
        assert judged(trust, parts[2]).verdicts.count(REFUSED) / 400 < 0.02

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


class TestJudge:
    def test_like_images_are_ok_and_calibrated(self, trust, parts):
        found = judged(trust, parts[2])
        assert found.probabilities.sum(1) == pytest.approx(np.ones(400))
        assert found.verdicts.count(OK) > 280
        assert found.sets.any(1).all()
        assert all(
            (verdict == OK) == (reason == "") for verdict, reason in zip(found.verdicts, found.reasons, strict=True)
        )

    @pytest.mark.parametrize("part", ["features", "statistics"])
    def test_far_answers_are_refused_whatever_the_logits_say(self, trust, parts, part):
        far = replace(parts[2], **{part: getattr(parts[2], part) + 5})
        assert set(judged(trust, far).verdicts) == {REFUSED}

    # ct_like has a head's outline and grey levels: the network's statistics must tell it
    @pytest.mark.parametrize(
        "family", [f for f in families("far", "judge") if f.name != "ct_like"], ids=lambda family: family.name
    )
    def test_the_look_alone_refuses_foreign_images(self, trust, parts, slices, family):
        few = chosen(parts[2], np.arange(400) < 40)
        verdicts = judged(trust, replace(few, pixels=changed(family, slices))).verdicts
        assert verdicts.count(REFUSED) >= 36

    def test_the_score_grows_with_the_distance(self, trust, parts):
        means = [
            judged(trust, replace(parts[2], statistics=parts[2].statistics * k)).scores.mean() for k in (1, 1.2, 2)
        ]
        assert means == sorted(means)
        assert means[2] > trust.refuse_above

    def test_undecided_logits_are_uncertain_and_say_between_what(self, trust, parts):
        one = chosen(parts[2], np.arange(400) == judged(trust, parts[2]).verdicts.index(OK))
        logits = np.array([[5.0, 5.0, -9.0, -9.0]], np.float32)
        found = trust.assess(logits, one.features, one.statistics, one.pixels, coverage=0.99)
        assert (found.verdicts, found.reasons) == ([UNCERTAIN], ["may be glioma or meningioma"])
        assert found.sets.tolist() == [[True, True, False, False]]
        # sets that cover 80 % need no class for it: filled with one, and still not ok
        found = trust.assess(logits, one.features, one.statistics, one.pixels, coverage=0.8)
        assert (found.verdicts, found.reasons) == ([UNCERTAIN], ["unsure, probability 0.50"])
        assert found.sets.tolist() == [[True, False, False, False]]

    def test_somewhat_strange_and_somewhat_unsure_together_are_uncertain(self, trust, parts):
        ok = chosen(parts[2], np.array([v == OK for v in judged(trust, parts[2]).verdicts]))
        strange = replace(ok, statistics=ok.statistics * 1.03)
        unsure = replace(ok, logits=ok.logits * 0.85)
        both = replace(strange, logits=unsure.logits)
        held = [len(ok.labels) - judged(trust, a).verdicts.count(OK) for a in (strange, unsure, both)]
        assert held[2] > held[0] + held[1]

    def test_doubt_by_hand(self, trust):
        logits = np.log([[6.0, 2.0, 1.0, 1.0], [1.0, 1.0, 8.0, 2.0]]) * trust.temperature
        unsure = trust.odds.transform(np.log([4 / 6, 4 / 8]))
        wanted = [(1.5 + 4 * unsure[0]) / 5, (-0.5 + 4 * unsure[1]) / 5 + NO_TUMOR_PENALTY]
        assert trust.doubt(np.array([1.5, -0.5]), logits) == pytest.approx(wanted)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("dark", "darker|contrast"),
            ("small", "in its field"),
            ("flat", "head of another shape|flatter in its field"),
        ],
    )
    def test_a_plain_fact_far_from_those_learned_is_uncertain_however_sure_the_answer(
        self, trust, parts, slices, name, reason
    ):
        # Thresholds of everything else are out of reach: the plain facts alone decide.
        lenient = replace(trust, refuse_above=1e6, doubt_above=1e6)
        made = np.zeros_like(slices)
        if name == "dark":
            made[:] = slices // 4
        elif name == "small":
            made[:, 56:168, 56:168] = slices[:, ::2, ::2]
        else:
            made[:, 56:168] = slices[:, ::2]
        sure = 100 * np.eye(4, dtype=np.float32)[np.zeros(40, int)]
        like = chosen(parts[2], np.arange(400) < 40)
        found = judged(lenient, replace(like, logits=sure, pixels=made))
        assert found.verdicts.count(UNCERTAIN) >= 36
        assert sum(bool(re.search(reason, one)) for one in found.reasons) >= 20
        assert judged(lenient, replace(like, logits=sure, pixels=slices)).verdicts.count(UNCERTAIN) <= 1

    def test_more_coverage_gives_larger_sets(self, trust, parts):
        t = parts[2]
        sizes = [
            trust.assess(t.logits, t.features, t.statistics, t.pixels, coverage=c).sets.sum()
            for c in (0.8, 0.95, 0.999)
        ]
        assert sizes == sorted(sizes)
        assert sizes[2] == 4 * 400  # 500 validation images cannot promise 99.9 %

    def test_sets_cover(self, trust, parts):
        for coverage in (0.9, 0.95, 0.99):
            t = parts[2]
            sets = trust.assess(t.logits, t.features, t.statistics, t.pixels, coverage=coverage).sets
            assert sets[np.arange(400), t.labels].mean() > coverage - 0.03

    def test_no_images(self, trust, parts):
        found = judged(trust, chosen(parts[2], np.zeros(400, bool)))
        assert (found.verdicts, found.probabilities.shape, found.scores.shape) == ([], (0, 4), (0,))

    def test_one_image_is_judged_as_among_others(self, trust, parts):
        alone = judged(trust, chosen(parts[2], np.arange(400) == 7))
        among = judged(trust, parts[2])
        assert alone.verdicts[0] == among.verdicts[7]
        assert alone.scores[0] == pytest.approx(among.scores[7], abs=1e-4)

    @pytest.mark.parametrize(
        ("field", "values"),
        [
            ("logits", np.zeros((400, 3), np.float32)),
            ("features", np.zeros((400, 511), np.float32)),
            ("statistics", np.full((400, 1024), np.nan, np.float32)),
            ("pixels", np.zeros((400, 224, 224, 3), np.float32)),
            ("pixels", np.zeros((400, 32, 32, 3), np.uint8)),
        ],
    )
    def test_bad_input(self, trust, parts, field, values):
        with pytest.raises(DataError, match=field):
            judged(trust, replace(parts[2], **{field: values}))

    def test_bad_coverage(self, trust, parts):
        t = parts[2]
        with pytest.raises(ConfigError):
            trust.assess(t.logits, t.features, t.statistics, t.pixels, coverage=1.0)


class TestRecord:
    def test_read_back_it_judges_the_same(self, trust, parts):
        text = json.dumps(trust.to_json(), allow_nan=False)
        assert len(text) < 3_000_000
        before, after = judged(trust, parts[2]), judged(UncertaintyModel.from_json(json.loads(text)), parts[2])
        assert after.verdicts == before.verdicts
        assert (after.sets == before.sets).all()
        assert after.scores == pytest.approx(before.scores, abs=1e-4)

    def test_each_missing_or_damaged_field_is_an_error(self, trust):
        record = trust.to_json()
        for key in record:
            for value in (None, "x", -1e9, [], {}, {**record["nonconformity"], "base64": "AAAA"}):
                with pytest.raises(WeightsError) as caught:
                    UncertaintyModel.from_json({**record, key: value})
                assert caught.value.cure
            with pytest.raises(WeightsError):
                UncertaintyModel.from_json({k: v for k, v in record.items() if k != key})
        for key in record["bounds"]:
            # not in order, or not as many as there are facts
            for value in (None, "x", pack_array(np.full(5, 1e3 if key != "high" else -1e3)), pack_array(np.zeros(4))):
                with pytest.raises(WeightsError, match="bounds"):
                    UncertaintyModel.from_json({**record, "bounds": {**record["bounds"], key: value}})
        for key in record["statistics"]:
            for value in (None, "x", -1e9, {}, {**record["nonconformity"], "shape": [3, 3]}):
                with pytest.raises(WeightsError):
                    UncertaintyModel.from_json({**record, "statistics": {**record["statistics"], key: value}})
        with pytest.raises(WeightsError):
            UncertaintyModel.from_json([])
        with pytest.raises(WeightsError, match="version 2, not 3") as old:
            UncertaintyModel.from_json({**record, "version": 2})
        assert "Export" in old.value.cure
        with pytest.raises(WeightsError, match="temperature"):
            UncertaintyModel.from_json({**record, "temperature": float("nan")})


def test_judging_needs_neither_torch_nor_scipy():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'scipy', 'sklearn', 'pandas']));"
        "from tumorlens.inference.uncertainty import UncertaintyModel, Classification"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


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
        verdicts = np.array(judged(trust, test).verdicts)
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


def test_odds_by_hand():
    odds = log_odds_against(np.log([[6.0, 2.0, 1.0], [1.0, 1.0, 8.0]]), 1.0)
    assert odds == pytest.approx(np.log([3 / 6, 2 / 8]))
    assert log_odds_against(np.array([[2000.0, 0.0]]), 2.0) == pytest.approx([-1000])  # no overflow


def test_directions_have_length_1_and_zeros_stay():
    assert directions(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
