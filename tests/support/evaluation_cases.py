"""Predictions, trainings and comparisons made up for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tumorlens.evaluation.compare import compare
from tumorlens.evaluation.metrics import evaluate_predictions
from tumorlens.evaluation.predictions import Predictions
from tumorlens.inference.uncertainty.arrays import softmax

CLASSES = ("glioma", "meningioma", "notumor")
FOUR_CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


def correctness(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of two models is right, image by image, with these four counts."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return np.array(first), np.array(second)


def random_case(n: int, k: int = 4, seed: int = 0, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n, k] that fit them more or less."""
    random = np.random.default_rng(seed)
    labels = random.integers(k, size=n)
    logits = random.normal(size=(n, k)) * 1.5
    logits[np.arange(n), labels] += skill
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


def draws(n: int, k: int = 4, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature): that temperature calibrates them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, k))
    probabilities = softmax(logits, temperature)
    labels = (probabilities.cumsum(1) < rng.random((n, 1))).sum(1).clip(0, k - 1)
    return logits, labels


def random_predictions(n: int = 60, seed: int = 0) -> Predictions:
    """A third of the images in each split."""
    labels, p = random_case(n, seed=seed)
    splits = tuple(("train", "validation", "test")[i % 3] for i in range(n))
    paths = tuple(f"{'Testing' if s == 'test' else 'Training'}/{FOUR_CLASSES[y]}/{i:03}.jpg" for i, (s, y) in
                  enumerate(zip(splits, labels, strict=True)))  # fmt: skip
    return Predictions(paths, labels, p, splits, FOUR_CLASSES)


def with_errors(
    wrong: Mapping[str, set[int]], sizes: Mapping[str, int], classes: tuple[str, ...] = CLASSES
) -> Predictions:
    """Image i of a split is of class i modulo k; wrong ones get the next class, with falling confidence."""
    k = len(classes)
    paths, labels, rows, splits = [], [], [], []
    for split, n in sizes.items():
        for i in range(n):
            label = i % k
            guess = (label + (i in wrong.get(split, ()))) % k
            row = np.full(k, 0.0)
            row[guess] = 0.99 - 0.4 * i / n
            row[(guess + 1) % k] = 1 - row[guess]
            paths.append(f"{split}/{classes[label]}/{i:04}.jpg")
            labels.append(label)
            rows.append(row)
            splits.append(split)
    return Predictions(tuple(paths), np.array(labels), np.array(rows), tuple(splits), classes)


def training(**changes: Any) -> dict[str, Any]:
    """A training.json."""
    return {
        "learns": ["fc"],
        "learned_parameters": 2052,
        "total_parameters": 11_178_564,
        "solver": "adam",
        "epochs_run": 60,
        "max_epochs": 60,
        "best_epoch": 58,
        "stopped": "all 60 epochs ran",
        "best_validation_loss": 0.23456,
        "best_validation_accuracy": 0.9125,
        "train_seconds": 11.6,
        "prefix_seconds": 321.5,
        "frozen_prefix": "avgpool",
        "start": "imagenet",
        **changes,
    }


def compared(named: Mapping[str, Predictions], published=None, trainings=None):
    """The comparison of predictions by name."""
    metrics = {name: evaluate_predictions(p, name) for name, p in named.items()}
    trainings = trainings or {name: training() for name in named}
    return compare(list(named), trainings, metrics, named, published)


def on_test(n: int, **wrong: set[int]):
    """The comparison of configurations by their wrong test images out of n."""
    return compared({name: with_errors({"test": w}, {"test": n}) for name, w in wrong.items()})


def row(comparison, key):
    """The texts of one row of the summary, by configuration."""
    return next(r for r in comparison["summary"] if r["key"] == key)["values"]
