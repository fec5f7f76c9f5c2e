"""Coverage of 95 % intervals if images come in correlated groups, by simulation.

    python benchmarks/intervals.py

Each data set has 200 to 500 groups of unequal size. A group draws the probabilities of four outcomes
(both configurations correct, only the first, only the second, neither) from a Dirichlet distribution, and its
images draw theirs from these; either configuration's number of correct predictions in a group is thus
beta-binomial with an intraclass correlation of 0.5. A group's images are of one class; a wrong prediction is any
other class. Intervals that resample groups are compared with those that take images as independent. The same
with 50 groups shows the coverage with less data. Writes docs/results/bench-coverage.json.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.evaluation.bootstrap import (
    bootstrap_accuracy,
    bootstrap_difference,
    bootstrap_macro_f1,
    bootstrap_macro_f1_difference,
)
from tumorlens.evaluation.statistics import wilson

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
N_DATASETS = 2000
GROUPS = (200, 500)  # least and most in a data set
FEW_GROUPS, N_FEW = (50, 50), 1000  # groups, and data sets
MEAN_SIZE = 3  # images per group, geometric from 1
ICC = 0.5  # intraclass correlation
OUTCOMES = (0.87, 0.03, 0.07, 0.03)  # both right, only first, only second, neither: 90 % and 94 % accuracy
CLASSES = (0.3, 0.3, 0.15, 0.25)  # shares of groups
REPEATS = 1000
SEED = 0

Ints = npt.NDArray[np.int64]


def draw(random: np.random.Generator, groups: int) -> tuple[Ints, Ints, Ints, Ints]:
    """One data set: group, label and both predicted classes of each image, int64 [n] each."""
    sizes = random.geometric(1 / MEAN_SIZE, size=groups)
    chances = random.dirichlet(np.array(OUTCOMES) * (1 / ICC - 1), size=groups)  # (groups, 4)
    outcomes = random.multinomial(sizes, chances)  # (groups, 4), images of each outcome
    group = np.repeat(np.arange(groups), sizes)
    outcome = np.repeat(np.tile(np.arange(4), groups), outcomes.ravel())
    k = len(CLASSES)
    label = np.repeat(random.choice(k, p=CLASSES, size=groups), sizes)
    first, second = (
        np.where(np.isin(outcome, right), label, (label + random.integers(1, k, size=len(label))) % k)
        for right in ((0, 1), (0, 2))
    )
    return group, label, first, second


def true_macro_f1(accuracy: float) -> float:
    """Of an infinite data set: F1 = 2 hits / (support + predicted), each as a share of images."""
    support = np.array(CLASSES)
    predicted = support * accuracy + (1 - support) * (1 - accuracy) / (len(CLASSES) - 1)
    return float(np.mean(2 * support * accuracy / (support + predicted)))


def intervals(random: np.random.Generator, groups: int, seed: int) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """Name, true value and interval of each quantity measured on one data set."""
    group, label, first, second = draw(random, groups)
    right1, right2 = first == label, second == label
    accuracy1, accuracy2 = OUTCOMES[0] + OUTCOMES[1], OUTCOMES[0] + OUTCOMES[2]
    f1, k = true_macro_f1(accuracy2), len(CLASSES)
    yield "group_bootstrap", accuracy2, bootstrap_accuracy(right2, group, REPEATS, seed)
    yield "naive_wilson", accuracy2, wilson(int(right2.sum()), len(right2))
    gain = accuracy2 - accuracy1
    yield "group_bootstrap_difference", gain, bootstrap_difference(right1, right2, group, REPEATS, seed)
    yield "naive_difference", gain, bootstrap_difference(right1, right2, None, REPEATS, seed)
    yield "group_bootstrap_macro_f1", f1, bootstrap_macro_f1(label, second, k, group, REPEATS, seed)
    yield "naive_macro_f1", f1, bootstrap_macro_f1(label, second, k, None, REPEATS, seed)
    gain = f1 - true_macro_f1(accuracy1)
    difference = bootstrap_macro_f1_difference(label, first, second, k, group, REPEATS, seed)
    yield "group_bootstrap_macro_f1_difference", gain, difference
    difference = bootstrap_macro_f1_difference(label, first, second, k, None, REPEATS, seed)
    yield "naive_macro_f1_difference", gain, difference


def coverage(n: int, groups: tuple[int, int], seed: int) -> dict[str, float]:
    """Share of n intervals of each kind that contain the true value."""
    random = np.random.default_rng(seed)
    held: dict[str, int] = {}
    for i in range(n):
        number = int(random.integers(groups[0], groups[1] + 1))
        for name, truth, (low, high) in intervals(random, number, i):
            held[name] = held.get(name, 0) + (low <= truth <= high)
    return {f"{name}_coverage": count / n for name, count in held.items()}


def main() -> None:
    """Measure and write."""
    began = time.perf_counter()
    shares = coverage(N_DATASETS, GROUPS, SEED)
    content = {
        "name": "bench-coverage",
        "command": "python benchmarks/intervals.py",
        "figures": {f"coverage.{name.removesuffix('_coverage')}": share for name, share in shares.items()},
        "nominal": 0.95,
        "n_datasets": N_DATASETS,
        "groups": list(GROUPS),
        "icc": ICC,
        **shares,
        "few_groups": {"n_datasets": N_FEW, "groups": list(FEW_GROUPS), **coverage(N_FEW, FEW_GROUPS, SEED + 1)},
        "mean_group_size": MEAN_SIZE,
        "outcomes": list(OUTCOMES),
        "class_shares": list(CLASSES),
        "repeats": REPEATS,
        "seed": SEED,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench-coverage.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(shares | {"few_groups": content["few_groups"]}))


if __name__ == "__main__":
    main()
