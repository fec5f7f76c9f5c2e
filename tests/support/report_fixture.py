"""A run's folder as a study leaves it, with numbers that fit together; computed here, by plain code."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tumorlens.core.files import write_json
from tumorlens.core.run_folder import Run
from tumorlens.data.index import ImageRecord, write_index

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
EPOCHS = 6


@dataclass(frozen=True)
class Slice:
    """One image of the made-up data set."""

    path: str
    label: str
    part: str
    split: str


def build_run(
    root: Path,
    *,
    names: Sequence[str] = ("initial", "finetuned"),
    classes: Sequence[str] = CLASSES,
    train: int = 6,
    validation: int = 2,
    test: int = 7,
    error_rates: Sequence[float] = (0.5, 0.25, 0.35),
    images: bool = True,
    file_name: str = "{label_number}-{i:03}.jpg",
    seed: int = 0,
) -> Run:
    """Write a whole run into `root`/run, and its images into `root`/data; `train` … `test` are per class."""
    run, data = Run(root / "run"), root / "data"
    slices = []
    for number, label in enumerate(classes):
        for i in range(train + validation + test):
            part = "Testing" if i >= train + validation else "Training"
            split = "train" if i < train else "validation" if i < train + validation else "test"
            name = file_name.format(label_number=number, i=i)
            slices.append(Slice(f"{part}/c{number}/{name}", label, part, split))
    if images:
        _draw(data, slices, seed)
    answers = {
        name: _answers(slices, classes, rate, random.Random(f"{seed} {name}"))
        for name, rate in zip(names, error_rates, strict=False)
    }
    for place, name in enumerate(names):
        _write_configuration(run, place, name, slices, classes, answers[name])
    tests = [i for i, s in enumerate(slices) if s.split == "test"]
    write_json(run.comparison, _comparison(names, slices, classes, answers, tests))
    write_json(run.study, _study(names, classes, slices, data))
    write_json(run.audit, {"unreadable": [], "same_content": [], "colour_images": 0, "datasheet": {}})
    write_index(
        run.index,
        [
            ImageRecord(
                s.path, "0" * 64, 900, 64, 64, "L", "", 0.0, 90.0, 0.5, f"{i}", s.label, s.part, s.split, f"group {i}"
            )
            for i, s in enumerate(slices)
        ],
    )
    return run


def change(path: Path, **values: object) -> None:
    """Set values in a JSON file; a double underscore goes one level down."""
    record = json.loads(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        at, *rest = key.split("__")
        target = record
        for name in rest:
            target, at = target[at], name
        target[at] = value
    write_json(path, record)


def _draw(data: Path, slices: Sequence[Slice], seed: int) -> None:
    """Grey discs on black: each image another radius and level."""
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for number, s in enumerate(slices):
        pixels = np.where(x**2 + y**2 < 0.3 + 0.5 * (number % 7) / 7, 90 + number % 120, 0)
        pixels = (pixels + noise.integers(0, 20, pixels.shape)).astype(np.uint8)
        target = data / s.path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target, "JPEG", quality=80)


def _answers(
    slices: Sequence[Slice], classes: Sequence[str], error_rate: float, chance: random.Random
) -> list[list[float]]:
    """Probabilities of each class for each image; the true one wins but for `error_rate` of them."""
    rows = []
    for s in slices:
        true = classes.index(s.label)
        top = true
        if chance.random() < error_rate:
            top = chance.choice([i for i in range(len(classes)) if i != true])
        weights = [chance.random() for _ in classes]
        weights[top] = sum(weights) * (1 + 2 * chance.random())
        rows.append([w / sum(weights) for w in weights])
    return rows


def _top(row: Sequence[float]) -> int:
    return max(range(len(row)), key=lambda i: row[i])


def _write_configuration(
    run: Run,
    place: int,
    name: str,
    slices: Sequence[Slice],
    classes: Sequence[str],
    rows: Sequence[Sequence[float]],
) -> None:
    run.folder(name).mkdir(parents=True, exist_ok=True)
    with run.predictions(name).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "predicted", "split", *(f"p_{c}" for c in classes)])
        for s, row in zip(slices, rows, strict=True):
            table.writerow([s.path, s.label, classes[_top(row)], s.split, *(f"{p:.9g}" for p in row)])
    parts = {}
    for split in ("train", "validation", "test"):
        chosen = [i for i, s in enumerate(slices) if s.split == split]
        labels = [classes.index(slices[i].label) for i in chosen]
        parts[split] = _measure(labels, [rows[i] for i in chosen], classes)
    write_json(run.metrics(name), {"configuration": name, "classes": list(classes), "parts": parts})
    epochs = [
        {
            "epoch": e,
            "train_loss": 1.2 * 0.6**e,
            "train_accuracy": 1 - 0.4 * 0.6**e,
            "validation_loss": 1.2 * 0.7**e + 0.02 * max(0, e - 4),
            "validation_accuracy": 1 - 0.45 * 0.7**e,
            "seconds": 1.5,
            "images_per_s": 640.0,
            "best": e <= 4,
        }
        for e in range(1, EPOCHS + 1)
    ]
    run.history(name).write_text("".join(json.dumps(e) + "\n" for e in epochs), encoding="utf-8")
    first = place == 0
    training = {
        "name": name,
        "learns": ["fc"] if first else ["layer3", "layer4", "fc"],
        "learned_parameters": 2052 if first else 10_495_492,
        "total_parameters": 11_178_564,
        "solver": "adam",
        "learning_rate": 0.001 if first else 0.0001,
        "batch_size": 32,
        "epochs_run": EPOCHS,
        "max_epochs": 60,
        "best_epoch": 4,
        "stopped": "early stopping: no better validation loss for 2 epochs",
        "best_validation_loss": 1.2 * 0.7**4,
        "best_validation_accuracy": 1 - 0.45 * 0.7**4,
        "train_seconds": 9.0,
        "prefix_seconds": 31.5,
        "images_per_s": 640.0,
        "frozen_prefix": "avgpool" if first else "layer2",
        "start": "imagenet" if first else "initial",
        "checkpoint": f"best_{place}.pth",
    }
    write_json(run.training(name), training)


def _wilson(correct: int, n: int) -> list[float]:
    z, p = 1.959964, correct / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]


def _measure(labels: Sequence[int], rows: Sequence[Sequence[float]], classes: Sequence[str]) -> dict[str, object]:
    k, n = len(classes), len(labels)
    predicted = [_top(row) for row in rows]
    confusion = [[0] * k for _ in range(k)]
    for true, said in zip(labels, predicted, strict=True):
        confusion[true][said] += 1
    per_class, roc = {}, {}
    for i, name in enumerate(classes):
        hit, support, called = confusion[i][i], sum(confusion[i]), sum(row[i] for row in confusion)
        precision, recall = hit / called if called else 0.0, hit / support if support else 0.0
        scored = sorted(((row[i], true == i) for row, true in zip(rows, labels, strict=True)), reverse=True)
        tp, curve, area, average = 0, [(0.0, 0.0)], 0.0, 0.0
        for rank, (_, positive) in enumerate(scored, 1):
            tp += positive
            average += positive * tp / rank / support
            curve.append(((rank - tp) / (n - support), tp / support))
            area += (curve[-1][0] - curve[-2][0]) * curve[-1][1]
        per_class[name] = {
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if hit else 0.0,
            "support": support,
            "roc_auc": area,
            "average_precision": average,
        }
        roc[name] = {"fpr": [x for x, _ in curve], "tpr": [y for _, y in curve]}
    keys = ("precision", "recall", "f1", "roc_auc", "average_precision")
    correct = sum(confusion[i][i] for i in range(k))
    sure = [(max(row), true == said) for row, true, said in zip(rows, labels, predicted, strict=True)]
    bins = []
    for b in range(15):
        inside = [(p, right) for p, right in sure if b / 15 < p <= (b + 1) / 15]
        if inside:
            mean, share = sum(p for p, _ in inside) / len(inside), sum(r for _, r in inside) / len(inside)
            bins.append({"low": b / 15, "high": (b + 1) / 15, "n": len(inside), "confidence": mean, "accuracy": share})
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "accuracy_interval": _wilson(correct, n),
        "confusion": confusion,
        "per_class": per_class,
        "macro": {key: sum(m[key] for m in per_class.values()) / k for key in keys},
        "weighted": {key: sum(m[key] * m["support"] for m in per_class.values()) / n for key in keys[:3]},
        "log_loss": -sum(math.log(row[true]) for row, true in zip(rows, labels, strict=True)) / n,
        "brier": sum(
            sum((p - (i == true)) ** 2 for i, p in enumerate(row)) for row, true in zip(rows, labels, strict=True)
        )
        / n,
        "ece": sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / n,
        "reliability": bins,
        "roc": roc,
        "text": "precision recall f1-score support\n"
        + "\n".join(f"{name} {m['precision']:.4f} {m['recall']:.4f}" for name, m in per_class.items()),
    }


def _comparison(
    names: Sequence[str],
    slices: Sequence[Slice],
    classes: Sequence[str],
    answers: dict[str, list[list[float]]],
    tests: Sequence[int],
) -> dict[str, object]:
    said = {name: {i: classes[_top(rows[i])] for i in tests} for name, rows in answers.items()}
    pairs = []
    for a, first in enumerate(names):
        for second in names[a + 1 :]:
            right = {name: {i for i in tests if said[name][i] == slices[i].label} for name in (first, second)}
            changed = {"corrected": right[second] - right[first], "introduced": right[first] - right[second]}
            pair: dict[str, object] = {
                "first": first,
                "second": second,
                "n": len(tests),
                "first_errors": len(tests) - len(right[first]),
                "second_errors": len(tests) - len(right[second]),
                "both_wrong": len(tests) - len(right[first] | right[second]),
                "accuracy_difference": (len(right[second]) - len(right[first])) / len(tests),
                "mcnemar": {"p_value": 0.0123, "statistic": 3.0, "method": "exact binomial"},
            }
            for kind, chosen in changed.items():
                pair[kind] = len(chosen)
                pair[f"{kind}_images"] = [
                    {
                        "path": slices[i].path,
                        "label": slices[i].label,
                        "first_predicted": said[first][i],
                        "second_predicted": said[second][i],
                        "first_probability": max(answers[first][i]),
                        "second_probability": max(answers[second][i]),
                    }
                    for i in sorted(chosen)
                ]
            pairs.append(pair)
    scores = {name: sum(said[name][i] == slices[i].label for i in tests) for name in names}
    published = {"initial": 0.9268, "finetuned": 0.9870}
    return {
        "configurations": list(names),
        "published": published,
        "summary": [
            {
                "key": "test_accuracy",
                "title": "Test accuracy",
                "values": {name: f"{100 * scores[name] / len(tests):.2f} %" for name in names},
                "rule": "Right answers among all test images.",
            },
            {"key": "epochs", "title": "Epochs run", "values": dict.fromkeys(names, "6 of 60"), "rule": "Counted."},
        ],
        "pairs": pairs,
        "verdict": f"{names[-1]} classifies {scores[names[-1]]} of {len(tests)} test images correctly.",
    }


def _study(names: Sequence[str], classes: Sequence[str], slices: Sequence[Slice], data: Path) -> dict[str, object]:
    counts: dict[str, dict[str, int]] = {"Training": {}, "Testing": {}}
    for s in slices:
        counts[s.part][s.label] = counts[s.part].get(s.label, 0) + 1
    sizes = {split: sum(s.split == split for s in slices) for split in ("train", "validation", "test")}
    return {
        "tumorlens": "0.1.0",
        "created": "2026-03-04T05:06:07+00:00",
        "command": "tumorlens study --data slices.zip --seed 0",
        "config": {},
        "configurations": [{"name": name} for name in names],
        "classes": list(classes),
        "dataset": {
            "name": "brain-tumor-mri-dataset, version 1",
            "sheet": "v1",
            "root": str(data),
            "source": "a folder",
            "licence": "CC0",
            "fingerprint": "ab" * 32,
            "n_images": len(slices),
            "counts": counts,
            "comparable_to_published": True,
            "notes": [],
            "excluded": 0,
        },
        "split": {**sizes, "seed": 0, "source": "85/15 stratified by seed", "test_source": "folder"},
        "weights": {
            "name": "ResNet18 IMAGENET1K_V1",
            "sha256": "f37072fd" * 8,
            "official": True,
            "kind": "imagenet",
            "note": "",
        },
        "device": {
            "device": "cpu",
            "why": "there is no CUDA device",
            "precision": "fp32",
            "precision_why": "the default on a CPU",
            "name": "some processor",
            "threads": 2,
        },
        "environment": {"python": "3.11.2", "torch": "2.15.0"},
        "git": {"commit": "0123abcd" * 5, "clean": True},
        "timing": {"index_s": 1.5, "prefix_s": 31.5, "total_s": 42.0},
        "peak_memory_gb": 1.234,
    }
