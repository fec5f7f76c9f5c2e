"""One way from `--data` to a data set: fetched, indexed, identified and, where a study needs it, split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tumorlens.core.files import Json
from tumorlens.core.progress import Clock, log
from tumorlens.data.datasheets import Identification, fingerprint, identify
from tumorlens.data.fetch import fetch
from tumorlens.data.index import ImageRecord, Index, build_index
from tumorlens.data.layout import ImageFolder
from tumorlens.data.patients import parted
from tumorlens.data.protocols import Assignment, SplitOptions, assign
from tumorlens.data.splits import SPLITS


@dataclass(frozen=True, eq=False)
class Dataset:
    """An image folder whose files are all indexed, and which data set it is."""

    folder: ImageFolder
    index: Index
    identity: Identification

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about folders, what was left out, and classes that are copies of others."""
        return (*self.folder.notes, *self.index.copied_classes())

    def record(self) -> Json:
        """The section `dataset` of study.json."""
        sheet = self.identity.sheet
        return {
            "name": sheet.title if sheet else self.folder.root.name,
            "sheet": sheet.key if sheet else None,
            "root": str(self.folder.root.resolve()),
            "source": self.folder.source,
            "licence": sheet.licence if sheet else "",
            "fingerprint": fingerprint(row.sha256 for row in self.index.rows),
            "n_images": len(self.index.rows),
            "counts": self.index.counts(),
            "folders": {
                part: path.relative_to(self.folder.root).as_posix() for part, path in self.folder.parts().items()
            },
            "comparable_to_published": self.identity.comparable,
            "notes": [*self.identity.notes, *self.notes],
            "excluded": len(self.index.unreadable),
        }

    def audit_record(self) -> Json:
        """The sections of audit.json that need no split: files left out, files that differ only in name, identity."""
        identity = self.identity
        return {
            "unreadable": [asdict(u) for u in self.index.unreadable],
            "same_content": self.index.same_content(),
            "colour_images": sum(row.colour > 0.001 for row in self.index.rows),
            "datasheet": {
                "sheet": identity.sheet.key if identity.sheet else None,
                "exact": identity.exact,
                "comparable": identity.comparable,
                "notes": list(identity.notes),
                "missing": list(identity.missing),
                "extra": list(identity.extra),
            },
        }


@dataclass(frozen=True, eq=False)
class SplitDataset(Dataset):
    """A data set whose images are grouped and split under a protocol."""

    assignment: Assignment
    options: SplitOptions
    seed: int

    @property
    def rows(self) -> tuple[ImageRecord, ...]:
        """All images with their split, group and nearest training image."""
        return self.assignment.split.rows

    def split_record(self) -> Json:
        """The section `split` of study.json."""
        split, patients = self.assignment.split, self.assignment.patients
        return {
            **{name: split.count(name) for name in SPLITS},
            "seed": self.seed,
            "source": split.source,
            "test_source": split.test_source,
            "protocol": self.options.protocol,
            "left_out": self.assignment.left_out,
            "frozen_lists": self.assignment.groups.version,
            "patients": patients and patients.record() | {"parted": parted(split.rows)},
            "sha256": split_hash(split.rows),
        }


def open_dataset(
    data: str, *, cache: Path, seed: int = 0, clock: Clock | None = None, table: Path | None = None
) -> Dataset:
    """Fetch, index and identify a data set.

    Parameters
    ----------
    data
        `kaggle`, `phantom`, or the path of a zip or folder, as `fetch` takes it.
    cache
        Folder for extracted and generated images and for the index.
    seed
        Seed of generated slices.
    clock
        Receives the seconds of the steps `fetch_s` and `index_s`.
    table
        As `fetch` takes it.

    Raises
    ------
    DataError, FetchError, RunError, MissingExtraError
        As `fetch` and `build_index` raise them.
    """
    clock = clock or Clock()
    with clock.step("fetch_s"):
        folder = fetch(data, cache=cache, seed=seed, table=table)
    with clock.step("index_s"):
        index = build_index(folder, cache)
        rows = tuple(replace(row, patient=folder.patients.get(row.path, "")) for row in index.rows)
        index = replace(index, rows=rows)
        identity = identify(
            index.counts(),
            (row.sha256 for row in index.rows),
            (f"{row.part}/{row.label}/{Path(row.path).name}" for row in index.rows),
            generated=folder.generated,
        )
    return Dataset(folder, index, identity)


def open_split_dataset(
    data: str, options: SplitOptions, *, cache: Path, seed: int, clock: Clock, table: Path | None = None
) -> SplitDataset:
    """Fetch, index, identify, group and split a data set.

    Parameters
    ----------
    data, cache, table
        As `open_dataset` takes them.
    options
        Protocol, groups and folds.
    seed
        Seed of generated slices and of the split.
    clock
        Receives the seconds of the steps `fetch_s`, `index_s` and `twins_s`.

    Raises
    ------
    DataError, FetchError, RunError, MissingExtraError
        As `open_dataset` and `assign` raise them.
    """
    opened = open_dataset(data, cache=cache, seed=seed, clock=clock, table=table)
    for note in opened.notes:
        log.warning(f"Note: {note}")
    with clock.step("twins_s"):
        assignment = assign(opened.index, options, seed=seed)
    return SplitDataset(opened.folder, opened.index, opened.identity, assignment, options, seed)


def split_hash(rows: Sequence[ImageRecord]) -> str:
    """SHA-256, in hex, over each image's path and split, whatever the order of the rows."""
    lines = sorted(f"{row.path}\t{row.split}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
