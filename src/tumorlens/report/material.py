"""What the report is made from: a run's files, read and checked against each other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json
from tumorlens.core.run_folder import Run
from tumorlens.evaluation.predictions import read_predictions


@dataclass(frozen=True)
class Answer:
    """What one configuration says about one image."""

    predicted: str
    probability: float
    """Of the predicted class, 0 to 1."""


@dataclass(frozen=True)
class Measured:
    """One trained and evaluated configuration."""

    name: str
    training: Json
    history: Sequence[Json]
    """One record an epoch, of training."""
    metrics: Json
    answers: Mapping[str, Answer]
    """By path, for the test part alone."""

    @property
    def test(self) -> Json:
        """Metrics of the test part."""
        found: Json = self.metrics["parts"]["test"]
        return found


@dataclass(frozen=True)
class Material:
    """A run as its files tell it."""

    root: Path
    study: Json
    audit: Json
    index: Sequence[Mapping[str, str]]
    """Rows of index.csv, as text."""
    comparison: Json
    measured: Sequence[Measured]
    """In the order of the comparison; one or more."""
    labels: Mapping[str, str]
    """True class of each test image, by path."""

    @property
    def classes(self) -> list[str]:
        """In the order of the confusion matrices."""
        found: list[str] = self.measured[0].metrics["classes"]
        return found


#: Keys without which there is no report; a dot goes one level down.
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


def read_material(run: Run) -> Material:
    """Read everything that the report needs.

    Raises
    ------
    RunError
        A file is missing, damaged or lacks something, or files do not belong together; the cure names
        the command that writes them anew.
    """
    again = "It was edited or written by another version: run the study anew, in another folder."
    study = _checked(run.study, run.read_study(), _STUDY, again)
    names = _names(run, study)
    comparison = read_json(run.comparison)
    _checked(run.comparison, comparison, _COMPARISON, _compare(run))
    for pair in comparison["pairs"]:
        _checked(run.comparison, pair, _PAIR, _compare(run))
    measured: list[Measured] = []
    labels: dict[str, str] = {}
    for name in names:
        one, its_labels = _measured(run, name, again)
        measured.append(one)
        labels = labels or its_labels
        if one.metrics["classes"] != measured[0].metrics["classes"] or its_labels != labels:
            raise RunError(
                f"{names[0]} and {name} were tested on different images or classes.",
                cure=f"Evaluate both anew: tumorlens evaluate {run.root}, then tumorlens compare {run.root}",
            )
        for row in comparison["summary"]:
            if name not in row["values"]:
                raise RunError(f"{run.comparison} says nothing about {name} in {row['title']!r}.", cure=_compare(run))
    _check_pairs(run, comparison, {one.name: one.answers for one in measured}, labels)
    audit = _checked(run.audit, read_json(run.audit), ("unreadable", "same_content"), again)
    index = _read_csv(run.index, ("path", "label", "split", "width", "height", "mode", "bytes"), again)
    return Material(run.root, study, audit, index, comparison, measured, labels)


def _check_pairs(
    run: Run, comparison: Json, answers: Mapping[str, Mapping[str, Answer]], labels: Mapping[str, str]
) -> None:
    """The comparison must tell of the very images that predictions.csv tells of."""
    for pair in comparison["pairs"]:
        right = []
        for name in (pair["first"], pair["second"]):
            if name not in answers:
                raise RunError(
                    f"{run.comparison} has a pair with {name!r}, which it does not name.", cure=_compare(run)
                )
            right.append({path for path, answer in answers[name].items() if answer.predicted == labels[path]})
        expected = {"corrected": right[1] - right[0], "introduced": right[0] - right[1]}
        for kind, paths in expected.items():
            listed = [image["path"] for image in pair[f"{kind}_images"]]
            if sorted(listed) != sorted(paths) or pair[kind] != len(paths):
                raise RunError(
                    f"{run.comparison} has {pair[kind]} {kind} images from {pair['first']} to {pair['second']}, "
                    f"their predictions.csv {len(paths)}, or other ones.",
                    cure=_compare(run),
                )


def _compare(run: Run) -> str:
    return f"Write it anew: tumorlens compare {run.root}"


def _names(run: Run, study: Json) -> list[str]:
    """Configurations of the comparison; RunError with the command to run where there is none."""
    if not run.comparison.exists():
        evaluated = any(run.metrics(c["name"]).exists() for c in study["configurations"])
        first = "" if evaluated else f"tumorlens evaluate {run.root}, then "
        raise RunError(f"{run.comparison} is missing.", cure=f"Write it first: {first}tumorlens compare {run.root}")
    names: list[str] = read_json(run.comparison).get("configurations", [])
    if not names:
        raise RunError(f"{run.comparison} names no configuration.", cure=f"Run: tumorlens compare {run.root}")
    return names


def _measured(run: Run, name: str, again: str) -> tuple[Measured, dict[str, str]]:
    """One configuration, and the labels of its test images."""
    evaluate = f"Write it anew: tumorlens evaluate {run.root}"
    for file in (run.metrics(name), run.predictions(name)):
        if not file.exists():
            raise RunError(f"{file} is missing.", cure=f"Write it first: tumorlens evaluate {run.root}")
    training = _checked(run.training(name), read_json(run.training(name)), _TRAINING, again)
    metrics = _checked(run.metrics(name), read_json(run.metrics(name)), _METRICS, evaluate)
    history = _read_history(run.history(name), again)
    answers, labels = _read_answers(run.predictions(name), metrics["classes"], evaluate)
    classes = metrics["classes"]
    confusion = [[0] * len(classes) for _ in classes]
    for path, answer in answers.items():
        confusion[classes.index(labels[path])][classes.index(answer.predicted)] += 1
    if confusion != metrics["parts"]["test"]["confusion"]:
        raise RunError(
            f"{run.metrics(name)} and {run.predictions(name)} do not belong together: their confusion matrices differ.",
            cure=f"Write both anew: tumorlens evaluate {run.root}",
        )
    return Measured(name, training, history, metrics, answers), labels


def _read_history(path: Path, cure: str) -> list[Json]:
    history: list[Json] = []
    for number, line in enumerate(_read_text(path, cure).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunError(f"{path}, line {number} is not valid JSON ({error}).", cure=cure) from None
        history.append(_checked(path, record, _EPOCH, cure))
    if not history:
        raise RunError(f"{path} is empty.", cure=cure)
    return history


def _read_answers(path: Path, classes: Sequence[str], cure: str) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers and labels of the test images in predictions.csv, by path."""
    test = read_predictions(path).for_split("test")
    if list(test.classes) != list(classes):
        raise RunError(f"{path} has the classes {list(test.classes)}, metrics.json {list(classes)}.", cure=cure)
    answers = {
        image: Answer(classes[top], float(row[top]))
        for image, top, row in zip(test.paths, test.predicted.tolist(), test.probabilities, strict=True)
    }
    return answers, {image: classes[label] for image, label in zip(test.paths, test.labels.tolist(), strict=True)}


def _read_csv(path: Path, columns: Sequence[str], cure: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_read_text(path, cure), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise RunError(f"{path}, line {reader.line_num}: {error}.", cure=cure) from None
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise RunError(f"{path} has no column {missing[0]!r}.", cure=cure)
    for row in rows:
        if None in row or None in row.values():
            raise RunError(f"{path}: the line of {row['path']!r} has too few or too many values.", cure=cure)
    return rows


def _read_text(path: Path, cure: str) -> str:
    try:
        # newline="": a file name may hold a line break, which csv has quoted
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", cure=cure) from None
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is not UTF-8 ({error}).", cure=cure) from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}).", cure="Check its permissions.") from None


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
