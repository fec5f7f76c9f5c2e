"""Verdicts, and the model as JSON, on outputs whose results are known."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from robustness.evaluation import assess, chosen
from robustness.families import changed, families

from tumorlens.core.errors import ConfigError, DataError, WeightsError
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN, UncertaintyModel
from tumorlens.inference.uncertainty.arrays import pack_array
from tumorlens.inference.uncertainty.verdicts import (
    NO_TUMOR_PENALTY,
    directions,
    log_odds_against,
)


class TestJudge:
    def test_like_images_are_ok_and_calibrated(self, trust, parts):
        found = assess(trust, parts[2])
        assert found.probabilities.sum(1) == pytest.approx(np.ones(400))
        assert found.verdicts.count(OK) > 280
        assert found.sets.any(1).all()
        assert all(
            (verdict == OK) == (reason == "") for verdict, reason in zip(found.verdicts, found.reasons, strict=True)
        )

    @pytest.mark.parametrize("part", ["features", "statistics"])
    def test_far_answers_are_refused_whatever_the_logits_say(self, trust, parts, part):
        far = replace(parts[2], **{part: getattr(parts[2], part) + 5})
        assert set(assess(trust, far).verdicts) == {REFUSED}

    # ct_like has a head's outline and grey levels: the network's statistics must tell it
    @pytest.mark.parametrize(
        "family", [f for f in families("far", "judge") if f.name != "ct_like"], ids=lambda family: family.name
    )
    def test_the_look_alone_refuses_foreign_images(self, trust, parts, slices, family):
        few = chosen(parts[2], np.arange(400) < 40)
        verdicts = assess(trust, replace(few, pixels=changed(family, slices))).verdicts
        assert verdicts.count(REFUSED) >= 36

    def test_the_score_grows_with_the_distance(self, trust, parts):
        means = [
            assess(trust, replace(parts[2], statistics=parts[2].statistics * k)).scores.mean() for k in (1, 1.2, 2)
        ]
        assert means == sorted(means)
        assert means[2] > trust.refuse_above

    def test_undecided_logits_are_uncertain_and_say_between_what(self, trust, parts):
        one = chosen(parts[2], np.arange(400) == assess(trust, parts[2]).verdicts.index(OK))
        logits = np.array([[5.0, 5.0, -9.0, -9.0]], np.float32)
        found = trust.assess(logits, one.features, one.statistics, one.pixels, coverage=0.99)
        assert (found.verdicts, found.reasons) == ([UNCERTAIN], ["may be glioma or meningioma"])
        assert found.sets.tolist() == [[True, True, False, False]]
        # sets that cover 80 % need no class for it: filled with one, and still not ok
        found = trust.assess(logits, one.features, one.statistics, one.pixels, coverage=0.8)
        assert (found.verdicts, found.reasons) == ([UNCERTAIN], ["unsure, probability 0.50"])
        assert found.sets.tolist() == [[True, False, False, False]]

    def test_somewhat_strange_and_somewhat_unsure_together_are_uncertain(self, trust, parts):
        ok = chosen(parts[2], np.array([v == OK for v in assess(trust, parts[2]).verdicts]))
        strange = replace(ok, statistics=ok.statistics * 1.03)
        unsure = replace(ok, logits=ok.logits * 0.85)
        both = replace(strange, logits=unsure.logits)
        held = [len(ok.labels) - assess(trust, a).verdicts.count(OK) for a in (strange, unsure, both)]
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
        found = assess(lenient, replace(like, logits=sure, pixels=made))
        assert found.verdicts.count(UNCERTAIN) >= 36
        assert sum(bool(re.search(reason, one)) for one in found.reasons) >= 20
        assert assess(lenient, replace(like, logits=sure, pixels=slices)).verdicts.count(UNCERTAIN) <= 1

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
        found = assess(trust, chosen(parts[2], np.zeros(400, bool)))
        assert (found.verdicts, found.probabilities.shape, found.scores.shape) == ([], (0, 4), (0,))

    def test_one_image_gets_the_verdict_that_it_gets_among_others(self, trust, parts):
        alone = assess(trust, chosen(parts[2], np.arange(400) == 7))
        among = assess(trust, parts[2])
        assert alone.verdicts[0] == among.verdicts[7]
        assert alone.scores[0] == pytest.approx(among.scores[7], abs=1e-4)

    @pytest.mark.parametrize(
        ("field", "values"),
        [
            ("logits", np.full((400, 4), np.inf, np.float32)),
            ("features", np.full((400, 512), -np.inf, np.float32)),
            ("statistics", np.full((400, 1024), np.nan, np.float32)),
        ],
    )
    def test_bad_input(self, trust, parts, field, values):
        with pytest.raises(DataError, match=field):
            assess(trust, replace(parts[2], **{field: values}))

    def test_bad_coverage(self, trust, parts):
        t = parts[2]
        with pytest.raises(ConfigError):
            trust.assess(t.logits, t.features, t.statistics, t.pixels, coverage=1.0)


class TestRecord:
    def test_read_back_it_judges_the_same(self, trust, parts):
        text = json.dumps(trust.to_json(), allow_nan=False)
        assert len(text) < 3_000_000
        before, after = assess(trust, parts[2]), assess(UncertaintyModel.from_json(json.loads(text)), parts[2])
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


def test_odds_by_hand():
    odds = log_odds_against(np.log([[6.0, 2.0, 1.0], [1.0, 1.0, 8.0]]), 1.0)
    assert odds == pytest.approx(np.log([3 / 6, 2 / 8]))
    assert log_odds_against(np.array([[2000.0, 0.0]]), 2.0) == pytest.approx([-1000])  # no overflow


def test_directions_have_length_1_and_zeros_stay():
    assert directions(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))
