"""The input of a run's report: its files, read and checked against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json
from tumorlens.core.run_folder import Run
from tumorlens.data.index import ImageRecord, read_index
from tumorlens.evaluation.predictions import read_predictions


class Prediction(NamedTuple):
    """A configuration's prediction for one image."""

    label: str
    probability: float
    """Of the predicted class, 0 to 1."""


@dataclass(frozen=True)
class ConfigurationResult:
    """One trained and evaluated configuration."""

    name: str
    training: Json
    history: Sequence[Json]
    """One record per epoch."""
    metrics: Json
    predictions: Mapping[str, Prediction]
    """By path, for the test images."""
    test: Json
    """Metrics of the test split."""
    labels: Mapping[str, str]
    """True class of each test image, by path."""


@dataclass(frozen=True)
class ReportData:
    """The files of a run."""

    root: Path
    study: Json
    audit: Json
    index: Sequence[ImageRecord]
    comparison: Json
    results: Sequence[ConfigurationResult]
    """In the order of the comparison; one or more."""
    classes: Sequence[str]
    """In the order of the confusion matrices."""
    labels: Mapping[str, str]
    """True class of each test image, by path."""


#: Keys that the report needs; a dot goes one level down.
_STUDY = (
    "tumorlens", "created", "command", "configurations", "classes", "dataset.name", "dataset.root", "dataset.licence",
    "dataset.fingerprint", "dataset.n_images", "dataset.counts", "dataset.comparable_to_published", "dataset.notes",
    "dataset.excluded", "split.train", "split.validation", "split.test", "split.seed", "split.source",
    "split.test_source", "weights.name", "weights.sha256", "weights.official", "weights.kind", "device.device",
    "device.why", "device.precision", "device.precision_why", "environment",
)  # fmt: skip
_TRAINING = (
    "learns", "learned_parameters", "solver", "learning_rate", "batch_size", "epochs_run", "max_epochs", "best_epoch",
    "stopped", "train_seconds", "prefix_seconds", "start", "checkpoint",
)  # fmt: skip
_METRICS = (
    "classes", "parts.test.n", "parts.test.correct", "parts.test.accuracy", "parts.test.accuracy_interval",
    "parts.test.confusion", "parts.test.per_class", "parts.test.macro", "parts.test.weighted", "parts.test.log_loss",
    "parts.test.brier", "parts.test.ece", "parts.test.reliability", "parts.test.roc", "parts.test.text",
)  # fmt: skip
_EPOCH = ("epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_COMPARISON = ("configurations", "published", "summary", "pairs", "verdict")
_PAIR = (
    "first", "second", "n", "first_errors", "second_errors", "both_wrong", "corrected", "introduced",
    "accuracy_difference", "mcnemar.p_value", "mcnemar.method", "corrected_images", "introduced_images",
)  # fmt: skip
_AGAIN = "It was edited or written by another version: run the study again, in another folder."


def read_report_data(run: Run) -> ReportData:
    """Read everything that the report needs.

    Raises
    ------
    RunError
        A file is missing, damaged or lacks a key, or files do not belong together; the cure names the command that
        writes them again.
    """
    study = _checked(run.study, run.read_study(), _STUDY, _AGAIN)
    comparison = _read_comparison(run, study)
    results = [_read_result(run, name) for name in comparison["configurations"]]
    for one in results[1:]:
        if one.metrics["classes"] != results[0].metrics["classes"] or one.labels != results[0].labels:
            raise RunError(
                f"{results[0].name} and {one.name} were tested on different images or classes.",
                cure=f"Evaluate both again: tumorlens evaluate {run.root}, then tumorlens compare {run.root}",
            )
    _check_pairs(run, comparison, {one.name: one for one in results})
    audit = _checked(run.audit, read_json(run.audit), ("unreadable", "same_content"), _AGAIN)
    index, first = read_index(run.index), results[0]
    return ReportData(run.root, study, audit, index, comparison, results, first.metrics["classes"], first.labels)


def _read_comparison(run: Run, study: Json) -> Json:
    cure = f"Write it again: tumorlens compare {run.root}"
    if not run.comparison.exists():
        evaluated = any(run.metrics(c["name"]).exists() for c in study["configurations"])
        first = "" if evaluated else f"tumorlens evaluate {run.root}, then "
        raise RunError(f"{run.comparison} is missing.", cure=f"Write it first: {first}tumorlens compare {run.root}")
    comparison = _checked(run.comparison, read_json(run.comparison), _COMPARISON, cure)
    if not comparison["configurations"]:
        raise RunError(f"{run.comparison} names no configuration.", cure=cure)
    for row in comparison["summary"]:
        if missing := set(comparison["configurations"]) - set(row["values"]):
            raise RunError(f"{run.comparison} lacks {min(missing)} in {row['title']!r}.", cure=cure)
    for pair in comparison["pairs"]:
        _checked(run.comparison, pair, _PAIR, cure)
    return comparison


def _read_result(run: Run, name: str) -> ConfigurationResult:
    evaluate = f"tumorlens evaluate {run.root}"
    for file in (run.metrics(name), run.predictions(name)):
        if not file.exists():
            raise RunError(f"{file} is missing.", cure=f"Write it first: {evaluate}")
    training = _checked(run.training(name), read_json(run.training(name)), _TRAINING, _AGAIN)
    metrics = _checked(run.metrics(name), read_json(run.metrics(name)), _METRICS, f"Write it again: {evaluate}")
    test, classes = read_predictions(run.predictions(name)).for_split("test"), metrics["classes"]
    if list(test.classes) != classes:
        raise RunError(
            f"{run.predictions(name)} has the classes {list(test.classes)}, metrics.json {classes}.",
            cure=f"Write it again: {evaluate}",
        )
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (test.labels, test.predicted), 1)
    if confusion.tolist() != metrics["parts"]["test"]["confusion"]:
        raise RunError(
            f"{run.metrics(name)} and {run.predictions(name)} do not belong together: their confusion matrices differ.",
            cure=f"Write both again: {evaluate}",
        )
    predictions = {
        path: Prediction(classes[top], float(row[top]))
        for path, top, row in zip(test.paths, test.predicted.tolist(), test.probabilities, strict=True)
    }
    labels = {path: classes[label] for path, label in zip(test.paths, test.labels.tolist(), strict=True)}
    history = _read_history(run.history(name))
    return ConfigurationResult(name, training, history, metrics, predictions, metrics["parts"]["test"], labels)


