"""Shortcuts: labels that facts of the file give away are found, others are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from index_rows import rows

from tumorlens.data.shortcuts import FACTS, file_facts_tree, shortcuts

N = 40


def test_a_fact_that_gives_the_label_away_is_found() -> None:
    found = [
        replace(row, width=20 if row.label == "a" else 9, group=row.path, split="test" if i % 4 == 0 else "train")
        for i, row in enumerate(rows({"a": N, "b": N}))
    ]
    result = shortcuts(found)
    assert result["majority"] == 0.5
    assert result["tree"]["accuracy"] == 1
    assert result["tree"]["recall"] == {"a": 1, "b": 1}
    assert list(result["alone"]) == list(FACTS)
    assert result["alone"]["width"] == result["alone"]["aspect"] == 1
    assert result["alone"]["height"] == pytest.approx(0.5, abs=0.1)
    assert result["size"] == {"size": [9, 9], "class": "a", "says": False, "accuracy": 1}
    training = np.array([row.split == "train" for row in found])
    assert file_facts_tree(found, training, ~training) == [row.label for row in found if row.split == "test"]


def test_too_few_groups_give_no_tree() -> None:
    found = [replace(row, group=row.label, split="train") for row in rows({"a": N, "b": N})]
    result = shortcuts(found)
    assert (result["tree"], result["alone"]) == (None, {})
    assert result["size"]["accuracy"] is None  # no test images
