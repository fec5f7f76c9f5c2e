"""Patients, or other groups that the user names: by a CSV file, by a pattern of file names, or by folders.

No split of any protocol separates the images of one patient, except where `Training/` and `Testing/` were given so.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tumorlens.core.errors import DataError
from tumorlens.core.files import Json
from tumorlens.data.columns import check_pattern, match_paths, read_column
from tumorlens.data.index import ImageRecord, Index

FEWEST_FOLDERS = 10  # below the classes of the whole data set, from which they are taken as patients
#: Names of folders that sort the slices of a class rather than its patients.
_NOT_PATIENTS = re.compile(
    r"(ax|axial|tra|transversal|cor|coronal|sag|sagittal|t1\w*\+?|t2\w*|ce|flair|pd|dwi|adc|swi|mra?|ct|"
    r"images?|imgs?|masks?|labels?|png|jpe?g|train(ing)?|val(id(ation)?)?|test(ing)?|augmented|original)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Patients:
    """The patient of each image."""

    names: tuple[str, ...]
    """In the order of the rows; empty for an image that belongs to no named patient and forms a group of its own."""
    source: str
    """`file`, `pattern`, `folders` or `index`."""
    detail: str
    """The file, the pattern, or an example of a folder."""
    unknown: int = 0
    """Lines of the file that name no image."""
    joined_from: float | None = None
    """Similarity from which near-duplicates join the groups of patients; None if they do not."""

    @property
    def n(self) -> int:
        """Number of patients."""
        return len(set(self.names) - {""})

    @property
    def unnamed(self) -> int:
        """Number of images without a patient."""
        return self.names.count("")

    def lines(self) -> list[str]:
        """What the log reports, one line each."""
        shown = {
            "file": f"Patients from --groups {self.detail}",
            "pattern": f"Patients from file names by --group-pattern '{self.detail}'",
            "folders": f"Folders below the classes are taken as patients, such as {self.detail} "
            "(--no-group-folders ignores them)",
            "index": f"Patients from {self.detail}",
        }[self.source]
        lines = [f"{shown}: {self.n:,}."]
        if self.unnamed:
            lines.append(f"{self.unnamed:,} image(s) belong to no patient; each forms a group of its own.")
        if self.unknown:
            lines.append(f"{self.unknown:,} line(s) of {self.detail} name no image of this data set and are ignored.")
        return lines

    def record(self) -> Json:
        """As the section `split` of study.json holds it."""
        return {
            "source": self.source, "detail": self.detail, "n": self.n, "images_without": self.unnamed,
            "unknown_lines": self.unknown, "joined_from": self.joined_from,
        }  # fmt: skip


def find_patients(
    index: Index, *, file: Path | None = None, pattern: str | None = None, folders: bool = True
) -> Patients | None:
    """The patients that the user named; None if there are none.

    Parameters
    ----------
    file
        CSV file with a column of images and one of patients.
    pattern
        Regular expression with one group, which is searched for in the name of each file.
    folders
        Whether folders below the classes are taken as patients if there are ten or more.

    Raises
    ------
    DataError
        The file cannot be read, names no image, or leaves an image without a group; the pattern matches no name.
    ConfigError
        The pattern is not valid.
    """
    if file is not None:
        return _from_file(index, file)
    if pattern is not None:
        return _from_pattern(index, pattern)
    if any(row.patient for row in index.rows):
        return Patients(tuple(row.patient for row in index.rows), "index", "the data set's table")
    return folder_patients(index.rows) if folders else None


def _from_file(index: Index, file: Path) -> Patients:
    listed = read_column(file, "group")
    found, unknown = match_paths([row.path for row in index.rows], listed, f"--groups {file}")
    unreadable = {skipped.path for skipped in index.unreadable}
    unknown = [key for key in unknown if key not in unreadable]
    if not found:
        raise DataError(
            f"None of the {len(listed):,} lines of --groups {file} names an image of {index.root}; the first is "
            f"{next(iter(listed), '')!r}, an image is {index.rows[0].path!r}.",
            cure="Give paths relative to the data set's root, file names, or file names without suffix.",
        )
    if missing := [row.path for row in index.rows if not found.get(row.path)]:
        raise DataError(
            f"--groups {file} gives {len(missing)} image(s) no group, first {missing[0]!r}.",
            cure="Give every image a group: its patient.",
        )
    return Patients(tuple(found[row.path] for row in index.rows), "file", str(file), len(unknown))


def _from_pattern(index: Index, pattern: str) -> Patients:
    compiled = check_pattern(pattern)
    names = [unicodedata.normalize("NFC", PurePosixPath(row.path).name) for row in index.rows]
    found = tuple((match[1] or "") if (match := compiled.search(name)) else "" for name in names)
    if not any(found):
        raise DataError(
            f"--group-pattern '{pattern}' matches none of the {len(names):,} file names, such as {names[0]!r}.",
            cure="Try it on one name; ^ is the beginning of the name without its folder.",
        )
    return Patients(found, "pattern", pattern)


def folder_patients(rows: Sequence[ImageRecord]) -> Patients | None:
    """Patients from folders below the classes; None if there are fewer than ten.

    Folders of one name are one patient, in whatever class or part of the data set they lie. Folders named after
    sequences, planes or masks are passed over: the patient may lie below or above them.
    """
    below = [_folder_below_class(row) for row in rows]
    folders = {(row.label, name) for row, name in zip(rows, below, strict=True) if name}
    return Patients(tuple(below), "folders", "/".join(min(folders))) if len(folders) >= FEWEST_FOLDERS else None


def _folder_below_class(row: ImageRecord) -> str:
    folders = [unicodedata.normalize("NFC", name) for name in PurePosixPath(row.path).parts[:-1]]
    label = unicodedata.normalize("NFC", row.label)
    place = folders.index(label) + 1 if label in folders else len(folders)
    return next((name for name in folders[place:] if not _NOT_PATIENTS.fullmatch(name)), "")


def in_both_parts(rows: Sequence[ImageRecord], patients: Patients) -> list[str]:
    """One line if patients have images in both `Training/` and `Testing/`; empty if none has."""
    parts = defaultdict(set)
    for row, name in zip(rows, patients.names, strict=True):
        parts[name].add(row.part)
    n = sum(len(found) > 1 for name, found in parts.items() if name)
    return [f"{n:,} of these patients have images in both Training and Testing."] if n else []


def parted(rows: Sequence[ImageRecord]) -> Json:
    """How many patients have images in several splits.

    Returns
    -------
    dict
        `test`: patients with test images, `test_shared`: those of them with images in training or validation, and
        `images`: their test images; `validation_shared`: patients in training and validation.
    """
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.patient and row.split:
            splits[row.patient][row.split] += 1
    tested = [n for n in splits.values() if n["test"]]
    shared = [n for n in tested if n["train"] or n["validation"]]
    return {
        "test": len(tested),
        "test_shared": len(shared),
        "images": sum(n["test"] for n in shared),
        "validation_shared": sum(bool(n["train"] and n["validation"]) for n in splits.values()),
    }


def shared_test_images(rows: Sequence[ImageRecord]) -> set[str]:
    """Paths of the test images of patients that also have images in training or validation."""
    used = {row.patient for row in rows if row.split in ("train", "validation")} - {""}
    return {row.path for row in rows if row.split == "test" and row.patient in used}
