"""Shortcuts: how well the label can be predicted from facts of the file, without looking at the brain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.data.index import ImageRecord
from tumorlens.data.near_duplicates import Bools
from tumorlens.data.splits import group_folds

_DEPTH = 4
_FOLDS = 5

Floats = npt.NDArray[np.float64]

#: Facts by name; text is replaced by its rank by frequency.
FACTS: dict[str, Callable[[ImageRecord], float | str]] = {
    "width": lambda r: r.width,
    "height": lambda r: r.height,
    "aspect": lambda r: r.width / r.height,
    "file size": lambda r: r.bytes,
    "bytes a pixel": lambda r: r.bytes / (r.width * r.height),
    "mode": lambda r: r.mode,
    "colour": lambda r: r.colour,
    "JPEG tables": lambda r: r.tables,
    "black border": lambda r: r.border,
    "mean brightness": lambda r: r.brightness,
}


def shortcuts(rows: Sequence[ImageRecord]) -> Json:
    """Accuracy of small decision trees on facts of files, cross-validated over whole groups of images.

    Returns
    -------
    dict
        `tree`: accuracy and recall per class of a tree of depth 4 on all facts; `alone`: accuracy on each
        fact alone; `majority`: the share of the largest class; `size`: the rule "is the file of the
        most common size?", fitted to training and validation, where `says` is whether that size means `class`
        or all others, with its accuracy on test. With too few groups for 5 folds `tree` is None and `alone` empty.
    """
    from sklearn.model_selection import cross_val_predict

    labels = np.array([row.label for row in rows])
    classes, counts = np.unique(labels, return_counts=True)
    result: Json = {"majority": float(counts.max() / counts.sum()), "size": _size_rule(rows), "tree": None, "alone": {}}
    groups = np.array([row.group for row in rows])
    if min(len(np.unique(groups[labels == label])) for label in classes) < _FOLDS:
        return result
    x = _facts(rows)
    folds = group_folds(_FOLDS, labels, groups, seed=0)  # once: this takes longer than the trees
    predicted = cross_val_predict(_tree(), x, labels, cv=folds)
    result["tree"] = {
        "accuracy": float(np.mean(predicted == labels)),
        "recall": {str(c): float(np.mean(predicted[labels == c] == c)) for c in classes},
        "depth": _DEPTH,
        "folds": _FOLDS,
    }
    for i, name in enumerate(FACTS):
        alone = cross_val_predict(_tree(), x[:, [i]], labels, cv=folds)
        result["alone"][name] = float(np.mean(alone == labels))
    return result


def file_facts_tree(rows: Sequence[ImageRecord], training: Bools, testing: Bools) -> list[str]:
    """Class of each testing image, by a decision tree of depth 4 on facts of files fitted to the training images."""
    x, labels = _facts(rows), np.array([row.label for row in rows])
    return [str(label) for label in _tree().fit(x[training], labels[training]).predict(x[testing])]


def _size_rule(rows: Sequence[ImageRecord]) -> Json:
    """The best rule "images of the most common size are of this class" or "are not", as `shortcuts` describes it."""
    training = [row for row in rows if row.split in ("train", "validation")]
    testing = [row for row in rows if row.split == "test"]
    sizes = [(row.width, row.height) for row in training]
    counts = Counter(sizes)
    commonest = max(sorted(counts), key=counts.__getitem__)
    is_size = np.array([size == commonest for size in sizes])

    def gain(rule: tuple[str, bool]) -> float:
        """Over always guessing the more frequent answer, so that a rare class does not win by being rare."""
        is_label = np.array([row.label == rule[0] for row in training])
        return float(np.mean((is_size == rule[1]) == is_label) - max(is_label.mean(), 1 - is_label.mean()))

    rules = [(label, says) for label in sorted({row.label for row in training}) for says in (True, False)]
    label, says = max(rules, key=gain)
    right = [((row.width, row.height) == commonest) == (says == (row.label == label)) for row in testing]
    return {
        "size": list(commonest),
        "class": label,
        "says": says,
        "accuracy": float(np.mean(right)) if right else None,
    }


def _facts(rows: Sequence[ImageRecord]) -> Floats:
    """float64 [rows, facts]."""
    columns = []
    for fact in FACTS.values():
        values: list[Any] = [fact(row) for row in rows]
        if isinstance(values[0], str):
            names, counts = np.unique(values, return_counts=True)
            rank = {str(name): float(i) for i, name in enumerate(names[np.argsort(-counts, kind="stable")])}
            values = [rank[value] for value in values]
        columns.append(np.array(values, np.float64))
    return np.stack(columns, 1)


def _tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(  # type: ignore[no-untyped-call]
        max_depth=_DEPTH, min_samples_leaf=5, random_state=0
    )
