"""Bootstrap intervals against every resample written out, closed forms, and simulations with groups."""

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from evaluation_cases import correctness
from scipy import stats
from sklearn.metrics import f1_score

from tumorlens.core.errors import DataError
from tumorlens.evaluation import bootstrap as resampling
from tumorlens.evaluation.bootstrap import (
    bootstrap_accuracy,
    bootstrap_difference,
    bootstrap_macro_f1,
    bootstrap_macro_f1_difference,
)
from tumorlens.evaluation.metrics import measure
from tumorlens.evaluation.statistics import wilson


def every_resample(groups: np.ndarray) -> list[np.ndarray]:
    """Rows of each of the G^G equally likely draws of G groups."""
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return [np.concatenate(drawn) for drawn in product(rows, repeat=len(rows))]


def macro_f1(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """scikit-learn's, over the classes that have images."""
    present = np.unique(labels).tolist()
    return f1_score(labels, predicted, labels=present, average="macro", sample_weight=weights, zero_division=0)


def influences(score, groups: np.ndarray) -> np.ndarray:
    """By how much the score of weighted images changes with each group's weight, numerically."""
    found = []
    for group in np.unique(groups):
        step = np.where(groups == group, 1e-6, 0)
        found.append((score(1 + step) - score(1 - step)) / 2e-6)
    return np.array(found)


def expanded_percentile(scores: list[float], u: np.ndarray, confidence: float) -> list[float]:
    """The interval of the module's head, of all resamples, from each group's influence u."""
    n, variance = len(u), np.sum(u**2)
    freedom = min(2 * variance**2 / (np.sum(u**4) - variance**2 / n), n - 1)
    tail = NormalDist().cdf(stats.t.ppf((1 - confidence) / 2, freedom) * math.sqrt(n / (n - 1)))
    return np.quantile(scores, [tail, 1 - tail]).tolist()


def small_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Groups (5 of unequal size), labels of three classes, and two predictions, of 24 images."""
    random = np.random.default_rng(seed)
    groups = np.repeat([7, 3, 5, 1, 4], [3, 8, 2, 6, 5])
    labels = random.integers(0, 3, size=24)
    first, second = (np.where(random.random(24) < p, labels, random.integers(0, 3, size=24)) for p in (0.5, 0.8))
    return groups, labels, first, second


class TestDifference:
    def test_repeatable_and_changes_sign_with_the_order(self):
        first, second = correctness(200, 10, 30, 60)
        low, high = bootstrap_difference(first, second)
        assert bootstrap_difference(first, second) == (low, high)
        assert low < 20 / 300 < high
        back = bootstrap_difference(second, first)
        assert back == pytest.approx((-high, -low), abs=0.01)

    @pytest.mark.parametrize("groups", [None, np.repeat(range(20), 10)])
    def test_equal_predictions_still_have_an_interval(self, groups):
        low, high = bootstrap_difference(*correctness(180, 0, 0, 20), groups)
        assert low == pytest.approx(-high)
        assert high > (0.05 if groups is not None else 0.005)

    @pytest.mark.parametrize(("n", "worse", "better"), [(50, 0.02, 0.04), (132, 0.01, 0.02)])
    def test_covers_the_truth_where_few_images_tell_them_apart(self, n, worse, better):
        random = np.random.default_rng(3)
        covered = 0
        for _ in range(400):
            draw, right = random.random(n), random.random(n) < 0.9
            first = np.where(draw < worse, True, np.where(draw < worse + better, False, right))
            second = np.where(draw < worse, False, np.where(draw < worse + better, True, right))
            low, high = bootstrap_difference(first, second, repeats=200)
            covered += low <= better - worse <= high
        assert covered / 400 > 0.93  # resampling alone: 0.64 and 0.74

    def test_as_the_normal_approximation(self):
        low, high = bootstrap_difference(*correctness(800, 40, 100, 60), repeats=20_000)
        se = math.sqrt((140 / 1000 - 0.06**2) / 1000)
        assert (low, high) == (pytest.approx(0.06 - 1.96 * se, abs=0.002), pytest.approx(0.06 + 1.96 * se, abs=0.002))

    def test_groups_of_one_are_images(self):
        first, second = correctness(800, 40, 100, 60)
        alone = bootstrap_difference(first, second, repeats=8000)
        grouped = bootstrap_difference(first, second, groups=np.arange(1000), repeats=8000)
        assert grouped == pytest.approx(alone, abs=0.004)

    def test_copies_widen_only_the_grouped_interval(self):
        first, second = (np.repeat(a, 9) for a in correctness(80, 4, 10, 6))
        groups = np.repeat([f"patient {i}" for i in range(100)], 9)
        alone = np.diff(bootstrap_difference(first, second))[0]
        grouped = np.diff(bootstrap_difference(first, second, groups))[0]
        single = np.diff(bootstrap_difference(*correctness(80, 4, 10, 6)))[0]
        assert grouped == pytest.approx(3 * alone, rel=0.15)
        assert grouped == pytest.approx(single, rel=0.15)

    def test_covers_the_truth_at_its_nominal_rate(self):
        random = np.random.default_rng(2)
        truth = 0.10 - 0.04
        covered = 0
        for i in range(400):
            kinds = random.choice(4, p=[0.80, 0.04, 0.10, 0.06], size=400)
            low, high = bootstrap_difference(np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)), repeats=500, seed=i)
            covered += low <= truth <= high
        assert 0.92 <= covered / 400 <= 0.98

    def test_covers_with_groups_of_unequal_size(self):
        random = np.random.default_rng(3)
        truth, covered = 0.06, 0
        for i in range(300):
            sizes = random.integers(1, 12, size=80)
            # Slices of one patient share their fate: the hardest case for an interval by image.
            kinds = np.repeat(random.choice(4, p=[0.80, 0.04, 0.10, 0.06], size=80), sizes)
            groups = np.repeat(np.arange(80), sizes)
            low, high = bootstrap_difference(
                np.isin(kinds, (0, 1)), np.isin(kinds, (0, 2)), groups, repeats=400, seed=i
            )
            covered += low <= truth <= high
        assert 0.89 <= covered / 300 <= 0.98

    def test_unequal_groups_by_hand(self):
        # Group a (one image, corrected) and b (three, unchanged): drawn aa 1, ab 1/4, bb 0.
        first, second = [False, True, True, True], [True, True, True, True]
        assert bootstrap_difference(first, second, ["a", "b", "b", "b"]) == (0, 1)

    @pytest.mark.parametrize("seed", range(3))
    def test_groups_as_every_resample(self, seed):
        groups, labels, first, second = small_case(seed)
        gain = (second == labels).astype(float) - (first == labels)
        scores = [gain[rows].mean() for rows in every_resample(groups)]
        u = influences(lambda w: np.average(gain, weights=w), groups)
        expected = expanded_percentile(scores, u, 0.6)
        found = bootstrap_difference(first == labels, second == labels, groups, repeats=100_000, confidence=0.6)
        assert found == pytest.approx(expected, abs=0.006)

    def test_few_disagreeing_groups_widen_it(self):
        # 6 of 60 groups disagree: the error is worth 4.3 degrees of freedom, not 59.
        random = np.random.default_rng(0)
        sizes, gains = random.integers(30, 90, size=60), np.zeros(60, int)
        gains[:6] = [-2, -1, 3, 4, 7, 13]
        groups = np.repeat(np.arange(60), sizes)
        second = np.arange(len(groups)) % 2 == 0
        first = second.copy()
        for group, gain in enumerate(gains):
            rows = np.flatnonzero((groups == group) & (second == (gain > 0)))[: abs(gain)]
            first[rows] = gain < 0
        drawn = random.integers(60, size=(20_000, 60))
        scores = gains[drawn].sum(1) / sizes[drawn].sum(1)
        u = (gains - gains.sum() / sizes.sum() * sizes) / sizes.sum()
        found = bootstrap_difference(first, second, groups, repeats=20_000)
        assert found == pytest.approx(expanded_percentile(scores, u, 0.95), abs=8e-4)
        assert np.diff(found)[0] > 1.2 * np.diff(np.quantile(scores, [0.025, 0.975]))[0]


class TestAccuracy:
    @pytest.mark.parametrize("seed", [1, 3, 4])
    def test_as_every_resample(self, seed):
        groups, labels, _, second = small_case(seed)
        right = second == labels
        accuracy, ids = right.mean(), np.unique(groups)
        t = []
        for rows in every_resample(groups):
            p, sums = right[rows].mean(), 0.0
            for group in ids:
                inside = groups == group
                times = np.sum(groups[rows] == group) / inside.sum()
                sums += times * (right[inside].sum() - p * inside.sum()) ** 2
            error = math.sqrt(sums) / len(rows)
            t.append((p - accuracy) / error if error > 1e-9 else math.copysign(math.inf, p - accuracy))
        u = influences(lambda w: np.average(right, weights=w), groups)
        below, above = np.quantile(t, [0.1, 0.9], method="nearest")
        expected = np.clip(accuracy - np.array([above, below]) * math.sqrt(np.sum(u**2)), 0, 1)
        found = bootstrap_accuracy(right, groups, repeats=100_000, confidence=0.8)
        assert found == pytest.approx(expected.tolist(), abs=0.01)

    @pytest.mark.parametrize(("wrong", "n"), [(17, 1311), (96, 1311), (200, 400), (1305, 1311)])
    def test_images_alone_are_about_wilson(self, wrong, n):
        low, high = bootstrap_accuracy(np.arange(n) >= wrong, repeats=20_000)
        expected = wilson(n - wrong, n)
        assert (low, high) == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))

    def test_groups_of_one_are_images(self):
        right, _ = correctness(930, 0, 0, 70)
        assert bootstrap_accuracy(right, np.arange(1000)[::-1]) == bootstrap_accuracy(right)

    def test_copies_are_one_image(self):
        right, _ = correctness(93, 0, 0, 7)
        copies = bootstrap_accuracy(np.repeat(right, 9), np.repeat([f"patient {i}" for i in range(100)], 9))
        assert copies == pytest.approx(bootstrap_accuracy(right), abs=1e-9)

    def test_neither_order_nor_names_of_groups_count(self):
        groups, labels, _, second = small_case(1)
        order = np.random.default_rng(0).permutation(24)
        found = bootstrap_accuracy(second == labels, groups)
        assert bootstrap_accuracy((second == labels)[order], [f"g{-g}" for g in groups[order]]) == found

    @pytest.mark.parametrize("wrong", [0, 1, 3, 40])
    def test_too_few_errors_to_resample_have_wilson(self, wrong):
        right = np.arange(40) >= wrong
        assert bootstrap_accuracy(right) == pytest.approx(wilson(40 - wrong, 40))
        copies = bootstrap_accuracy(np.repeat(right, 5), np.repeat(np.arange(40), 5))
        assert copies == pytest.approx(wilson(40 - wrong, 40))

    def test_the_effective_number_of_unequal_groups(self):
        # Sizes 1, 1, 4: 6² / 18 = 2 images' worth.
        assert bootstrap_accuracy([True] * 6, [0, 1, 2, 2, 2, 2]) == wilson(2, 2)

    def test_more_confidence_is_wider(self):
        right, _ = correctness(930, 0, 0, 70)
        low, high = bootstrap_accuracy(right, confidence=0.8)
        wide_low, wide_high = bootstrap_accuracy(right, confidence=0.99)
        assert 0 <= wide_low < low < 0.93 < high < wide_high <= 1

    def test_drawn_in_pieces_it_is_the_same(self, monkeypatch):
        groups, labels, _, second = small_case(2)
        whole = bootstrap_accuracy(second == labels, groups)
        monkeypatch.setattr(resampling, "_CHUNK", 7)
        assert bootstrap_accuracy(second == labels, groups) == whole


class TestMacroF1:
    def test_explicit_resamples_as_sklearn(self):
        groups, labels, first, second = small_case(3)
        sums = resampling._class_sums(labels, [first, second], 4, groups)  # class 3 has no images
        rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        random = np.random.default_rng(0)
        for _ in range(60):
            drawn = random.integers(5, size=random.integers(1, 6))
            images = np.concatenate([rows[i] for i in drawn])
            total = sums[drawn].sum(0, dtype=float)[None]
            one, two = (macro_f1(labels[images], predicted[images]) for predicted in (first, second))
            assert resampling._macro_f1(total[:, :12])[0] == pytest.approx(one, abs=1e-12)
            assert resampling._macro_f1_difference(total)[0] == pytest.approx(two - one, abs=1e-12)

    def test_gradients_as_small_steps(self):
        groups, labels, first, second = small_case(3)
        sums = resampling._class_sums(labels, [first, second], 3, groups)
        _, gradient = resampling._macro_f1_difference(sums.sum(0, dtype=float)[None])
        expected = influences(lambda w: macro_f1(labels, second, w) - macro_f1(labels, first, w), groups)
        assert sums @ gradient[0] == pytest.approx(expected, abs=1e-7)
        assert np.abs(expected).min() > 1e-4

    def test_the_score_is_that_of_evaluate(self):
        random = np.random.default_rng(1)
        labels, p = random.integers(0, 3, size=50), random.dirichlet(np.ones(4), size=50)
        sums = resampling._class_sums(labels, [p.argmax(1)], 4, None)
        expected = measure(labels, p, list("abcd"))["macro"]["f1"]  # class d is predicted but has no images
        assert resampling._macro_f1(sums.sum(0, dtype=float)[None])[0] == pytest.approx(expected, abs=1e-12)

    def test_difference_as_every_resample(self):
        groups, labels, first, second = small_case(4)
        keep = groups != 1  # 4 groups, 256 resamples
        groups, labels, first, second = groups[keep], labels[keep], first[keep], second[keep]
        scores = [macro_f1(labels[r], second[r]) - macro_f1(labels[r], first[r]) for r in every_resample(groups)]
        u = influences(lambda w: macro_f1(labels, second, w) - macro_f1(labels, first, w), groups)
        expected = expanded_percentile(scores, u, 0.6)
        found = bootstrap_macro_f1_difference(labels, first, second, 3, groups, repeats=100_000, confidence=0.6)
        assert found == pytest.approx(expected, abs=0.01)

    def test_two_balanced_classes_are_about_the_accuracy(self):
        # Errors are balanced too, so macro-F1 is the accuracy, but for second-order terms.
        labels = np.repeat([0, 1], 1000)
        predicted = np.where(np.arange(2000) % 10 == 0, 1 - labels, labels)
        found = bootstrap_macro_f1(labels, predicted, 2, repeats=8000)
        assert found == pytest.approx(bootstrap_accuracy(labels == predicted, repeats=8000), abs=0.001)

    def test_changes_sign_with_the_order(self):
        groups, labels, first, second = small_case(5)
        low, high = bootstrap_macro_f1_difference(labels, first, second, 3, groups)
        back = bootstrap_macro_f1_difference(labels, second, first, 3, groups)
        assert back == pytest.approx((-high, -low), abs=0.05)

    def test_where_nothing_varies(self):
        labels = np.arange(30) % 3
        assert bootstrap_macro_f1(labels, labels, 3) == (1, 1)
        assert bootstrap_macro_f1_difference(labels, labels[::-1], labels[::-1], 3) == (0, 0)

    def test_one_error_still_has_a_width(self):
        labels = np.arange(30) % 3
        low, high = bootstrap_macro_f1(labels, np.where(np.arange(30) == 4, 2, labels), 3)
        assert 0.8 < low < 29 / 30 < high == 1


class TestRefusals:
    @pytest.mark.parametrize(
        "call",
        [
            lambda **kw: bootstrap_accuracy([True, False, True], **kw),
            lambda **kw: bootstrap_difference([True, False, True], [True, True, True], **kw),
            lambda **kw: bootstrap_macro_f1([0, 1, 0], [0, 1, 1], 2, **kw),
            lambda **kw: bootstrap_macro_f1_difference([0, 1, 0], [0, 1, 1], [0, 0, 0], 2, **kw),
        ],
    )
    def test_one_group_cannot_be_resampled(self, call):
        with pytest.raises(DataError, match="one group"):
            call(groups=[1, 1, 1])
        assert call(groups=[1, 2, 2], repeats=1)


def test_groups_are_covered_and_images_alone_are_not():
    """300 data sets of 250 groups; 0.95 ± 2.8 standard errors of such a share (0.0126) is 0.915 to 0.985."""
    random = np.random.default_rng(7)
    held = np.zeros(8)
    labels_of = np.array([0, 0, 1, 2])
    for i in range(300):
        sizes = random.geometric(1 / 3, size=250)
        # Both right, only the first, only the second, neither: intraclass correlation 1 / (1 + 1).
        outcomes = random.multinomial(sizes, random.dirichlet([0.87, 0.03, 0.07, 0.03], size=250))
        group = np.repeat(np.arange(250), sizes)
        outcome = np.repeat(np.tile(np.arange(4), 250), outcomes.ravel())
        label = np.repeat(labels_of[random.integers(4, size=250)], sizes)
        first, second = (np.where(np.isin(outcome, ok), label, (label + 1) % 3) for ok in ((0, 1), (0, 2)))
        right1, right2 = first == label, second == label
        # A class's errors go to the next one: F1 = 2 hits / (support + predicted), as shares of images.
        support = np.array([0.5, 0.25, 0.25])
        wrong = np.roll(support, 1)
        f1, f2 = (np.mean(2 * support * a / (support + support * a + wrong * (1 - a))) for a in (0.9, 0.94))
        found = [
            (0.94, bootstrap_accuracy(right2, group, 500, i)),
            (0.04, bootstrap_difference(right1, right2, group, 500, i)),
            (f2, bootstrap_macro_f1(label, second, 3, group, 500, i)),
            (f2 - f1, bootstrap_macro_f1_difference(label, first, second, 3, group, 500, i)),
            (0.94, wilson(int(right2.sum()), len(right2))),
            (0.04, bootstrap_difference(right1, right2, None, 500, i)),
            (f2, bootstrap_macro_f1(label, second, 3, None, 500, i)),
            (f2 - f1, bootstrap_macro_f1_difference(label, first, second, 3, None, 500, i)),
        ]
        held += [low <= truth <= high for truth, (low, high) in found]
    assert ((held[:4] / 300 >= 0.915) & (held[:4] / 300 <= 0.985)).all(), held
    assert (held[4:] / 300 < 0.85).all(), held
