"""Two or more configurations side by side, tested on the same images: comparison.json and its table.

Every text in the summary is derived from measurements, and each row says by which rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import Json
from tumorlens.evaluation.bootstrap import bootstrap_difference, bootstrap_macro_f1_difference
from tumorlens.evaluation.metrics import measure
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
    """Compare configurations on the test part.

    Parameters
    ----------
    names
        Configurations in the order of the table; the first is what the others are compared with.
    training, metrics, predictions
        Of each configuration, as in training.json, metrics.json and predictions.csv.
    published
        Published test accuracy (0 to 1) by configuration, or None where the data set is another one.
    groups
        Group of each image by path: near-duplicates or a patient's. Without, images count as independent.

    Returns
    -------
    dict
        As in comparison.json. All pairs are compared, the earlier configuration first; differences are
        second − first, with their bootstrap interval (95 %; `_group_` ones draw whole groups, the other one
        images). `auc` compares one-against-rest ROC areas by class (DeLong). Pictures in a pair carry the
        probability that each configuration gave to the class it predicted; the most confident errors come
        first. `mcnemar.p_holm` is corrected for the number of pairs (Holm), that of `auc` for pairs and classes.

    Raises
    ------
    DataError
        No or repeated names, or the configurations were not tested on the same images.
    RunError
        A training.json lacks something, or metrics and predictions do not belong together.
    """
    _check_inputs(names, training, metrics, predictions)
    tests = {name: _sorted_by_path(predictions[name].part("test")) for name in names}
    for name in names[1:]:
        _check_same_test(names[0], tests[names[0]], name, tests[name])
    pairs = [_pair(a, tests[a], b, tests[b], groups) for a, b in combinations(names, 2)]
    for pair, corrected in zip(pairs, holm([pair["mcnemar"]["p_value"] for pair in pairs]), strict=True):
        pair["mcnemar"]["p_holm"] = corrected
    areas = [area for pair in pairs for area in pair["auc"].values()]
    tested = [area for area in areas if area["p_value"] is not None]  # None where nothing varies but areas differ
    for area, corrected in zip(tested, holm([area["p_value"] for area in tested]), strict=True):
        area["p_holm"] = corrected
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
    if not names or len(set(names)) < len(names):
        raise DataError(f"Configurations to compare are {list(names)}.", cure="Name one or more, each once.")
    for name in names:
        for what, held in (("training", training), ("metrics", metrics), ("predictions", predictions)):
            if name not in held:
                raise DataError(f"There are no {what} of {name!r}.", cure="Train and evaluate it first.")
        if missing := [key for key in _TRAINING_KEYS if key not in training[name]]:
            raise RunError(
                f"training.json of {name!r} lacks {missing[0]!r}.",
                cure="It was written by another version or edited: train the configuration anew in another folder.",
            )
        part = predictions[name].part("test")
        right = int(np.sum(part.predicted == part.labels))
        test = metrics[name].get("parts", {}).get("test")
        if not len(part) or test is None:
            raise DataError(f"{name!r} has no test part.", cure="Evaluate it on at least one test image.")
        if (test.get("n"), test.get("correct")) != (len(part), right):
            raise RunError(
                f"metrics.json of {name!r} says {test.get('correct')} of {test.get('n')} right, "
                f"predictions.csv {right} of {len(part)}.",
                cure="Write both anew with `tumorlens evaluate`.",
            )


def _sorted_by_path(part: Predictions) -> Predictions:
    order = sorted(range(len(part)), key=lambda i: part.paths[i])
    paths, splits = tuple(part.paths[i] for i in order), tuple(part.splits[i] for i in order)
    return Predictions(paths, part.labels[order], part.probabilities[order], splits, part.classes)


def _check_same_test(first: str, one: Predictions, second: str, two: Predictions) -> None:
    """Both sorted by path; DataError names the first difference."""
    cure = "Evaluate both on the same data set and split."
    if one.classes != two.classes:
        raise DataError(f"{first} knows the classes {list(one.classes)}, {second} {list(two.classes)}.", cure=cure)
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
    """Differences of accuracy and macro-F1 with intervals that draw whole groups; None where there is one group."""
    labels, said1, said2 = one.labels, one.predicted, two.predicted
    n = len(one.classes)
    f1 = [float(measure(p.labels, p.probabilities, p.classes)["macro"]["f1"]) for p in (one, two)]
    result: Json = {
        "macro_f1_difference": f1[1] - f1[0],
        "accuracy_difference_group_interval": None,
        "macro_f1_difference_group_interval": None,
        "groups": None,
    }
    if groups is None:
        return result
    group = np.array([groups[path] for path in one.paths])
    result["groups"] = len(np.unique(group))
    if result["groups"] > 1:
        difference = bootstrap_difference(said1 == labels, said2 == labels, group)
        result["accuracy_difference_group_interval"] = list(difference)
        macro = bootstrap_macro_f1_difference(labels, said1, said2, n, group)
        result["macro_f1_difference_group_interval"] = list(macro)
    return result


def _areas(one: Predictions, two: Predictions) -> Json:
    """DeLong's comparison for each class that two or more test images have and two or more lack."""
    present = [i for i in range(len(one.classes)) if 2 <= int(np.sum(one.labels == i)) <= len(one) - 2]
    return {one.classes[i]: delong(one.labels == i, one.probabilities[:, i], two.probabilities[:, i]) for i in present}
