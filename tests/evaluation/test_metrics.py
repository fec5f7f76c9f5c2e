"""Metrics against small cases computed by hand and against scikit-learn."""

import dataclasses
import json
import math

import numpy as np
import pytest
from evaluation_cases import FOUR_CLASSES as CLASSES
from evaluation_cases import random_case, random_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from tumorlens.core.errors import DataError
from tumorlens.evaluation.metrics import evaluate_predictions, measure

# Three classes, six images; predicted: a a b | b | c a
LABELS = np.array([0, 0, 0, 1, 2, 2])
PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.5, 0.3, 0.2],
        [0.2, 0.7, 0.1],
        [0.1, 0.9, 0.0],
        [0.0, 0.0, 1.0],
        [0.6, 0.1, 0.3],
    ]
)


class TestMeasureByHand:
    found = measure(LABELS, PROBABILITIES, "abc")

    def test_counts(self):
        assert self.found["n"] == 6
        assert self.found["correct"] == 4
        assert self.found["accuracy"] == pytest.approx(4 / 6)
        assert self.found["confusion"] == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]

    def test_per_class(self):
        a = self.found["per_class"]["a"]
        assert (a["precision"], a["recall"], a["f1"], a["support"]) == (2 / 3, 2 / 3, pytest.approx(2 / 3), 3)
        # a's scores 0.8 0.5 0.2 against 0.1 0.0 0.6: of nine pairs 0.5<0.6 and 0.2<0.6 are wrong
        assert a["roc_auc"] == pytest.approx(7 / 9)
        # positives at ranks 1, 3, 4: (1/1 + 2/3 + 3/4) / 3
        assert a["average_precision"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
        assert self.found["per_class"]["b"]["precision"] == 0.5
        assert self.found["per_class"]["c"]["recall"] == 0.5

    def test_averages(self):
        assert self.found["macro"]["precision"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
        assert self.found["macro"]["recall"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
        assert self.found["weighted"]["recall"] == pytest.approx(4 / 6)
        assert self.found["weighted"]["precision"] == pytest.approx((3 * 2 / 3 + 1 * 1 / 2 + 2 * 1) / 6)

    def test_losses(self):
        chosen = [0.8, 0.5, 0.2, 0.9, 1.0, 0.3]
        assert self.found["log_loss"] == pytest.approx(-sum(map(math.log, chosen)) / 6)
        squares = [0.06, 0.25 + 0.09 + 0.04, 0.64 + 0.49 + 0.01, 0.02, 0.0, 0.36 + 0.01 + 0.49]
        assert self.found["brier"] == pytest.approx(sum(squares) / 6)

    def test_calibration(self):
        # Tops 0.8 0.5 0.7 0.9 1.0 0.6, right: 1 1 0 1 1 0. 15ths: 0.8 ends bin 12, 0.6 ends bin 9;
        # 0.9 and 1.0 are in bins 14 and 15. Each image is alone in its bin.
        tops, right = [0.8, 0.5, 0.7, 0.9, 1.0, 0.6], [1, 1, 0, 1, 1, 0]
        assert len(self.found["reliability"]) == 6
        error = pytest.approx(sum(abs(r - t) for t, r in zip(tops, right, strict=True)) / 6)
        assert (self.found["ece"], self.found["adaptive_ece"]) == (error, error)


class TestMeasure:
    @pytest.mark.parametrize(("n", "k"), [(500, 4), (40, 4), (300, 2), (300, 7)])
    def test_as_scikit_learn(self, n, k):
        labels, p = random_case(n, k)
        names = [f"class {i}" for i in range(k)]
        found = measure(labels, p, names)
        guess = p.argmax(1)
        report = oracle.classification_report(labels, guess, target_names=names, output_dict=True)
        for key, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found["macro"][key] == pytest.approx(report["macro avg"][theirs])
            assert found["weighted"][key] == pytest.approx(report["weighted avg"][theirs])
            for name in names:
                assert found["per_class"][name][key] == pytest.approx(report[name][theirs])
        assert found["log_loss"] == pytest.approx(oracle.log_loss(labels, p))
        assert found["brier"] == pytest.approx(oracle.brier_score_loss(labels, p, scale_by_half=False) if k > 2 else
                                               2 * oracle.brier_score_loss(labels, p[:, 1]))  # fmt: skip
        auc = oracle.roc_auc_score(labels, p if k > 2 else p[:, 1], multi_class="ovr")
        assert found["macro"]["roc_auc"] == pytest.approx(auc)
        assert found["text"] == oracle.classification_report(labels, guess, target_names=names, digits=4)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 80), st.integers(2, 5), st.integers(0, 10_000), st.randoms(use_true_random=False))
    def test_order_of_images_does_not_matter(self, n, k, seed, shuffler):
        labels, p = random_case(n, k, seed)
        names = [str(i) for i in range(k)]
        order = list(range(n))
        shuffler.shuffle(order)
        one, two = measure(labels, p, names), measure(labels[order], p[order], names)
        for key in ("confusion", "correct", "text", "accuracy_interval", "roc"):
            assert one[key] == two[key]
        for key in ("log_loss", "brier", "ece", "adaptive_ece"):
            assert one[key] == pytest.approx(two[key], abs=1e-12)
            assert 0 <= one[key] < 40
        assert one["brier"] <= 2
        json.dumps(one, allow_nan=False)

    def test_class_names_follow_the_columns(self):
        labels, p = random_case(200)
        found = measure(labels, p, CLASSES)
        turned = measure(3 - labels, p[:, ::-1], CLASSES[::-1])
        assert turned["per_class"] == {name: found["per_class"][name] for name in CLASSES[::-1]}

    def test_absent_class_is_left_out_of_means(self):
        labels, p = random_case(200)
        keep = labels != 2
        found = measure(labels[keep], p[keep], CLASSES)
        absent = found["per_class"]["notumor"]
        assert absent["support"] == 0
        assert absent["roc_auc"] is None
        assert absent["average_precision"] is None
        assert "notumor" not in found["roc"]
        assert sum(row[2] for row in found["confusion"]) > 0, "the case must predict the absent class"
        for key in found["macro"]:
            others = [found["per_class"][name][key] for name in CLASSES if name != "notumor"]
            assert found["macro"][key] == pytest.approx(sum(others) / 3)

    def test_a_class_that_is_never_predicted_scores_nothing(self):
        row = measure([0, 1], [[0.9, 0.1], [0.8, 0.2]], ("a", "b"))["per_class"]["b"]
        assert (row["precision"], row["recall"], row["f1"], row["roc_auc"]) == (0, 0, 0, 1)

    def test_one_image(self):
        found = measure([1], [[0.3, 0.7]], ("no", "yes"))
        assert found["accuracy"] == 1
        assert found["macro"]["roc_auc"] is None
        assert found["macro"]["recall"] == 1
        assert found["roc"] == {}

    def test_all_right_and_sure(self):
        p = np.eye(4)[[0, 1, 2, 3]]
        found = measure([0, 1, 2, 3], p, CLASSES)
        assert (found["accuracy"], found["log_loss"], found["brier"], found["ece"]) == (1, 0, 0, 0)
        assert math.copysign(1, found["log_loss"]) == 1
        assert found["macro"]["roc_auc"] == 1

    def test_sure_and_wrong_is_finite_and_worst(self):
        found = measure([0], [[0.0, 1.0]], ("a", "b"))
        assert found["brier"] == 2
        assert found["log_loss"] == pytest.approx(52 * math.log(2))

    def test_roc_is_thinned_without_moving(self):
        labels, p = random_case(7000, k=2, skill=0.5)
        found = measure(labels, p, ("a", "b"))
        curve = found["roc"]["b"]
        fpr, tpr, _ = oracle.roc_curve(labels == 1, p[:, 1])
        assert len(fpr) > 1000 > 200 >= len(curve["fpr"]) == len(curve["tpr"]) > 100
        assert (curve["fpr"][0], curve["tpr"][0], curve["fpr"][-1], curve["tpr"][-1]) == (0, 0, 1, 1)
        assert oracle.auc(curve["fpr"], curve["tpr"]) == pytest.approx(found["per_class"]["b"]["roc_auc"], abs=0.002)
        away = np.abs(fpr[:, None] - curve["fpr"]) + np.abs(tpr[:, None] - curve["tpr"])
        assert away.min(1).max() <= 0.0102

    @pytest.mark.parametrize(
        ("labels", "p", "words"),
        [
            ([], np.zeros((0, 2)), "no images"),
            ([0], [[0.5, 0.4]], "sum is not 1"),
            ([0], [[3.0, -2.0]], "negative"),
            ([0, 1], [[0.5, 0.5], [float("nan"), 0.5]], "image 1"),
            ([0], [[float("inf"), -float("inf")]], "not finite"),
            ([2], [[0.5, 0.5]], "from 0 to 1"),
            ([-1], [[0.5, 0.5]], "from 0 to 1"),
            ([0.5], [[0.5, 0.5]], "integers"),
            ([0], [[0.5, 0.25, 0.25]], "do not match 2 classes"),
            ([0, 1], [[0.5, 0.5]], "do not match 2 classes"),
        ],
    )
    def test_refuses(self, labels, p, words):
        with pytest.raises(DataError, match=words):
            measure(np.array(labels), np.array(p), ("a", "b"))

    def test_float32_probabilities_pass(self):
        labels, p = random_case(100)
        assert measure(labels, p.astype(np.float32), CLASSES)["n"] == 100


class TestEvaluatePredictions:
    def test_each_split_by_itself(self):
        all_of_them = random_predictions()
        found = evaluate_predictions(all_of_them, "initial")
        assert found["configuration"] == "initial"
        assert found["classes"] == list(CLASSES)
        assert list(found["parts"]) == ["train", "validation", "test"]
        assert {name: part["n"] for name, part in found["parts"].items()} == dict.fromkeys(found["parts"], 20)
        chosen = slice(2, None, 3)
        expected = measure(all_of_them.labels[chosen], all_of_them.probabilities[chosen], CLASSES)
        assert found["parts"]["test"] == expected

    def test_only_splits_that_have_images(self):
        assert list(evaluate_predictions(random_predictions().for_split("test"), "x")["parts"]) == ["test"]

    def test_no_predictions(self):
        with pytest.raises(DataError, match="no predictions"):
            evaluate_predictions(dataclasses.replace(random_predictions().for_split("test")).for_split("train"), "x")
