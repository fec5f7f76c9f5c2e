"""Test accuracy without the leak: the same predictions, scored on subsets of the test images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.core.text import SIGNIFICANT, listed, percent
from tumorlens.data.baselines import BASELINES
from tumorlens.data.frozen import BELOW_COARSE, TWIN_FREE, VERSION, frozen_lists
from tumorlens.data.index import ImageRecord
from tumorlens.data.near_duplicates import COARSE, THRESHOLD
from tumorlens.data.patients import shared_test_images
from tumorlens.evaluation.bootstrap import bootstrap_accuracy
from tumorlens.evaluation.metrics import measure
from tumorlens.evaluation.predictions import Predictions
from tumorlens.evaluation.statistics import mcnemar, wilson

#: Title of each subset of the test images; the last only if patients are named, and some are in several splits.
SUBSETS = {
    "official": "all test images",
    "with_twin": "with a twin among the training images",
    "twin_free": "without a twin",
    "below_0.95": "most similar training image below 0.95",
    "other_patients": "of patients with no image in training or validation",
}
CURVE = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8)
_FEW = 20  # images, below which the curve ends: an accuracy on so few is uninformative

Classes = npt.NDArray[np.int64]


def leakage(
    rows: Sequence[ImageRecord], predictions: Mapping[str, Predictions], baselines: Mapping[str, Sequence[str]]
) -> Json:
    """Score each configuration and baseline on each subset of the test images.

    Parameters
    ----------
    rows
        Rows of index.csv, with group and similarity.
    predictions
        By configuration, for the same test images.
    baselines
        Predicted label by path, then by `nn`, `nn_mirror` and `file_facts`, from `read_baselines`; may be empty.

    Returns
    -------
    dict
        `threshold`; `frozen_lists`, as `without_twins` returns it; `parts`: the subsets, each with its `title`,
        `n`, `classes` (images of each), and under
        `configurations` and `baselines` n, correct, accuracy, Wilson's `interval` (images independent),
        `group_interval` (whole groups resampled; None for fewer than two groups), `macro_f1`,
        `macro_recall`, and `recall` by class (None without images). `curve`: accuracy on the test images whose
        largest similarity to a training or validation image is below each of a series of thresholds; None for
        fewer than 20 images. `as_good`: from `as_good_as`, on all test images, for the baselines and the largest class
        of the images trained on.
    """
    test = {row.path: row for row in rows if row.split == "test"}
    paths = sorted(test)
    classes = next(iter(predictions.values())).classes
    labels = np.array([classes.index(test[p].label) for p in paths])
    groups = np.array([test[p].group for p in paths])
    similarity = np.array([-1.0 if test[p].similarity is None else test[p].similarity for p in paths])
    predicted = {name: _on_test(found, paths) for name, found in predictions.items()}
    by_baseline = {
        name: np.array([classes.index(baselines[p][i]) for p in paths]) for i, name in enumerate(BASELINES) if baselines
    }
    of_path, version = without_twins(rows)
    free, below = np.array([of_path[p] for p in paths]).T
    masks = {"official": np.ones(len(paths), bool), "with_twin": ~free, "twin_free": free, "below_0.95": below}
    if shared := shared_test_images(rows):
        masks["other_patients"] = np.array([p not in shared for p in paths])
    subsets: Json = {}
    for key, mask in masks.items():
        subsets[key] = {
            "title": SUBSETS[key],
            "n": int(mask.sum()),
            "classes": {c: int(np.sum(labels[mask] == i)) for i, c in enumerate(classes)},
        }
        for kind, by_name in (("configurations", predicted), ("baselines", by_baseline)):
            subsets[key][kind] = {
                name: _scores(labels[mask], found[mask], groups[mask], classes) if mask.any() else None
                for name, found in by_name.items()
            }
    kept = [similarity < level if level < 1 else np.ones(len(paths), bool) for level in CURVE]
    curve = {
        "similarity": list(CURVE),
        "n": [int(mask.sum()) for mask in kept],
        "accuracy": {
            name: [float(np.mean(found[m] == labels[m])) if m.sum() >= _FEW else None for m in kept]
            for name, found in {**predicted, **by_baseline}.items()
        },
    }
    trained = Counter(row.label for row in rows if row.split in ("train", "validation"))
    largest = classes.index(max(trained, key=lambda label: (trained[label], label))) if trained else 0
    as_good = as_good_as(labels, predicted, by_baseline | {"largest_class": np.full(len(paths), largest)})
    return {
        "threshold": THRESHOLD, "frozen_lists": version, "parts": subsets, "curve": curve, "as_good": as_good,
    }  # fmt: skip


def as_good_as(labels: Classes, networks: Mapping[str, Classes], baselines: Mapping[str, Classes]) -> list[Json]:
    """Each pair of a baseline and a network of which the baseline is not worse.

    That is: as many images or more are classified correctly, or McNemar's test, which takes images as independent,
    finds no difference (p of 0.05 or more).

    Parameters
    ----------
    labels
        int64 [n], true classes.
    networks, baselines
        int64 [n], predicted classes, by name.

    Returns
    -------
    list of dict
        `baseline`, `network`, the accuracy of each as `baseline_accuracy` and `network_accuracy`, and `p_value`.
    """
    found = []
    for (baseline, one), (network, two) in product(baselines.items(), networks.items()):
        right1, right2 = one == labels, two == labels
        p = mcnemar(right1, right2)["p_value"]
        if right1.sum() >= right2.sum() or p >= SIGNIFICANT:
            found.append({"baseline": baseline, "network": network, "baseline_accuracy": float(right1.mean()),
                          "network_accuracy": float(right2.mean()), "p_value": p})  # fmt: skip
    return found


def without_twins(rows: Sequence[ImageRecord]) -> tuple[dict[str, tuple[bool, bool]], str | None]:
    """Which test images have no twin among those trained on, and which are less similar than 0.95 to all of them.

    Parameters
    ----------
    rows
        Rows of index.csv, with similarity.

    Returns
    -------
    dict, str or None
        Both by path; the version of the frozen lists that name them if images and folders are version 1's, else None,
        and the similarity of thumbnails decides.
    """
    lists = frozen_lists(rows)
    flags = lists.test_flags() if lists else None
    if flags is None:
        cosine = {row.path: -1 if row.similarity is None else row.similarity for row in rows if row.split == "test"}
        return {path: (value < THRESHOLD, value < COARSE) for path, value in cosine.items()}, None
    flagged = zip(rows, (flags & TWIN_FREE > 0).tolist(), (flags & BELOW_COARSE > 0).tolist(), strict=True)
    return {row.path: (free, below) for row, free, below in flagged if row.split == "test"}, VERSION


def of_other_patients(predictions: Predictions, shared: set[str]) -> Json | None:
    """Metrics, as `measure` returns them, on the test images whose paths are not in `shared`; None if all are."""
    test = predictions.for_split("test")
    kept = test.take([i for i, path in enumerate(test.paths) if path not in shared])
    return measure(kept.labels, kept.probabilities, kept.classes) if len(kept) else None


def patients_opening(found: Json, counts: Json, names: Sequence[str]) -> list[str]:
    """The sentences that open a verdict if patients have images in several splits; empty if none has.

    Parameters
    ----------
    found
        From `leakage`.
    counts
        From `parted`.
    names
        Configurations, in order.
    """
    opening = []
    if counts["test_shared"]:
        subset, whole = found["parts"]["other_patients"], found["parts"]["official"]
        each = [
            f"{name}'s accuracy is {percent(subset['configurations'][name]['accuracy'], 1)} "
            f"({percent(whole['configurations'][name]['accuracy'], 1)} on all)"
            for name in names if subset["n"]
        ]  # fmt: skip
        others = f"on the {subset['n']:,} of other patients, {listed(each)}" if each else "none is left of others"
        opening.append(
            f"{counts['test_shared']:,} of the {counts['test']:,} patients in the test also have images in training or "
            f"validation; {counts['images']:,} of the {whole['n']:,} test images are theirs: {others}."
        )
    if counts["validation_shared"]:
        opening.append(
            f"{counts['validation_shared']:,} patient(s) have images in both training and validation, which chose the "
            "epoch."
        )
    return opening


def _on_test(predictions: Predictions, paths: Sequence[str]) -> Classes:
    """Predicted classes of the test images at `paths`."""
    test = predictions.for_split("test")
    found = dict(zip(test.paths, test.predicted.tolist(), strict=True))
    if missing := [path for path in paths if path not in found]:
        raise DataError(
            f"{missing[0]!r} is in index.csv but not in predictions.csv.", cure="Run `tumorlens evaluate` again."
        )
    return np.array([found[path] for path in paths], np.int64)


def _scores(labels: Classes, predicted: Classes, groups: npt.NDArray[np.str_], classes: Sequence[str]) -> Json:
    right = labels == predicted
    _, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=0.0
    )
    present = support > 0
    return {
        "n": len(right),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "interval": list(wilson(int(right.sum()), len(right))),
        "group_interval": list(bootstrap_accuracy(right, groups)) if len(np.unique(groups)) > 1 else None,
        "macro_f1": float(np.mean(f1[present])),
        "macro_recall": float(np.mean(recall[present])),
        "recall": {c: float(recall[i]) if present[i] else None for i, c in enumerate(classes)},
    }


def sentence(found: Json, names: Sequence[str], whole: str) -> str:
    """The leak in one sentence, for the configurations in order; `whole` names all test images."""
    subsets = found["parts"]
    n, leaked, free = (subsets[key]["n"] for key in ("official", "with_twin", "twin_free"))
    if not leaked:
        return "No test image has a twin among the training images."
    lists = f" (frozen lists {found['frozen_lists']})" if found.get("frozen_lists") else ""
    text = f"{leaked:,} of the {n:,} test images have a twin among the training images{lists}"
    if not free:
        return text + ": none is left to test on without a twin."
    shown = []
    for name in names:
        score, official = (subsets[key]["configurations"][name] for key in ("twin_free", "official"))
        interval = [percent(value, 1) for value in score["group_interval"] or score["interval"]]
        difference = _difference(score["accuracy"], official["accuracy"])
        expected = same_mix(found, "twin_free", name)
        mix = ""
        if expected is not None and _difference(expected, official["accuracy"]) != "the same as":
            mix = f" ({_difference(score['accuracy'], expected)} there at the same class distribution)"
        accuracy = f"{percent(score['accuracy'], 1)} [{' – '.join(interval)}]"
        shown.append(f"{name}'s accuracy is {accuracy}, {difference} on {whole}{mix}")
    return f"{text}; on the {free:,} without one {', and '.join(shown)}."


def same_mix(found: Json, subset: str, name: str) -> float | None:
    """Accuracy expected on a subset from a configuration's, or baseline's, recalls on all test images.

    Subsets differ in their shares of easy classes; a difference from this value is not due to that. None if the
    subset is empty.
    """
    subsets = found["parts"]
    kind = "configurations" if name in subsets["official"]["configurations"] else "baselines"
    recall, counts = subsets["official"][kind][name]["recall"], subsets[subset]["classes"]
    n = sum(counts.values())
    return float(sum(counts[c] * recall[c] for c in counts if counts[c]) / n) if n else None


def _difference(accuracy: float, other: float) -> str:
    points = f"{100 * abs(accuracy - other):.1f}"
    return "the same as" if points == "0.0" else f"{points} points {'lower' if accuracy < other else 'higher'} than"
