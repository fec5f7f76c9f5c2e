"""Fit the estimator of MR sequence and plane to images that were labelled by eye, and measure it.

    python benchmarks/sequences.py --data FOLDER_OR_ZIP

--data is version 1 of the data set. The labels are in benchmarks/sequence_labels.csv, which says who gave them and how.
Writes src/tumorlens/data/sequences.json: the coefficients, and the accuracy in 10-fold cross-validation, whose folds
keep near-duplicates (thumbnails with a cosine of at least 0.95, direct or mirrored) together; and
docs/results/bench-sequences.json: that accuracy, and sequence and plane by class of all images.
"""

from __future__ import annotations

import argparse
import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tumorlens.core.files import cache_dir
from tumorlens.core.progress import Clock
from tumorlens.data import sequences
from tumorlens.data.dataset import open_split_dataset
from tumorlens.data.protocols import SplitOptions

LABELS = Path(__file__).with_name("sequence_labels.csv")
COEFFICIENTS = Path(sequences.__file__).with_name("sequences.json")
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "bench-sequences.json"
FOLDS = 10
SAME = 0.95
STRENGTH = 0.3  # inverse of the regularisation
ABOUT = "training images of version 1, labelled by eye by engineers, not radiologists (benchmarks/sequence_labels.csv)"


def groups_of(thumbnails: np.ndarray) -> np.ndarray:
    """Number of the group of near-duplicates of each thumbnail."""
    unit = []
    for turned in (thumbnails, thumbnails[:, :, ::-1]):
        flat = turned.reshape(len(turned), -1).astype(float)
        flat -= flat.mean(1, keepdims=True)
        unit.append(flat / np.linalg.norm(flat, axis=1, keepdims=True))
    similarity = np.maximum(unit[0] @ unit[0].T, unit[0] @ unit[1].T)
    return connected_components(similarity >= SAME)[1]


def classifier() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=5000))


def measured(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Cross-validated accuracy, of all and of those that are not `unknown`, and recall by name."""
    predicted, sure = np.empty_like(y), np.zeros(len(y), bool)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    warnings.filterwarnings("ignore", "The least populated class")
    for training, testing in folds.split(x, y, groups):
        model = classifier().fit(x[training], y[training])
        p = model.predict_proba(x[testing])
        predicted[testing] = model.classes_[p.argmax(1)]
        sure[testing] = p.max(1) >= sequences.UNKNOWN_BELOW
    right = predicted == y
    return {
        "n": len(y),
        "accuracy": round(float(right.mean()), 4),
        "answered": round(float(sure.mean()), 4),
        "accuracy_answered": round(float(right[sure].mean()), 4),
        "recall": {name: round(float(right[y == name].mean()), 4) for name in sorted(set(y.tolist()))},
        "labelled": {name: int((y == name).sum()) for name in sorted(set(y.tolist()))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    data = parser.parse_args().data
    dataset = open_split_dataset(data, SplitOptions(), cache=cache_dir(), seed=0, clock=Clock())
    index = dataset.index
    with LABELS.open() as file:
        labels = {row["sha256"]: row for row in csv.DictReader(line for line in file if not line.startswith("#"))}
    place = {row.sha256[:16]: i for i, row in enumerate(index.rows)}
    names = sorted(name for name, row in labels.items() if row["use"] == "fit")
    thumbnails = index.thumbnails[[place[name] for name in names]]
    x, groups = sequences.looks(thumbnails), groups_of(thumbnails)
    scale = StandardScaler().fit(x)
    content: dict[str, Any] = {
        "about": {"fitted_to": f"{len(names)} {ABOUT}", "folds": FOLDS, "unknown_below": sequences.UNKNOWN_BELOW}
    }
    for kind in ("sequence", "plane"):
        y = np.array([labels[name][kind] for name in names])
        known = y != "unsure"
        content["about"][kind] = measured(x[known], y[known], groups[known])
        model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(scale.transform(x[known]), y[known])
        content[kind] = {
            "names": model.classes_.tolist(),
            "weights": [[float(f"{w:.4g}") for w in row] for row in model.coef_],
            "bias": model.intercept_.round(4).tolist(),
        }
    for key, values in (("mean", scale.mean_), ("sd", scale.scale_)):
        content[key] = [float(f"{value:.5g}") for value in values]
    COEFFICIENTS.write_text(json.dumps(content) + "\n")
    sequences._models.cache_clear()
    test = sorted(name for name, row in labels.items() if row["use"] == "test")
    together = groups_of(index.thumbnails[[place[name] for name in (*names, *test)]])
    others = [
        name for name, group in zip(test, together[len(names) :], strict=True) if group not in together[: len(names)]
    ]
    estimates = sequences.estimate(index.thumbnails[[place[name] for name in others]])
    for kind, found in zip(("sequence", "plane"), estimates, strict=True):
        pairs = [(labels[name][kind], one) for name, one in zip(others, found, strict=True)]
        known = [(label, one) for label, one in pairs if label != "unsure"]
        answered = [label == one for label, one in known if one != sequences.UNKNOWN]
        content["about"][kind]["test"] = {"n": len(known), "answered": len(answered), "right": sum(answered)}
    COEFFICIENTS.write_text(json.dumps(content) + "\n")
    sequences._models.cache_clear()
    tables = sequences.sequence_tables(dataset.rows, index.thumbnails)
    found = tables["class_from_sequence"]
    figures = {
        "sequence.class.accuracy": found["accuracy"],
        "sequence.class.majority": found["majority"],
        "sequence.tumour_or_not.accuracy": found["tumour_or_not"]["accuracy"],
        "sequence.tumour_or_not.majority": found["tumour_or_not"]["majority"],
        "sequence.estimator.accuracy": content["about"]["sequence"]["accuracy"],
        "plane.estimator.accuracy": content["about"]["plane"]["accuracy"],
    }
    RESULTS.write_text(json.dumps({"name": "bench-sequences", "figures": figures, **tables}, indent=1) + "\n")
    print(json.dumps(content["about"]))


if __name__ == "__main__":
    main()
