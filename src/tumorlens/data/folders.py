"""Walking the folders of a data set: what is skipped, what is an image, and what else lies there."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tumorlens.core.errors import DataError
from tumorlens.core.text import shown
from tumorlens.readers.pixels import SUFFIXES
from tumorlens.readers.signatures import HEADER, is_dicom, is_dicomdir, is_nifti, is_raster
from tumorlens.readers.zips import is_hidden

MAX_FOLDERS = 50_000  # searched before giving up: the user may have named a whole disk
#: Folders of operating systems and network drives, beside names that start with `.`, `@`, `#`, `$` or `~`.
_SYSTEM = frozenset({
    "__macosx", "system volume information", "lost+found", "recycler", "recycled", "network trash folder",
    "temporary items", "trash", "recycle bin", "found.000", "__pycache__", "thumbs", "thumbnails",
})  # fmt: skip


def normal(name: str) -> str:
    """A name in Unicode's form NFC: macOS and Linux may store `ß` or `é` of one name as different characters."""
    return unicodedata.normalize("NFC", name)


def is_skipped(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or belongs to an operating system or network drive."""
    return is_hidden(name) or name[:1] in "@#$~" or name.casefold() in _SYSTEM


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda e: e.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror or error}).", cure="Check the path and its permissions."
        ) from None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in scan(folder) if not is_skipped(entry.name)]


def entry_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder)]


def folder_names(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that `is_skipped` names."""
    return [entry.name for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file is a picture or DICOM, by its suffix or else by its content."""
    if Path(entry.name).suffix.lower() in SUFFIXES:
        return True
    head = _head(entry)
    return is_raster(head) or (is_dicom(head) and not is_dicomdir(head))


def _head(entry: os.DirEntry[str]) -> bytes:
    try:
        if not entry.is_file():  # opening a pipe would wait for ever
            return b""
        with open(entry.path, "rb") as file:  # noqa: PTH123 - faster than through a Path
            return file.read(HEADER)
    except OSError:
        return b""


def directly_holds_image(folder: Path) -> bool:
    return any(not _is_folder(entry) and is_image(entry) for entry in _entries(folder))


def holds_image(folder: Path) -> bool:
    """Whether an image lies in it at any depth; links to folders are not followed."""
    return any(not _is_folder(entry) and is_image(entry) for entry in _below(folder))


def _below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All visible entries at any depth, of at most 50,000 folders; links to folders are not followed."""
    waiting = [folder]
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        for entry in _entries(waiting.pop()):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))


def kinds_of_files(folder: Path) -> Counter[str]:
    """How many files of each kind lie below a folder: by suffix, or by content if that says more."""
    found: Counter[str] = Counter()
    for entry in _below(folder):
        if _is_folder(entry):
            continue
        suffix = "".join(Path(entry.name.lower()).suffixes[-2:]) if entry.name.lower().endswith(".nii.gz") else ""
        head = _head(entry)
        kind = "DICOM" if is_dicom(head) else "NIfTI" if is_nifti(head) or suffix else ""
        found[kind or shown(Path(entry.name).suffix.lower()) or "(no suffix)"] += 1
    return found


def listed(names: Iterable[str], most: int = 3) -> str:
    found = [shown(name) for name in sorted(names)]
    return ", ".join(found[:most]) + (f" and {len(found) - most:,} more" if len(found) > most else "")
