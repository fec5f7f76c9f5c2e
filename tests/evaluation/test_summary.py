"""The summary's rows and the verdict, word by word, and the table for terminals."""

import json

import pytest
from evaluation_cases import CLASSES, compared, on_test, row, training, with_errors

from tumorlens.core.text import p_value_text
from tumorlens.evaluation.compare import compare
from tumorlens.evaluation.metrics import evaluate_predictions
from tumorlens.evaluation.summary import ROWS, Facts, summary_text

PUBLISHED = {"initial": 0.9268, "finetuned": 0.9870}
FINETUNED = training(
    learns=["layer3", "layer4", "fc"],
    learned_parameters=10_495_492,
    epochs_run=14,
    best_epoch=9,
    stopped="early stopping: no lower validation loss for 5 epochs",
    train_seconds=834.2,
    frozen_prefix="layer2",
    start="initial",
)
overfitting_risk = next(text for key, _, _, text in ROWS if key == "overfitting_risk")


@pytest.fixture(scope="module")
def study():
    """Counts as in the published study: 96 errors of 1,311, of which 85 are corrected and 6 are new."""
    sizes = {"train": 4855, "validation": 857, "test": 1311}
    initial = with_errors({"train": set(range(340)), "validation": set(range(60)), "test": set(range(96))}, sizes)
    wrong = {"train": set(), "validation": set(range(13)), "test": set(range(85, 102))}
    return compared(
        {"initial": initial, "finetuned": with_errors(wrong, sizes)},
        PUBLISHED,
        {"initial": training(), "finetuned": FINETUNED},
    )


class TestVerdict:
    def test_published_pair(self, study):
        assert study["verdict"] == (
            "initial classifies 1,215 of 1,311 test images correctly (92.7 %), finetuned 1,294 (98.7 %): finetuned "
            "corrects 85 of initial's 96 errors and makes 6 new ones (McNemar p < 0.001). "
            "initial meets the published 92.68 %; finetuned meets the published 98.70 %."
        )

    @pytest.mark.parametrize(
        ("first", "second", "words"),
        [
            (set(range(20)), {30, 31}, "first classifies 80 of 100 test images correctly (80.0 %), second 98 (98.0 %): "
             "second corrects 20 of first's 20 errors and makes 2 new ones (McNemar p < 0.001)."),
            ({0, 1}, {0}, "first classifies 98 of 100 test images correctly (98.0 %), second 99 (99.0 %): second "
             "corrects 1 of first's 2 errors and makes no new ones (McNemar p = 1.00, a difference that chance alone "
             "can explain)."),
            ({0, 1, 2}, {2, 3, 4}, "first classifies 97 of 100 test images correctly (97.0 %), second 97 (97.0 %): "
             "second corrects 2 of first's 3 errors and makes 2 new ones (McNemar p = 1.00)."),
            ({0, 1}, set(range(20)), "first classifies 98 of 100 test images correctly (98.0 %), second 80 (80.0 %): "
             "second corrects none of first's 2 errors and makes 18 new ones (McNemar p < 0.001)."),
            (set(), {5}, "first classifies 100 of 100 test images correctly (100.0 %), second 99 (99.0 %): second "
             "corrects no errors and makes 1 new one (McNemar p = 1.00, a difference that chance alone can explain)."),
            ({7}, {8}, "first classifies 99 of 100 test images correctly (99.0 %), second 99 (99.0 %): second corrects "
             "1 of first's 1 error and makes 1 new one (McNemar p = 1.00)."),
            ({7}, {7, *range(10)}, "first classifies 99 of 100 test images correctly (99.0 %), second 90 (90.0 %): "
             "second corrects none of first's 1 error and makes 9 new ones (McNemar p = 0.004)."),
            ({1, 2}, {1, 2}, "first classifies 98 of 100 test images correctly (98.0 %), second 98 (98.0 %): second "
             "misclassifies the same images as first."),
            ({1}, {1}, "first classifies 99 of 100 test images correctly (99.0 %), second 99 (99.0 %): second "
             "misclassifies the same images as first."),
            (set(), set(), "first classifies 100 of 100 test images correctly (100.0 %), second 100 (100.0 %): second "
             "makes no errors, like first."),
        ],
    )  # fmt: skip
    def test_two(self, first, second, words):
        assert on_test(100, first=first, second=second)["verdict"] == words

    def test_one(self):
        # Wilson for 90 of 100, by hand: (0.9192073 ± 0.0591) / 1.0384146
        assert on_test(100, only=set(range(10)))["verdict"] == (
            "only classifies 90 of 100 test images correctly (90.0 %; 95 % interval 82.6–94.5 %)."
        )

    def test_three(self):
        assert on_test(100, a={0, 1, 2, 3}, b={0}, c={0, 1, 2, 3})["verdict"] == (
            "a classifies 96 of 100 test images correctly (96.0 %), b 99 (99.0 %), c 96 (96.0 %): b corrects 3 of a's "
            "4 errors and makes no new ones (McNemar p = 0.75, a difference that chance alone can explain); "
            "c misclassifies the same images as a. p-values are adjusted for multiple comparisons (Holm)."
        )

    @pytest.mark.parametrize(
        ("errors", "words"),
        [
            (19, "falls short of the published 98.70 % by 0.15 points"),
            (17, "meets"),
            (4, "exceeds the published 98.70 % by 0.99"),
        ],
    )
    def test_published(self, errors, words):
        found = compared({"finetuned": with_errors({"test": set(range(errors))}, {"test": 1311})}, PUBLISHED)
        assert f"finetuned {words}" in found["verdict"]


