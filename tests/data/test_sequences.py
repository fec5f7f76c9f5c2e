"""The estimator of MR sequence and plane, and what they give away of the class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from index_rows import rows

from tumorlens.data import sequences
from tumorlens.data.sequences import UNKNOWN, estimate, looks, sequence_tables

#: 42 thumbnails of training images of version 1 (CC0), with the labels that were given by eye.
FILE = Path(__file__).parent / "files" / "sequences.npz"


def test_known_images_are_recognised() -> None:
    with np.load(FILE) as known:
        found = estimate(known["thumbnails"])
        for estimates, kind in zip(found, ("sequence", "plane"), strict=True):
            assert np.mean(np.array(estimates) == known[kind]) > 0.9


def test_estimates_do_not_depend_on_brightness_contrast_or_the_other_images() -> None:
    with np.load(FILE) as known:
        thumbnails = known["thumbnails"]
    together = estimate(thumbnails)
    assert [estimate(one[None])[0][0] for one in thumbnails] == together[0]
    darker = estimate((thumbnails * 0.8).astype(np.uint8))
    assert np.mean(np.array(darker[0]) == together[0]) > 0.9
    assert darker[1] == together[1]


def test_what_is_no_slice_gives_numbers_and_an_estimate() -> None:
    nothing = np.zeros((2, 32, 32), np.uint8)
    assert np.isfinite(looks(nothing)).all()
    known = ("T1 with contrast", "T1", "T2", "FLAIR", "other", UNKNOWN)
    assert all(sequence in known for sequence in estimate(nothing)[0])
    assert estimate(nothing[:0]) == ([], [])


def test_a_sequence_that_gives_the_class_away_is_reported(monkeypatch) -> None:
    found = [replace(row, group=row.path) for row in rows({"glioma": 40, "notumor": 40, "pituitary": 20})]
    own = ["T2" if row.label == "notumor" else "T1" for row in found]
    own[-1] = UNKNOWN
    monkeypatch.setattr(sequences, "estimate", lambda _thumbnails: (own, ["axial"] * len(own)))
    tables = sequence_tables(found, np.zeros((len(found), 32, 32), np.uint8))
    assert tables["sequence_by_class"] == {
        "glioma": {"T1": 40, "T2": 0, UNKNOWN: 0},
        "notumor": {"T1": 0, "T2": 40, UNKNOWN: 0},
        "pituitary": {"T1": 19, "T2": 0, UNKNOWN: 1},
    }
    assert tables["class_from_sequence"]["majority"] == 0.4
    assert 0.79 <= tables["class_from_sequence"]["accuracy"] <= 0.8
    assert tables["class_from_sequence"]["tumour_or_not"]["accuracy"] >= 0.99
    assert tables["sequence_estimator"]["sequence"]["accuracy"] < 1
    assert "radiologists" in tables["sequence_estimator"]["fitted_to"]


def test_other_classes_and_few_groups() -> None:
    found = [replace(row, group="all") for row in rows({"a": 4, "b": 4})]
    assert sequence_tables(found, np.zeros((8, 32, 32), np.uint8))["class_from_sequence"] is None
    found = [replace(row, group=row.path) for row in found]
    assert sequence_tables(found, np.zeros((8, 32, 32), np.uint8))["class_from_sequence"]["tumour_or_not"] is None
