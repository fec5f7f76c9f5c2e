"""Which data set it is: version 1, a partial or altered copy, version 2, generated, or one's own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import pytest

from tumorlens.data import datasheets as sheets
from tumorlens.data.datasheets import (
    PHANTOM,
    V1,
    V2,
    file_names,
    fingerprint,
    identify,
    published,
)

HASHES = [hashlib.sha256(bytes([i])).hexdigest() for i in range(20)]
NAMES = sorted(file_names())


def counted(names: Iterable[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for name in names:
        part, label, _ = name.split("/")
        counts.setdefault(part, {}).setdefault(label, 0)
        counts[part][label] += 1
    return counts


@pytest.fixture
def v1_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes that have version 1's fingerprint, as far as this test is concerned."""
    monkeypatch.setattr(sheets, "V1", dataclasses.replace(V1, fingerprint=fingerprint(HASHES)))
    return HASHES


def test_fingerprint_is_what_it_is_defined_as() -> None:
    first, second = "0" * 64, "f" * 64
    expected = hashlib.sha256(f"{first}\n{first}\n{second}\n".encode()).hexdigest()
    assert fingerprint([second, first, first]) == expected
    assert fingerprint([second, first]) != expected, "a file that is there twice counts twice"
    assert fingerprint(iter([first, second, first])) == expected, "order does not count"


def test_the_sheets() -> None:
    assert V1.n_images == 7023
    assert sum(V1.counts["Testing"].values()) == 1311
    assert V2.n_images == 7200
    assert V1.kaggle_handle.endswith("/versions/1")
    assert len(V1.fingerprint or "") == 64
    assert published("v1") == {"initial": 0.9268, "finetuned": 0.9870}
    assert published("v2") is published("phantom") is published(None) is None


def test_names_of_version_1() -> None:
    assert len(NAMES) == 7023
    assert counted(NAMES) == V1.counts
    for name in (
        "Training/glioma/Tr-glTr_0009.jpg",
        "Training/pituitary/Tr-pi_1456.jpg",
        "Testing/notumor/Te-no_0010.jpg",
    ):
        assert name in NAMES


def test_version_1_exactly(v1_hashes: list[str]) -> None:
    found = identify(V1.counts, v1_hashes, NAMES)
    assert found.sheet == sheets.V1
    assert found.exact
    assert found.comparable
    assert "bit for bit" in found.notes[0]


def test_version_1_with_altered_files() -> None:
    found = identify(V1.counts, HASHES, NAMES)
    assert found.sheet == V1
    assert not found.exact
    assert not found.comparable
    assert "encoded again" in found.notes[0]


def test_version_1_in_other_folders(v1_hashes: list[str]) -> None:
    names = [name.replace("Testing/", "Training/") for name in NAMES]
    found = identify(counted(names), v1_hashes, names)
    assert found.sheet == sheets.V1
    assert (found.exact, found.comparable) == (False, False)
    assert "Training/glioma: 1,621 of 1,321" in found.notes
    assert "Testing/glioma: 0 of 300" in found.notes


def test_version_2_does_not_compare() -> None:
    found = identify(V2.counts, HASHES, ["Training/glioma/x.jpg"])
    assert found.sheet == V2
    assert (found.exact, found.comparable) == (False, False)
    assert "by its counts" in found.notes[0]
    assert "is not comparable" in found.notes[1]


def test_a_partial_copy_names_what_is_missing_and_extra() -> None:
    gone = [f"Training/glioma/Tr-gl_{i:04d}.jpg" for i in range(100, 121)]
    names = [n for n in NAMES if n not in gone] + ["Testing/notumor/mine.jpg"]
    found = identify(counted(names), HASHES, names)
    assert found.sheet == V1
    assert (found.exact, found.comparable) == (False, False)
    assert found.missing == tuple(gone)
    assert found.extra == ("Testing/notumor/mine.jpg",)
    assert "partial or altered copy" in found.notes[0]
    assert "is not comparable" in found.notes[0]
    assert found.notes[1:3] == ("Training/glioma: 1,300 of 1,321", "Testing/notumor: 406 of 405")
    assert f"{gone[4]} and 16 more" in found.notes[3]
    assert "Testing/notumor/mine.jpg" in found.notes[4]


def test_a_renamed_file_is_seen_though_counts_agree() -> None:
    names = [*NAMES[1:], "Testing/glioma/Te-gl_9999.jpg"]
    assert counted(names) == V1.counts
    found = identify(V1.counts, HASHES, names)
    assert found.missing == (NAMES[0],)
    assert found.extra == ("Testing/glioma/Te-gl_9999.jpg",)
    assert not found.comparable


def test_a_file_in_another_class_folder_is_missing_and_extra() -> None:
    moved = "Training/glioma/Tr-gl_0500.jpg"
    names = [n if n != moved else moved.replace("/glioma/", "/notumor/") for n in NAMES]
    found = identify(counted(names), HASHES, names)
    assert found.missing == (moved,)
    assert found.extra == ("Training/notumor/Tr-gl_0500.jpg",)


def test_training_alone_is_a_partial_copy() -> None:
    names = [n for n in NAMES if n.startswith("Training/")]
    found = identify(counted(names), HASHES, names)
    assert found.sheet == V1
    assert not found.comparable
    assert "Testing/notumor: 0 of 405" in found.notes


@pytest.mark.parametrize(
    "counts",
    [
        {"Training": {"cat": 2000, "dog": 2000}},
        {"Training": {"glioma": 30, "meningioma": 30, "notumor": 30, "pituitary": 30}},
        {"Training": {"glioma": 5000, "meningioma": 1339, "notumor": 1595, "pituitary": 1457}},
        {},
    ],
)
@pytest.mark.parametrize("names", [(), ["Training/glioma/1.jpg", "Training/glioma/Tr-gl_0500.jpg"]])
def test_a_data_set_of_ones_own(counts: dict[str, Any], names: list[str]) -> None:
    found = identify(counts, HASHES, names)
    assert found.sheet is None
    assert (found.exact, found.comparable, found.missing, found.extra) == (False, False, (), ())
    assert "is not comparable" in found.notes[0]


def test_generated() -> None:
    found = identify(V1.counts, HASHES, (), generated=True)
    assert found.sheet == PHANTOM
    assert not found.comparable


def test_empty_classes_do_not_count(v1_hashes: list[str]) -> None:
    counts = {"Training": {**V1.counts["Training"], "other": 0}, "Testing": V1.counts["Testing"]}
    assert identify(counts, v1_hashes, NAMES).exact