class TestSummary:
    def test_rows(self, study):
        assert [(r["key"], r["title"]) for r in study["summary"]] == [
            ("training_scope", "Training scope"),
            ("test_accuracy", "Test accuracy"),
            ("overfitting_risk", "Overfitting risk"),
            ("generalization", "Generalization"),
            ("training_time", "Training time"),
            ("improvement_areas", "Improvement areas"),
            ("learned_parameters", "Trainable parameters"),
            ("epochs", "Epochs run"),
            ("best_epoch", "Best epoch"),
            ("published", "Published"),
        ]
        assert all(list(r["values"]) == ["initial", "finetuned"] and r["rule"].endswith(".") for r in study["summary"])

    def test_training_scope(self, study):
        assert row(study, "training_scope") == {
            "initial": "fc only: 2,052 of 11,178,564 parameters (0.02 %)",
            "finetuned": "layer3, layer4, fc trained jointly: 10,495,492 of 11,178,564 parameters (93.9 %); "
            "starts from initial",
        }
        everything = {"x": training(learned_parameters=11_178_564)}
        found = compared({"x": with_errors({}, {"test": 3})}, None, everything)
        assert row(found, "training_scope")["x"] == (
            "all layers trained jointly: 11,178,564 of 11,178,564 parameters (100.0 %)"
        )

    def test_test_accuracy(self, study):
        assert row(study, "test_accuracy")["finetuned"] == "98.70 % (1,294 of 1,311; 95 % interval 97.9–99.2 %)"
        assert row(study, "test_accuracy")["initial"].startswith("92.68 % (1,215 of 1,311; ")

    def test_never_rounds_up_to_all(self):
        found = compared({"x": with_errors({"test": {0}}, {"test": 30_000})})
        assert row(found, "test_accuracy")["x"].startswith("99.997 % (29,999 of 30,000; ")

    def test_generalization(self, study):
        # finetuned: validation 844 of 857 = 98.48 %, test 98.70 %
        text = row(study, "generalization")["finetuned"]
        assert text.startswith("test 98.70 % is within chance of validation 98.48 %: ")
        assert text.endswith("test − validation +0.22 points, 95 % interval −0.8 to +1.4")

    @pytest.mark.parametrize(("errors", "where"), [(50, "below"), (16, "within chance of"), (0, "above")])
    def test_generalization_words(self, errors, where):
        wrong = {"validation": set(range(10)), "test": set(range(errors))}
        found = compared({"x": with_errors(wrong, {"validation": 200, "test": 200})})
        assert f" is {where} validation 95.00 %:" in row(found, "generalization")["x"]
        assert row(found, "overfitting_risk")["x"] == "not measured: there is no train split"

    @pytest.mark.parametrize(
        ("train", "validation", "test", "words"),
        [
            (30, 20, 10, "low: no gap (train 97.00 %, validation 98.00 %, test 99.00 %)"),
            (0, 10, 20, "low: largest gap 1.00 points"),
            (0, 11, 11, "moderate: largest gap 1.10 points, train − validation (train 100.00 %"),
            (50, 0, 30, "moderate: largest gap 3.00 points, validation − test"),
            (0, 0, 31, "high: largest gap 3.10 points, validation − test"),
        ],
    )
    def test_overfitting_risk(self, train, validation, test, words):
        wrong = {"train": set(range(train)), "validation": set(range(validation)), "test": set(range(test))}
        found = compared({"x": with_errors(wrong, dict.fromkeys(wrong, 1000))})
        assert row(found, "overfitting_risk")["x"].startswith(words)

    @pytest.mark.parametrize(("n", "chance"), [(40, True), (4000, False)])
    def test_a_gap_within_chance_says_so(self, n, chance):
        wrong = {"test": set(range(n // 20))}
        found = compared({"x": with_errors(wrong, {"train": n, "validation": n, "test": n})})
        text = row(found, "overfitting_risk")["x"]
        assert text.startswith("high: largest gap 5.00 points, validation − test")
        assert ("; chance alone can explain it, 95 % interval −" in text) == chance

    def test_a_gap_is_rated_as_it_is_shown(self):
        # 1.004 points are shown as 1.00, which the rule calls low
        parts = {k: {"accuracy": a, "n": 100_000, "correct": round(a * 100_000)} for k, a in
                 (("train", 0.99), ("validation", 0.99), ("test", 0.97996))}  # fmt: skip
        text = overfitting_risk(Facts("x", training(), parts, CLASSES, None, None))
        assert text.startswith("low: largest gap 1.00 points")

    def test_a_refit_on_validation_images_is_not_compared_with_them(self):
        refit = training(solver="lbfgs", epochs_run=8, configuration={"refit": True})
        sizes = {"train": 200, "validation": 100, "test": 100}
        found = compared({"x": with_errors({"test": set(range(20))}, sizes)}, None, {"x": refit})
        for key in ("overfitting_risk", "generalization"):
            assert row(found, key)["x"] == "not measured: the final weights were trained on the validation images, too"
        assert "(before refitting: validation loss" in row(found, "best_epoch")["x"]

    def test_training_time(self, study):
        assert row(study, "training_time") == {
            "initial": "5 min 33 s in all (5 min 22 s for the frozen layers, once; 12 s for the epochs)",
            "finetuned": "19 min 16 s in all (5 min 22 s for the frozen layers, once; 13 min 54 s for the epochs), "
            "without the training of initial, from which it starts",
        }
        long = {"x": training(prefix_seconds=3.04, train_seconds=7385.0, frozen_prefix="image")}
        found = compared({"x": with_errors({}, {"test": 3})}, None, long)
        assert (
            row(found, "training_time")["x"] == "2 h 3 min in all (3.0 s for decoding, once; 2 h 3 min for the epochs)"
        )

    def test_improvement_areas(self):
        # Wrong ones are called the next class: of 12 images 4 are of each class.
        found = on_test(12, initial={0, 3, 6, 1, 4, 2}, finetuned={0, 11})
        assert row(found, "improvement_areas") == {
            "initial": "glioma → meningioma 3 of 4; meningioma → notumor 2 of 4; notumor → glioma 1 of 4",
            "finetuned": "glioma → meningioma 1 of 4; notumor → glioma 1 of 4. "
            "Corrects 5 of initial's 6 errors and makes 1 new one",
        }

    def test_improvement_areas_of_the_faultless(self):
        found = on_test(12, initial=set(), finetuned=set())
        assert row(found, "improvement_areas") == {
            "initial": "no test image is misclassified",
            "finetuned": "no test image is misclassified. Makes no errors, like initial",
        }

    def test_numbers_of_the_training(self, study):
        assert row(study, "learned_parameters") == {"initial": "2,052", "finetuned": "10,495,492"}
        assert row(study, "epochs") == {
            "initial": "60 of at most 60; all 60 epochs ran",
            "finetuned": "14 of at most 60; early stopping: no lower validation loss for 5 epochs",
        }
        assert row(study, "best_epoch")["finetuned"] == "9 (validation loss 0.2346, accuracy 91.25 %)"

    def test_best_epoch_is_the_last(self):
        found = compared({"x": with_errors({}, {"test": 3})}, None, {"x": training(best_epoch=60)})
        assert row(found, "best_epoch")["x"].startswith("60, the last one allowed, so more may help (")

    def test_lbfgs_has_no_epochs(self):
        solved = training(solver="lbfgs", epochs_run=8, best_epoch=4, stopped="converged for each of 8 strengths")
        found = compared({"x": with_errors({}, {"test": 3})}, None, {"x": solved})
        assert row(found, "epochs")["x"] == "no epochs: converged for each of 8 strengths"
        assert row(found, "best_epoch")["x"].startswith("regularisation strength 4 of 8 (")

    def test_published(self, study):
        assert row(study, "published")["finetuned"] == (
            "98.70 % published, 98.70 % here: 0.00 points; the published figure lies inside our 95 % interval"
        )
        assert study["published"] == PUBLISHED

    def test_published_is_not_comparable(self):
        two = {name: with_errors({}, {"test": 3}) for name in ("initial", "third")}
        assert set(row(compared(two, None), "published").values()) == {"not comparable"}
        assert compared(two, None)["published"] is None
        assert row(compared(two, PUBLISHED), "published")["third"] == "not comparable"
        assert "published" not in compared(two, None)["verdict"]

    def test_is_json(self, study):
        assert json.loads(json.dumps(study, allow_nan=False)) == study


class TestText:
    def test_two_side_by_side(self, study):
        lines = summary_text(study).splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[0].split() == ["initial", "finetuned"]
        start = next(line for line in lines if line.startswith("Test accuracy"))
        assert start.index("98.70 %") == lines[0].index("finetuned")
        flat = " ".join(" ".join(lines).split())
        assert study["verdict"] in flat

    @pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
    def test_nothing_is_lost(self, n):
        found = on_test(30, **{f"configuration_{i}": set(range(i)) for i in range(n)})
        text = summary_text(found)
        assert max(map(len, text.splitlines())) <= 100
        for name in found["configurations"]:
            assert name in text
            for word in row(found, "test_accuracy")[name].split():
                assert word in text
        assert all(r["title"] in text for r in found["summary"])

    def test_numbers_keep_their_units(self, study):
        assert not any(line.strip().startswith("%") for line in summary_text(study).splitlines())

    def test_class_names_cannot_steer_the_terminal(self):
        classes = ("\x1b[2Jglioma", "line\nbreak", "x")
        found = compared({"x": with_errors({"test": {0, 1}}, {"test": 6}, classes)})
        text = summary_text(found)
        assert "\x1b" not in text
        assert "�[2Jglioma" in text

    @pytest.mark.parametrize(
        ("p", "text"),
        [(1.0, "1.00"), (0.625, "0.62"), (0.0479, "0.048"), (0.001, "0.001")],
    )
    def test_p_values(self, p, text):
        assert p_value_text(p) == f"p = {text}"

    @pytest.mark.parametrize("p", [0.00099, 2e-18, 0.0])
    def test_small_p_values(self, p):
        assert p_value_text(p) == "p < 0.001"

    def test_p_values_at_the_border_read_as_they_are_tested(self):
        assert (p_value_text(0.0499), p_value_text(0.0501), p_value_text(0.05)) == (
            "p = 0.0499", "p = 0.0501", "p = 0.050",
        )  # fmt: skip

    def test_one_patients_slices_are_no_proof(self):
        # 20 corrected slices of one patient, 3 new errors among 200 others: McNemar takes 23 images as independent
        named = {
            "initial": with_errors({"test": set(range(20))}, {"test": 220}),
            "finetuned": with_errors({"test": {50, 60, 70}}, {"test": 220}),
        }
        metrics = {name: evaluate_predictions(p, name) for name, p in named.items()}
        groups = {path: "one patient" if i < 20 else path for i, path in enumerate(named["initial"].paths)}
        training_of = {name: training() for name in named}
        alone = compare(list(named), training_of, metrics, named, None)["verdict"]
        together = compare(list(named), training_of, metrics, named, None, groups)["verdict"]
        assert "(McNemar p < 0.001)" in alone
        text = "(McNemar p < 0.001, but if whole groups are resampled chance alone can explain the difference)"
        assert text in together
