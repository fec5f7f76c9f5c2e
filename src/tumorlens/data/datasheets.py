"""Datasheets of known data sets, and which of them a folder of images is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TRAINING, VALIDATION, TESTING = "Training", "Validation", "Testing"  # folders of a data set, `part` in index.csv
_TUMOURS = ("glioma", "meningioma", "notumor", "pituitary")
_PAGE = "https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset"

_NOT_COMPARABLE = "The published result is not comparable."

Counts = Mapping[str, Mapping[str, int]]  # Training or Testing → class → images


@dataclass(frozen=True)
class Datasheet:
    """What is known about one data set."""

    key: str
    """Short name in files: `v1`, `v2`, `phantom`."""
    title: str
    url: str
    """Its page on the web; empty for generated images."""
    licence: str
    sources: tuple[str, ...]
    """Citation and licence of each collection that it was compiled from."""
    counts: Counts
    """Images by `Training` or `Testing`, and class; empty if they vary."""
    fingerprint: str | None
    """See `fingerprint()`; None if it is not known or varies."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know, one sentence each."""
    published: Mapping[str, float] | None = None
    """Published test accuracy (0 to 1) per configuration, only where it was measured on these images."""
    kaggle_handle: str = ""
    """What kagglehub downloads, with the version; empty if it is not on Kaggle or not used from there."""

    @property
    def n_images(self) -> int:
        return sum(n for part in self.counts.values() for n in part.values())


_SOURCES = (
    "figshare brain tumor dataset: Cheng, J. et al. (2015): Enhanced performance of brain tumor classification via "
    "tumor region augmentation and partition. PLoS ONE 10(10), e0140381. 3,064 T1 contrast-enhanced slices of "
    "233 patients. CC BY 4.0.",
    "SARTAJ: Bhuvaji, S. et al. (2020): Brain Tumor Classification (MRI). Kaggle. Licence as stated there.",
    "Br35H: Hamada, A. (2020): Br35H :: Brain Tumor Detection 2020. Kaggle. Licence as stated there.",
)

V1 = Datasheet(
    key="v1",
    title="brain-tumor-mri-dataset, version 1",
    url=f"{_PAGE}/versions/1",
    licence="CC0 as stated on Kaggle; parts CC BY 4.0",
    sources=_SOURCES,
    counts={
        TRAINING: {"glioma": 1321, "meningioma": 1339, "notumor": 1595, "pituitary": 1457},
        TESTING: {"glioma": 300, "meningioma": 306, "notumor": 405, "pituitary": 300},
    },
    fingerprint="22f952c107af2a93d8bed3bac8c0b75f0dfceeebaf28d814b1c7ee388df38a4d",
    notes=(
        "Many Testing images have a near-copy in Training, often mirrored: the official test accuracy "
        "overestimates the accuracy on new patients.",
        "There are no patient identifiers, and slices of one patient lie in both Training and Testing.",
    ),
    published={"initial": 0.9268, "finetuned": 0.9870},
    kaggle_handle="masoudnickparvar/brain-tumor-mri-dataset/versions/1",
)

V2 = Datasheet(
    key="v2",
    title="brain-tumor-mri-dataset, version 2",
    url=_PAGE,
    licence="CC0 as stated on Kaggle; parts CC BY 4.0",
    sources=_SOURCES,
    counts={TRAINING: dict.fromkeys(_TUMOURS, 1400), TESTING: dict.fromkeys(_TUMOURS, 400)},
    fingerprint=None,
    notes=("Other images than version 1, of February 2026: results on the two are not comparable.",),
)

PHANTOM = Datasheet(
    key="phantom",
    title="generated brain slices (phantom)",
    url="",
    licence="no images of patients; free to use",
    sources=(),
    counts={},
    fingerprint=None,
    notes=("Generated slices show that the software works; they say nothing about patients.",),
)

SHEETS = {sheet.key: sheet for sheet in (V1, V2, PHANTOM)}


@dataclass(frozen=True)
class Identification:
    """Which data set a folder holds."""

    sheet: Datasheet | None
    """None if the data set is not on record."""
    exact: bool
    """Whether every file is the known one, bit for bit."""
    comparable: bool
    """Whether published results were measured on exactly these images."""
    notes: tuple[str, ...]
    """Sentences for the reader."""
    missing: tuple[str, ...] = ()
    """Files of the known data set, as `Training/class/file`, that are not there."""
    extra: tuple[str, ...] = ()
    """Files that the known data set does not have."""


