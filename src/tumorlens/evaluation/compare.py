"""The comparison of configurations that were tested on the same images: the content of comparison.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import Json
from tumorlens.evaluation.bootstrap import bootstrap_difference, bootstrap_macro_f1_difference
from tumorlens.evaluation.predictions import Predictions
from tumorlens.evaluation.statistics import delong, holm, mcnemar
from tumorlens.evaluation.summary import ROWS, Facts, verdict

_TRAINING_KEYS = (
    "learns", "learned_parameters", "total_parameters", "solver", "epochs_run", "max_epochs", "best_epoch",
    "stopped", "best_validation_loss", "best_validation_accuracy", "train_seconds", "prefix_seconds",
    "frozen_prefix", "start",
)  # fmt: skip


def compare(
    names: Sequence[str],
    training: Mapping[str, Json],
    metrics: Mapping[str, Json],
    predictions: Mapping[str, Predictions],
    published: Mapping[str, float] | None,
    groups: Mapping[str, str] | None = None,
) -> Json:
    """Compare configurations on the test split.

    Parameters
    ----------
    names
        Configurations in the order of the table; the others are compared with the first.
    training, metrics, predictions
        By configuration, as in training.json, metrics.json and predictions.csv.
    published
        Published test accuracy (0 to 1) by configuration, or None if the data set differs.
    groups
        Group of each image by path: near-duplicates or a patient's. Without, images count as independent.

    Returns
    -------
    dict
        As in comparison.json. All pairs are compared, the earlier configuration first; differences are
        second − first, with their bootstrap interval (95 %; `_group_` ones resample whole groups, the other one
        images). `auc` compares one-vs-rest ROC areas by class (DeLong). Images in a pair carry the
        probability that each configuration gave to the class it predicted; the most confident errors come
        first. `mcnemar.p_holm` is adjusted for the number of pairs (Holm), that of `auc` for pairs and classes.

    Raises
    ------
    DataError
        A configuration has no test split, or they were not tested on the same images.
    RunError
        A training.json lacks a key, or metrics and predictions do not match.
    """
    _check_inputs(names, training, metrics, predictions)
    tests: dict[str, Predictions] = {}
    for name in names:
        test = predictions[name].for_split("test")
        tests[name] = test.take(sorted(range(len(test)), key=test.paths.__getitem__))
        _check_same_test(names[0], tests[names[0]], name, tests[name])
    pairs = [_pair(a, tests[a], b, tests[b], groups) for a, b in combinations(names, 2)]
    _adjust([pair["mcnemar"] for pair in pairs])
    _adjust([area for pair in pairs for area in pair["auc"].values() if area["p_value"] is not None])
    against_first = {pair["second"]: pair for pair in pairs if pair["first"] == names[0]}
    facts = [
        Facts(n, training[n], metrics[n]["parts"], tests[n].classes, (published or {}).get(n), against_first.get(n))
        for n in names
    ]
    return {
        "configurations": list(names),
        "published": None if published is None else dict(published),
        "summary": [
            {"key": key, "title": title, "values": {f.name: text(f) for f in facts}, "rule": rule}
            for key, title, rule, text in ROWS
        ],
        "pairs": pairs,
        "verdict": verdict(facts),
    }


def _check_inputs(
    names: Sequence[str],
    training: Mapping[str, Json],
    metrics: Mapping[str, Json],
    predictions: Mapping[str, Predictions],
) -> None:
    for name in names:
        if missing := [key for key in _TRAINING_KEYS if key not in training[name]]:
            raise RunError(
                f"training.json of {name!r} lacks {missing[0]!r}.",
                cure="It was edited or written by another version: train the configuration again in another folder.",
            )
        predicted = predictions[name].for_split("test")
        n, right = len(predicted), int(np.sum(predicted.predicted == predicted.labels))
        test = metrics[name].get("parts", {}).get("test")
        if not n or test is None:
            raise DataError(f"{name!r} has no test split.", cure="Evaluate it on at least one test image.")
        if (test.get("n"), test.get("correct")) != (n, right):
            raise RunError(
                f"metrics.json of {name!r} has {test.get('correct')} of {test.get('n')} correct, "
                f"predictions.csv {right} of {n}.",
                cure="Write both again with `tumorlens evaluate`.",
            )


def _check_same_test(first: str, one: Predictions, second: str, two: Predictions) -> None:
    """Raise DataError at the first difference; both are sorted by path."""
    cure = "Evaluate both on the same data set and split."
    if one.classes != two.classes:
        raise DataError(f"{first} has the classes {list(one.classes)}, {second} {list(two.classes)}.", cure=cure)
    if one.paths != two.paths:
        differences = [
            f"{len(only)} only by {name} (first {min(only)!r})"
            for name, only in ((first, set(one.paths) - set(two.paths)), (second, set(two.paths) - set(one.paths)))
            if only
        ]
        raise DataError(f"{first} and {second} are tested on different images: {', '.join(differences)}.", cure=cure)
    if (differ := one.labels != two.labels).any():
        i = int(differ.argmax())
        raise DataError(
            f"{one.paths[i]!r} is {one.classes[one.labels[i]]} for {first}, but {two.classes[two.labels[i]]} "
            f"for {second}.",
            cure=cure,
        )


def _adjust(tests: Sequence[Json]) -> None:
    """Add `p_holm` to each test."""
    for test, adjusted in zip(tests, holm([test["p_value"] for test in tests]), strict=True):
        test["p_holm"] = adjusted


def _pair(first: str, one: Predictions, second: str, two: Predictions, groups: Mapping[str, str] | None) -> Json:
    predicted1, predicted2 = one.predicted, two.predicted  # (n,) each, as all below
    right1, right2 = predicted1 == one.labels, predicted2 == two.labels
    top1, top2 = one.probabilities.max(1), two.probabilities.max(1)

    def images(chosen: npt.NDArray[np.bool_], confidence: npt.NDArray[np.float64]) -> list[Json]:
        rows = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: (-confidence[i], one.paths[i]))
        return [
            {
                "path": one.paths[i],
                "label": one.classes[one.labels[i]],
                "first_predicted": one.classes[predicted1[i]],
                "second_predicted": two.classes[predicted2[i]],
                "first_probability": float(top1[i]),
                "second_probability": float(top2[i]),
            }
            for i in rows
        ]

    corrected, introduced = ~right1 & right2, right1 & ~right2
    return {
        "first": first,
        "second": second,
        "n": len(one),
        "first_errors": int(np.sum(~right1)),
        "second_errors": int(np.sum(~right2)),
        "both_wrong": int(np.sum(~right1 & ~right2)),
        "corrected": int(np.sum(corrected)),
        "introduced": int(np.sum(introduced)),
        "accuracy_difference": (int(np.sum(right2)) - int(np.sum(right1))) / len(one),
        "accuracy_difference_interval": list(bootstrap_difference(right1, right2)),
        **_by_group(one, two, groups),
        "auc": _areas(one, two),
        "mcnemar": mcnemar(right1, right2),
        "corrected_images": images(corrected, top1),
        "introduced_images": images(introduced, top2),
    }


def _by_group(one: Predictions, two: Predictions, groups: Mapping[str, str] | None) -> Json:
    """Differences of accuracy and macro-F1, with intervals that resample whole groups; None for fewer than two."""
    labels, predicted1, predicted2 = one.labels, one.predicted, two.predicted
    present = np.unique(labels)
    f1 = [f1_score(labels, p, labels=present, average="macro", zero_division=0.0) for p in (predicted1, predicted2)]
    group = None if groups is None else np.array([groups[path] for path in one.paths])
    n = None if group is None else len(np.unique(group))
    accuracy = macro = None
    if n is not None and n > 1:
        accuracy = list(bootstrap_difference(predicted1 == labels, predicted2 == labels, group))
        macro = list(bootstrap_macro_f1_difference(labels, predicted1, predicted2, len(one.classes), group))
    return {
        "macro_f1_difference": float(f1[1] - f1[0]),
        "accuracy_difference_group_interval": accuracy,
        "macro_f1_difference_group_interval": macro,
        "groups": n,
    }


def _areas(one: Predictions, two: Predictions) -> Json:
    """DeLong's comparison for each class with two or more test images of it and two or more of others."""
    present = [i for i in range(len(one.classes)) if 2 <= int(np.sum(one.labels == i)) <= len(one) - 2]
    return {one.classes[i]: delong(one.labels == i, one.probabilities[:, i], two.probabilities[:, i]) for i in present}
