"""Test accuracy on the subsets of the test images with and without a twin."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tumorlens.data.index import ImageRecord
from tumorlens.evaluation.leakage import as_good_as, leakage, same_mix, sentence
from tumorlens.evaluation.predictions import Predictions
from tumorlens.evaluation.summary import baseline_opening

LABELS = ("one", "two")


def one_row(label: str, i: int) -> ImageRecord:
    """The first five of each class have a twin; the others are unlike any training image."""
    similarity = 0.995 if i < 5 else 0.5
    return ImageRecord(f"Testing/{label}/{i:03}.png", f"{label}{i}", 1, 9, 9, "L", "", 0, 9, 0, f"{label}{i}", label,
                       "Testing", "test", f"{label}{i}", "Training/x.png", similarity, "direct")  # fmt: skip


def test_each_subset_is_counted() -> None:
    test = [one_row(label, i) for label in LABELS for i in range(12)]
    rows = [*test, replace(test[0], path="Training/x.png", part="Training", split="train")]
    # Right wherever there is a twin, and on 4 of the 14 others.
    free = [row.path for row in test if row.similarity < 0.99]
    right = {row.path for row in test if row.similarity >= 0.99} | set(free[:4])
    labels = np.array([LABELS.index(row.label) for row in test])
    predicted = np.array([label if row.path in right else 1 - label for label, row in zip(labels, test, strict=True)])
    predictions = Predictions(
        tuple(row.path for row in test), labels, np.eye(2)[predicted] * 0.8 + 0.1, ("test",) * len(test), LABELS
    )
    lines = {row.path: ("one", row.label, "two") for row in test}
    found = leakage(rows, {"net": predictions}, lines)
    parts = found["parts"]
    assert {key: part["n"] for key, part in parts.items()} == {
        "official": 24, "with_twin": 10, "twin_free": 14, "below_0.95": 14,
    }  # fmt: skip
    assert parts["official"]["configurations"]["net"]["correct"] == 14
    assert parts["with_twin"]["configurations"]["net"]["accuracy"] == 1
    assert parts["twin_free"]["configurations"]["net"]["correct"] == 4
    assert parts["twin_free"]["classes"] == {"one": 7, "two": 7}
    assert parts["official"]["baselines"]["nn"]["accuracy"] == 0.5
    assert parts["official"]["baselines"]["nn_mirror"]["accuracy"] == 1
    assert found["curve"]["n"][0] == 24
    assert found["curve"]["accuracy"]["net"][:2] == [14 / 24, None]  # 14 images are too few for a point
    text = sentence(found, ["net"], "the official test")
    assert "10 of the 24 test images have a twin" in text
    assert "net's accuracy is 28.6 %" in text
    assert "29.8 points lower than on the official test" in text
    assert "class distribution" not in text  # it is the same one
    # All of one class are right, of the other none: without twins, 9 and 5, the mix alone makes the difference.
    predicted = np.zeros(len(test), int)
    easy = {*[row.path for row in test if row.similarity >= 0.99 and row.label == "two"],
            *[row.path for row in test if row.similarity < 0.99 and row.label == "one"]}  # fmt: skip
    chosen = [i for i, row in enumerate(test) if row.path in easy]
    mixed = Predictions(
        tuple(test[i].path for i in chosen),
        labels[chosen],
        np.eye(2)[predicted[chosen]],
        ("test",) * len(chosen),
        LABELS,
    )
    found = leakage([row for row in rows if row.split != "test" or row.path in easy], {"net": mixed}, {})
    assert found["parts"]["twin_free"]["configurations"]["net"]["accuracy"] == 1
    assert same_mix(found, "twin_free", "net") == 1
    assert same_mix(found, "below_0.95", "net") == 1
    text = sentence(found, ["net"], "all")
    assert "41.7 points higher than on all (the same as there at the same class distribution)." in text
    nothing = [row for row in rows if row.split != "test" or row.path in free]
    kept = predictions.paths
    rest = [i for i, path in enumerate(kept) if path in free]
    only = Predictions(
        tuple(kept[i] for i in rest), labels[rest], predictions.probabilities[rest], ("test",) * len(rest), LABELS
    )
    assert sentence(leakage(nothing, {"net": only}, {}), ["net"], "all").startswith("No test image has a twin")


def test_a_baseline_that_is_not_worse_opens_the_verdict() -> None:
    labels = np.repeat([0, 1], 50)

    def wrong(n: int) -> np.ndarray:
        return np.where(np.arange(100) < n, 1 - labels, labels)

    networks = {"initial": wrong(30), "finetuned": wrong(4)}
    # Three more errors than finetuned are no difference by McNemar's test (p = 0.25); forty more are one.
    found = as_good_as(labels, networks, {"nn": wrong(7), "file_facts": wrong(44)})
    assert [(one["baseline"], one["network"]) for one in found] == [("nn", "initial"), ("nn", "finetuned")]
    (opening,) = baseline_opening(found)
    assert opening == (
        "A baseline that knows nothing about brains is as good as initial and finetuned: the label of the most similar "
        "training thumbnail is correct for 93.00 % of the test images, initial for 70.00 % (p < 0.001) and finetuned "
        "for 96.00 % (p = 0.25) (McNemar)."
    )
    (best,) = baseline_opening(as_good_as(labels, {"finetuned": wrong(4)}, {"nn": wrong(7), "nn_mirror": wrong(0)}))
    assert "mirrored ones included, is correct for 100.00 %" in best
    assert baseline_opening(as_good_as(labels, networks, {"largest_class": wrong(50)})) == []
    always_largest = as_good_as(labels, {"net": wrong(50)}, {"largest_class": np.zeros(100, int)})
    assert baseline_opening(always_largest)[0].startswith(
        "A baseline that knows nothing about brains is as good as net"
    )
