"""The comparison against cases counted by hand, and what it refuses."""

import json
from dataclasses import asdict, replace

import pytest
from evaluation_cases import CLASSES, compared, on_test, training, with_errors

from tumorlens.core.errors import DataError, RunError
from tumorlens.data.index import ImageRecord
from tumorlens.evaluation.compare import compare
from tumorlens.evaluation.metrics import evaluate_predictions
from tumorlens.evaluation.predictions import Predictions
from tumorlens.study.stages import published_for
from tumorlens.training.configurations import BUILT_IN


class TestPair:
    found = on_test(10, initial={0, 1, 2, 3}, finetuned={3, 9})["pairs"][0]

    def test_counts(self):
        keys = ("first", "second", "n", "first_errors", "second_errors", "both_wrong", "corrected", "introduced")
        assert [self.found[key] for key in keys] == ["initial", "finetuned", 10, 4, 2, 1, 3, 1]
        assert self.found["accuracy_difference"] == pytest.approx(0.2)
        low, high = self.found["accuracy_difference_interval"]
        assert low < 0.2 < high

    def test_mcnemar(self):
        # 1 against 3: 2 * (C(4,0) + C(4,1)) / 2^4
        p = pytest.approx(10 / 16)
        assert self.found["mcnemar"] == {"p_value": p, "p_holm": p, "statistic": 1, "method": "exact binomial"}

    def test_images_most_confident_errors_first(self):
        assert [image["path"] for image in self.found["corrected_images"]] == [
            "test/glioma/0000.jpg", "test/meningioma/0001.jpg", "test/notumor/0002.jpg"
        ]  # fmt: skip
        assert self.found["introduced_images"] == [
            {
                "path": "test/glioma/0009.jpg",
                "label": "glioma",
                "first_predicted": "glioma",
                "second_predicted": "meningioma",
                "first_probability": pytest.approx(0.63),
                "second_probability": pytest.approx(0.63),
            }
        ]

    def test_introduced_images_follow_the_confidence_of_the_second(self):
        first, second = with_errors({}, {"test": 6}), with_errors({"test": {1, 4}}, {"test": 6})
        unsure = first.probabilities.copy()
        unsure[1] = [0.3, 0.5, 0.2]
        first = Predictions(first.paths, first.labels, unsure, first.splits, CLASSES)
        found = compared({"first": first, "second": second})["pairs"][0]["introduced_images"]
        assert [image["path"][-8:-4] for image in found] == ["0001", "0004"]
        assert [image["first_probability"] for image in found] == [0.5, pytest.approx(0.99 - 0.4 * 4 / 6)]

    def test_order_of_rows_does_not_matter(self):
        one, two = (
            with_errors({"test": {0, 1, 2, 3}}, {"test": 10}),
            with_errors({"test": {3, 9}}, {"test": 10}),
        )
        order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
        turned = Predictions(
            tuple(two.paths[i] for i in order), two.labels[order], two.probabilities[order], two.splits, CLASSES
        )
        assert compared({"initial": one, "finetuned": turned})["pairs"][0] == self.found

    def test_all_pairs(self):
        found = on_test(20, a={1}, b={2}, c={3})
        assert [(p["first"], p["second"]) for p in found["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]


class TestRefuses:
    def test_other_images(self):
        one, two = with_errors({}, {"test": 10}), with_errors({}, {"test": 12})
        with pytest.raises(DataError, match="2 only by finetuned") as e:
            compared({"initial": one, "finetuned": two})
        assert "only by initial" not in e.value.what
        assert "'test/meningioma/0010.jpg'" in e.value.what

    def test_other_labels(self):
        one = with_errors({}, {"test": 4})
        labels = one.labels.copy()
        labels[2] = 0
        two = Predictions(one.paths, labels, one.probabilities, one.splits, CLASSES)
        with pytest.raises(DataError, match=r"0002\.jpg' is notumor for initial, but glioma for finetuned"):
            compared({"initial": one, "finetuned": two})

    def test_other_classes(self):
        two = with_errors({}, {"test": 4}, ("glioma", "notumor", "meningioma"))
        with pytest.raises(DataError, match="finetuned \\['glioma', 'notumor', 'meningioma'\\]"):
            compared({"initial": with_errors({}, {"test": 4}), "finetuned": two})

    def test_no_test_split(self):
        with pytest.raises(DataError, match="'x' has no test split"):
            compared({"x": with_errors({}, {"train": 4})})

    def test_stale_metrics(self):
        now = with_errors({"test": {1}}, {"test": 4})
        old = evaluate_predictions(with_errors({}, {"test": 4}), "x")
        with pytest.raises(RunError, match=r"has 4 of 4 correct, predictions\.csv 3 of 4"):
            compare(["x"], {"x": training()}, {"x": old}, {"x": now}, None)

    def test_a_training_record_of_another_version(self):
        lacking = training()
        del lacking["epochs_run"]
        with pytest.raises(RunError, match=r"training\.json of 'x' lacks 'epochs_run'"):
            compared({"x": with_errors({}, {"test": 4})}, None, {"x": lacking})


_INITIAL, _FINETUNED = BUILT_IN["initial"], BUILT_IN["finetuned"]


@pytest.mark.parametrize(
    ("trained", "wanted"),
    [
        ((_INITIAL, _FINETUNED), {"initial", "finetuned"}),
        ((replace(_INITIAL, seed=3), _FINETUNED), {"initial", "finetuned"}),
        ((replace(_INITIAL, head_solver="lbfgs"), _FINETUNED), set()),  # finetuned starts from it
        ((_INITIAL, replace(_FINETUNED, start="imagenet")), {"initial"}),
        ((_INITIAL, replace(_FINETUNED, max_epochs=3)), {"initial"}),
    ],
)
def test_published_figures_are_shown_only_beside_the_same_training(trained, wanted):
    rows = [
        ImageRecord(f"{part}/a/{i}.jpg", f"{i}", 1, 9, 9, "L", "", 0, 9, 0, f"{i}", "a", part, split)
        for i, (part, split) in enumerate((("Training", "train"), ("Training", "validation"), ("Testing", "test")))
    ]
    record = json.loads(json.dumps({
        "split": {"protocol": "official"}, "dataset": {"sheet": "v1", "comparable_to_published": True},
        "configurations": [asdict(one) for one in trained],
    }))  # fmt: skip
    assert set(published_for(record, rows) or {}) == wanted
    assert published_for(record, [replace(row, split="test") for row in rows]) is None
    assert published_for(record | {"split": {"protocol": "grouped-cv"}}, rows) is None
