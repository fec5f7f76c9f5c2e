"""What is left of a test accuracy without the leak: the same answers, counted on parts of the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.core.text import percent
from tumorlens.data.baselines import BASELINES
from tumorlens.data.index import Row
from tumorlens.data.near_duplicates import COARSE, THRESHOLD
from tumorlens.evaluation.bootstrap import bootstrap_accuracy
from tumorlens.evaluation.predictions import Predictions
from tumorlens.evaluation.statistics import wilson

#: Parts of the test images by their largest similarity to an image that was learned from.
PARTS = {
    "official": "all test images",
    "with_twin": "with a twin among the images learned from",
    "twin_free": "without one",
    "below_0.95": "whose nearest such image is under 0.95",
}
CURVE = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.9, 0.88, 0.86, 0.84, 0.82, 0.8)
_FEW = 20  # images; under it a share says little, and the curve ends

Bools = npt.NDArray[np.bool_]


def leakage(
    rows: Sequence[Row], predictions: Mapping[str, Predictions], baselines: Mapping[str, Sequence[str]]
) -> Json:
    """Each configuration and baseline on each part of the test images.

    Parameters
    ----------
    rows
        Of index.csv, with group and similarity.
    predictions
        By configuration; all of the same test images.
    baselines
        By path: label by `nn`, `nn_mirror` and `file_facts`, as `read_baselines` gives them.

    Returns
    -------
    dict
        `threshold`; `parts`: for each, its `title`, `n`, `classes` (images of each), and under
        `configurations` and `baselines` n, correct, accuracy, Wilson's `interval` (images independent),
        `group_interval` (whole groups resampled; None with fewer than two groups), `macro_f1`,
        `macro_recall`, and `recall` by class (None without images). `curve`: accuracy on the test images whose
        similarity to any image learned from stays under each of a row of values; None for fewer than 20.
    """
    test = {row.path: row for row in rows if row.split == "test"}
    paths = sorted(test)
    classes = next(iter(predictions.values())).classes
    labels = np.array([classes.index(test[p].label) for p in paths])
    groups = np.array([test[p].group for p in paths])
    similarity = np.array([-1.0 if test[p].similarity is None else test[p].similarity for p in paths])
    answers = {name: _answers(found, paths) for name, found in predictions.items()}
    no_learning = {
        name: np.array([classes.index(baselines[p][i]) for p in paths]) for i, name in enumerate(BASELINES) if baselines
    }
    masks: dict[str, Bools] = {
        "official": np.ones(len(paths), bool),
        "with_twin": similarity >= THRESHOLD,
        "twin_free": similarity < THRESHOLD,
        "below_0.95": similarity < COARSE,
    }
    parts: Json = {}
    for key, mask in masks.items():
        found: Json = {
            "title": PARTS[key],
            "n": int(mask.sum()),
            "classes": {c: int(np.sum(labels[mask] == i)) for i, c in enumerate(classes)},
        }
        for kind, held in (("configurations", answers), ("baselines", no_learning)):
            found[kind] = {
                name: _scores(labels[mask], said[mask], groups[mask], classes) if mask.any() else None
                for name, said in held.items()
            }
        parts[key] = found
    return {"threshold": THRESHOLD, "parts": parts, "curve": _curve(similarity, labels, {**answers, **no_learning})}


def _answers(found: Predictions, paths: Sequence[str]) -> npt.NDArray[np.int64]:
    part = found.part("test")
    place = {path: i for i, path in enumerate(part.paths)}
    if missing := [path for path in paths if path not in place]:
        raise DataError(f"{missing[0]!r} is in index.csv but was not predicted.", cure="Evaluate the run anew.")
    return part.predicted[[place[path] for path in paths]]


def _scores(
    labels: npt.NDArray[np.int64], said: npt.NDArray[np.int64], groups: npt.NDArray[np.str_], classes: Sequence[str]
) -> Json:
    right = labels == said
    f1: list[float] = []
    recall: dict[str, float | None] = {}
    for i, name in enumerate(classes):
        own, called = labels == i, said == i
        if not own.any():
            recall[name] = None
            continue
        hit = int(np.sum(own & called))
        recall[name] = hit / int(own.sum())
        f1.append(2 * hit / (int(own.sum()) + int(called.sum())))
    recalls = [value for value in recall.values() if value is not None]
    return {
        "n": len(right),
        "correct": int(right.sum()),
        "accuracy": float(right.mean()),
        "interval": list(wilson(int(right.sum()), len(right))),
        "group_interval": list(bootstrap_accuracy(right, groups)) if len(np.unique(groups)) > 1 else None,
        "macro_f1": float(np.mean(f1)),
        "macro_recall": float(np.mean(recalls)),
        "recall": recall,
    }


def _curve(
    similarity: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], answers: Mapping[str, npt.NDArray[np.int64]]
) -> Json:
    kept = [similarity < level if level < 1 else np.ones(len(labels), bool) for level in CURVE]
    return {
        "similarity": list(CURVE),
        "n": [int(mask.sum()) for mask in kept],
        "accuracy": {
            name: [float(np.mean(said[m] == labels[m])) if m.sum() >= _FEW else None for m in kept]
            for name, said in answers.items()
        },
    }


def sentence(found: Json, names: Sequence[str], whole: str) -> str:
    """The leak in plain words, for the configurations in order; `whole` names all test images."""
    parts = found["parts"]
    n, leaked, free = (parts[key]["n"] for key in ("official", "with_twin", "twin_free"))
    if not leaked:
        return "No test image has a twin among the images learned from."
    text = f"{leaked:,} of the {n:,} test images have a twin among the images learned from"
    if not free:
        return text + ": none is left to test on without."
    said = []
    for name in names:
        score, official = parts["twin_free"]["configurations"][name], parts["official"]["configurations"][name]
        low, high = score["group_interval"] or score["interval"]
        share, low, high = (percent(value, 1) for value in (score["accuracy"], low, high))
        how = f"{_against(score['accuracy'], official['accuracy'])} on {whole}"
        same = same_mix(found, "twin_free", name)
        mix = ""
        if same is not None and _against(same, official["accuracy"]) != "as":
            mix = f" ({_against(score['accuracy'], same)} there at the same mix of classes)"
        said.append(f"{name}'s accuracy is {share} [{low} – {high}], {how}{mix}")
    return f"{text}; on the {free:,} without one {', and '.join(said)}."


def same_mix(found: Json, part: str, name: str) -> float | None:
    """The accuracy that a configuration's, or baseline's, recalls on all test images give at a part's mix of classes.

    Parts differ in how many images of easy classes they have; a difference to this is not due to that. None where the
    part is empty.
    """
    parts = found["parts"]
    kind = "configurations" if name in parts["official"]["configurations"] else "baselines"
    recall, counts = parts["official"][kind][name]["recall"], parts[part]["classes"]
    n = sum(counts.values())
    return float(sum(counts[c] * recall[c] for c in counts if counts[c]) / n) if n else None


def _against(accuracy: float, other: float) -> str:
    points = f"{100 * abs(accuracy - other):.1f}"
    if points == "0.0":
        return "as"
    return f"{points} points {'lower' if accuracy < other else 'higher'} than"
