"""Baselines that see no anatomy: the nearest thumbnail, and facts of the file; baselines.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tumorlens.core.errors import RunError
from tumorlens.core.files import csv_line, writing
from tumorlens.data.index import ImageRecord
from tumorlens.data.near_duplicates import nearest_reference
from tumorlens.data.shortcuts import file_facts_tree
from tumorlens.readers.pixels import Pixels

#: Columns of baselines.csv after path and label.
BASELINES = ("nn", "nn_mirror", "file_facts")


def write_baselines(path: Path, lines: Sequence[Sequence[str]]) -> None:
    """Write baselines.csv: path, label and the prediction of each baseline."""
    with writing(path) as file:
        file.write("".join(csv_line(line) for line in (("path", "label", *BASELINES), *lines)).encode())


def read_baselines(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the predictions in baselines.csv by path; empty if there is no file, as in a run of an older version.

    Raises
    ------
    RunError
        The file is damaged.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {r["path"]: tuple(r[name] for name in BASELINES) for r in csv.DictReader(file, strict=True)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}).", cure="Delete it and run the same command again.") from None


def baselines(rows: Sequence[ImageRecord], thumbnails: Pixels) -> list[tuple[str, ...]]:
    """Predictions of each baseline for the test images: lines (path, label, nn, nn_mirror, file_facts).

    `nn` is the label of the nearest thumbnail of training and validation; `nn_mirror` also compares
    mirrored left to right; `file_facts` is a small decision tree on facts of the file, fitted to the same images.

    Parameters
    ----------
    rows
        All images of the data set, with their split.
    thumbnails
        uint8 [rows, 32, 32].
    """
    test = np.array([row.split == "test" for row in rows], bool)
    reference = np.array([row.split in ("train", "validation") for row in rows], bool)
    labels = np.array([row.label for row in rows])
    direct, mirrored = nearest_reference(thumbnails, test, reference)
    facts = file_facts_tree(rows, reference, test)
    paths = [row.path for row in rows if row.split == "test"]
    return list(
        zip(paths, labels[test].tolist(), labels[direct].tolist(), labels[mirrored].tolist(), facts, strict=True)
    )