def published(key: str | None) -> Mapping[str, float] | None:
    """Published test accuracy per configuration for a datasheet's key, or None."""
    sheet = SHEETS.get(key or "")
    return sheet.published if sheet else None


def fingerprint(hashes: Iterable[str]) -> str:
    """One hash over all files of a data set, whatever their names and order.

    Parameters
    ----------
    hashes
        SHA-256 of each file's bytes, as 64 lower-case hex digits; a file that occurs twice counts twice.

    Returns
    -------
    str
        SHA-256, in hex, of the sorted hashes, each followed by a line feed.
    """
    return hashlib.sha256("".join(f"{h}\n" for h in sorted(hashes)).encode("ascii")).hexdigest()


def file_names() -> frozenset[str]:
    """All files of version 1 as `Training/class/file`; the names of other data sets are not known.

    In each class folder the files are numbered from 0 without a gap; the first ten carry `Tr` after the
    class: `Training/glioma/Tr-glTr_0000.jpg` … `Tr-glTr_0009.jpg`, `Tr-gl_0010.jpg` … `Tr-gl_1320.jpg`.
    """
    return frozenset(
        f"{part}/{label}/{part[:2]}-{label[:2]}{'Tr' if i < 10 else ''}_{i:04d}.jpg"
        for part, counts in V1.counts.items()
        for label, n in counts.items()
        for i in range(n)
    )


def identify(counts: Counts, hashes: Iterable[str], names: Iterable[str], *, generated: bool = False) -> Identification:
    """Identify a data set by counts, hashes and names.

    Parameters
    ----------
    counts
        Images by `Training` or `Testing`, and class.
    hashes
        SHA-256 of each file, in hex.
    names
        Each file as `Training/class/file`: most names of a partial copy are version 1's.
    generated
        Whether this package generated the images.

    Returns
    -------
    Identification
        `comparable` is true only for version 1, bit for bit.
    """
    counts = {part: {label: n for label, n in by.items() if n} for part, by in counts.items() if any(by.values())}
    same_files = fingerprint(hashes) == V1.fingerprint
    if same_files and counts == V1.counts:
        return Identification(V1, True, True, (f"This is {V1.title}, bit for bit: {V1.n_images:,} images.", *V1.notes))
    if generated:
        return Identification(PHANTOM, False, False, PHANTOM.notes)
    if counts == V2.counts:
        notes = (
            f"This is {V2.title}, by its counts ({V2.n_images:,} images; its fingerprint is not on record).",
            "The published result is not comparable: it is for version 1.",
        )
        return Identification(V2, False, False, notes)
    present, known = frozenset(names), file_names()
    missing, extra = tuple(sorted(known - present)), tuple(sorted(present - known))
    if counts == V1.counts and not missing:
        note = f"This has the counts of {V1.title}, but at least one file was altered, replaced or encoded again."
        return Identification(V1, False, False, (f"{note} {_NOT_COMPARABLE}",))
    if same_files:
        note = f"These are the files of {V1.title}, in other folders or under other names."
        listed: list[str] = []
    elif 2 * len(present & known) > len(present):
        note = f"This is a partial or altered copy of {V1.title}."
        listed = [*_named("missing", missing), *_named("that version 1 does not have", extra)]
    else:
        return Identification(None, False, False, (f"This data set is not on record. {_NOT_COMPARABLE}",))
    return Identification(
        V1, False, False, (f"{note} {_NOT_COMPARABLE}", *_differences(counts), *listed), missing, extra
    )


def _differences(counts: Counts) -> list[str]:
    """`Training/glioma: 1,300 of 1,321` for every folder whose count is not version 1's."""
    folders = {(part, label): n for part, by in V1.counts.items() for label, n in by.items()}
    here = {(part, label): n for part, by in counts.items() for label, n in by.items()}
    return [
        f"{part}/{label}: {here.get((part, label), 0):,} of {folders.get((part, label), 0):,}"
        for part, label in (*folders, *(k for k in here if k not in folders))
        if here.get((part, label), 0) != folders.get((part, label), 0)
    ]


def _named(what: str, files: tuple[str, ...]) -> list[str]:
    if not files:
        return []
    shown = ", ".join(files[:5]) + (f" and {len(files) - 5:,} more" if len(files) > 5 else "")
    return [f"Files {what} ({len(files):,}): {shown}."]