def _check_pairs(run: Run, comparison: Json, results: Mapping[str, ConfigurationResult]) -> None:
    """The comparison must list the very images that predictions.csv does."""
    cure = f"Write it again: tumorlens compare {run.root}"
    for pair in comparison["pairs"]:
        right = []
        for name in (pair["first"], pair["second"]):
            if name not in results:
                raise RunError(f"{run.comparison} has a pair with {name!r}, which it does not name.", cure=cure)
            one = results[name]
            right.append({path for path, found in one.predictions.items() if found.label == one.labels[path]})
        expected = {"corrected": right[1] - right[0], "introduced": right[0] - right[1]}
        for kind, paths in expected.items():
            listed = [image["path"] for image in pair[f"{kind}_images"]]
            if sorted(listed) != sorted(paths) or pair[kind] != len(paths):
                raise RunError(
                    f"{run.comparison} has {pair[kind]} {kind} images from {pair['first']} to {pair['second']}, "
                    f"their predictions.csv {len(paths)}, or other ones.",
                    cure=cure,
                )


def _read_history(path: Path) -> list[Json]:
    history: list[Json] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            history.append(_checked(path, json.loads(line), _EPOCH, _AGAIN))
    except ValueError as error:  # not UTF-8, or not JSON
        raise RunError(f"{path}, line {len(history) + 1} is not valid JSON ({error}).", cure=_AGAIN) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure=_AGAIN) from None
    if not history:
        raise RunError(f"{path} is empty.", cure=_AGAIN)
    return history


def _checked(path: Path, value: Any, keys: Sequence[str], cure: str) -> Json:
    """`value` if it has all keys, else a RunError that names the first missing one."""
    for key in keys:
        at = value
        for name in key.split("."):
            if not isinstance(at, dict) or name not in at:
                raise RunError(f"{path} lacks {key!r}.", cure=cure)
            at = at[name]
    found: Json = value
    return found
