"""How well labels can be told from facts of the file, without a look at the brain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.files import Json
from tumorlens.data.index import ImageRecord

_DEPTH = 4
_FOLDS = 5
_SEED = 0

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.str_]
Indices = npt.NDArray[np.intp]

#: Facts by name; text is turned into the rank of its frequency.
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
    """Accuracy of small trees on facts of files, cross-validated over whole groups of images.

    Returns
    -------
    dict
        `tree`: accuracy and recall per class of a tree of depth 4 on all facts; `alone`: accuracy on each
        fact alone; `majority`: the share of the largest class; `size`: the rule "is the file of the
        commonest size?" learned on training and validation, as `says` one class or not, with its accuracy on
        test. None where there are too few groups for 5 folds.
    """
    labels = np.array([row.label for row in rows])
    classes, counts = np.unique(labels, return_counts=True)
    result: Json = {"majority": float(counts.max() / counts.sum()), "size": _size_rule(rows), "tree": None, "alone": {}}
    groups = np.array([row.group for row in rows])
    if min(len(np.unique(groups[labels == label])) for label in classes) < _FOLDS:
        return result
    x = _facts(rows)
    folds = _folds(labels, groups)
    predicted = _cross_validated(x, labels, folds)
    result["tree"] = {
        "accuracy": float(np.mean(predicted == labels)),
        "recall": {str(c): float(np.mean(predicted[labels == c] == c)) for c in classes},
        "depth": _DEPTH,
        "folds": _FOLDS,
    }
    for i, name in enumerate(FACTS):
        alone = _cross_validated(x[:, [i]], labels, folds)
        result["alone"][name] = float(np.mean(alone == labels))
    return result


def file_facts_tree(rows: Sequence[ImageRecord], learning: Bools, testing: Bools) -> list[str]:
    """Class of each testing image by a tree of depth 4 on facts of files, learned on the others."""
    x, labels = _facts(rows), np.array([row.label for row in rows])
    found: list[str] = _tree().fit(x[learning], labels[learning]).predict(x[testing]).tolist()
    return found


def _size_rule(rows: Sequence[ImageRecord]) -> Json:
    """Is a file of the commonest size of one class, or of all others? Which class and which way, learning says."""
    learning = [row for row in rows if row.split in ("train", "validation")]
    testing = [row for row in rows if row.split == "test"]
    sizes = [(row.width, row.height) for row in learning]
    counts = Counter(sizes)
    commonest = max(sorted(counts), key=counts.__getitem__)
    is_size = np.array([size == commonest for size in sizes])
    best: tuple[float, str, bool] | None = None
    for label in sorted({row.label for row in learning}):
        is_label = np.array([row.label == label for row in learning])
        for says in (True, False):
            # Against always guessing the commoner answer, so that a rare class does not win by being rare.
            gain = float(np.mean((is_size == says) == is_label)) - max(is_label.mean(), 1 - is_label.mean())
            if best is None or gain > best[0]:
                best = (gain, label, says)
    assert best is not None
    _, label, says = best
    right = [((row.width, row.height) == commonest) == (says == (row.label == label)) for row in testing]
    return {
        "size": list(commonest),
        "class": label,
        "says": says,
        "accuracy": float(np.mean(right)) if right else None,
    }


def _facts(rows: Sequence[ImageRecord]) -> Floats:
    columns = []
    for fact in FACTS.values():
        values: list[Any] = [fact(row) for row in rows]
        if isinstance(values[0], str):
            names, counts = np.unique(values, return_counts=True)
            rank = {str(name): float(i) for i, name in enumerate(names[np.argsort(-counts, kind="stable")])}
            values = [rank[value] for value in values]
        columns.append(np.array(values, np.float64))
    return np.stack(columns, 1)


def _folds(labels: Strings, groups: Strings) -> list[tuple[Indices, Indices]]:
    """(learning, testing) of each fold; made once, for dealing out thousands of groups takes longer than trees."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=_SEED)  # type: ignore[no-untyped-call]
    return list(folds.split(labels, labels, groups))  # type: ignore[no-untyped-call]


def _cross_validated(x: Floats, labels: Strings, folds: Sequence[tuple[Indices, Indices]]) -> Strings:
    predicted = np.empty_like(labels)
    for learning, testing in folds:
        predicted[testing] = _tree().fit(x[learning], labels[learning]).predict(x[testing])
    return predicted


def _tree() -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(  # type: ignore[no-untyped-call]
        max_depth=_DEPTH, min_samples_leaf=5, random_state=_SEED
    )
