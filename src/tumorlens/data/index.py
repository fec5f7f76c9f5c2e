"""Index an image folder: hash every file, decode it once, and list it with its label.

A file that cannot be used is left out and listed with the reason; it never stops a study.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tumorlens.core.errors import DataError, ImageError, RunError
from tumorlens.core.files import writing
from tumorlens.core.prefetch import batched
from tumorlens.core.progress import Bar
from tumorlens.core.text import shown
from tumorlens.data.datasheets import TESTING, TRAINING, VALIDATION
from tumorlens.data.folders import is_skipped
from tumorlens.data.image_stats import ImageRecord as ImageRecord
from tumorlens.data.image_stats import measure_image
from tumorlens.data.layout import ImageFolder
from tumorlens.readers.pixels import READERS, THUMBNAIL, Pixels, suppress_warnings

_BATCH = 1024  # files; between two batches some threads wait for the slowest
T = TypeVar("T")


@dataclass(frozen=True)
class SkippedFile:
    """One file that was left out because it cannot be used."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True, eq=False)
class Index:
    """All images of a data set, sorted by path."""

    root: Path
    classes: tuple[str, ...]
    rows: tuple[ImageRecord, ...]
    unreadable: tuple[SkippedFile, ...]
    thumbnails: Pixels
    """uint8 [rows, 32, 32], grey."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Usable images by part (`Training`, `Validation`, `Testing`) and class."""
        found = Counter((row.part, row.label) for row in self.rows)
        parts = [part for part in (TRAINING, VALIDATION, TESTING) if any(row.part == part for row in self.rows)]
        return {part: {label: found[part, label] for label in self.classes} for part in parts}

    def same_content(self) -> list[list[str]]:
        """Paths of each set of files that differ only in name."""
        groups: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            groups[row.sha256].append(row.path)
        return [paths for paths in groups.values() if len(paths) > 1]

    def copied_classes(self) -> list[str]:
        """One sentence on each class most of whose files are byte copies of files in other classes."""
        labels: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            labels[row.sha256].add(row.label)
        notes = []
        for label in self.classes:
            own = [labels[row.sha256] - {label} for row in self.rows if row.label == label]
            copied = sum(map(bool, own))
            if 2 * copied > len(own):
                others = ", ".join(sorted(set().union(*own)))
                notes.append(
                    f"{copied:,} of the {len(own):,} images of class {label} are byte copies of images of {others}: "
                    f"if {label} is no class, remove its folder."
                )
        return notes


def list_files(folder: ImageFolder) -> list[tuple[str, str, str]]:
    """Files of all classes as (path, label, part), sorted by path; hidden and system files are left out.

    Paths are relative to the data set's root, with forward slashes: a `Path` of each would take ten times the memory.

    Raises
    ------
    DataError
        A folder cannot be read.
    """
    found = []
    for part, label, top in folder.class_folders():
        for here, subfolders, names in os.walk(top, onerror=_refuse_folder):
            subfolders[:] = sorted(name for name in subfolders if not is_skipped(name))
            place = Path(here).relative_to(folder.root).as_posix()
            found += [(f"{place}/{name}", label, part) for name in names if not is_skipped(name)]
    return sorted(found, key=lambda file: file[0].split("/"))


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}).", cure="Check its permissions.") from None


def build_index(folder: ImageFolder, cache: Path, *, workers: int = READERS) -> Index:
    """Hash and decode every file of a data set.

    Measurements of a data set that was indexed before come from the cache. Its key is a hash over
    every path and file hash, so if a byte changes, all files are measured again.

    Parameters
    ----------
    folder
        From `fetch`.
    cache
        Folder for the measurements; written only once all files are measured.
    workers
        Threads that hash and decode.

    Raises
    ------
    DataError
        There is no usable image, a class has none in Training, or the Testing folder has none.
    """
    files = list_files(folder)
    with suppress_warnings(), ThreadPoolExecutor(workers) as pool:
        odd = [f for f in files if not _is_utf8(f[0])]  # such a name cannot be written to JSON, CSV or a page
        files = [f for f in files if _is_utf8(f[0])]
        paths = [f[0] for f in files]
        hashes = list(_each(pool, _hash, folder.root, paths, "Hashing files"))
        known = cache / "facts" / f"{_key(files, hashes)}.json"
        index = _from_cache(known, folder)
        # What could not be read may be readable now: memory was short, or Pillow is newer.
        if index is None or any(not isinstance(_measure(folder.root / u.path), str) for u in index.unreadable):
            measured = _each(pool, _measure, folder.root, paths, "Checking images")
            index = _assemble(folder, files, hashes, measured)
            _write_cache(known, index)
    skipped = [SkippedFile(shown(f[0]), f[1], "its name is not UTF-8") for f in odd]
    index = dataclasses.replace(index, unreadable=(*index.unreadable, *skipped))
    _check_classes(index, folder)
    return index


def _is_utf8(path: str) -> bool:
    return path.encode(errors="ignore").decode() == path


def _each(
    pool: ThreadPoolExecutor, work: Callable[[Path], T], root: Path, paths: Sequence[str], title: str
) -> Iterator[T]:
    """`work` on every file, in order, with a progress bar."""
    with Bar(title, len(paths), "files") as bar:
        for some in batched(iter(paths), _BATCH):  # pool.map creates all its tasks at once, 2 kB each
            for result in pool.map(lambda path: work(root / path), some):
                bar.advance()
                yield result


def _hash(path: Path) -> str:
    """SHA-256 of a file, hex; empty if it cannot be read, for which `_measure` gives the reason."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return ""
        with path.open("rb") as file:  # in pieces: it need not be an image, and may be larger than memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _measure(path: Path) -> tuple[ImageRecord, Pixels] | str:
    """Its measurements and thumbnail, or the reason why it cannot be used."""
    try:
        return measure_image(path)
    except ImageError as error:
        return error.what


def _assemble(
    folder: ImageFolder,
    files: Sequence[tuple[str, str, str]],
    hashes: Sequence[str],
    measured: Iterable[tuple[ImageRecord, Pixels] | str],
) -> Index:
    rows: list[ImageRecord] = []
    thumbnails = bytearray()  # not a list of arrays: there may be very many
    skipped: list[SkippedFile] = []
    for (path, label, part), sha256, result in zip(files, hashes, measured, strict=True):
        if isinstance(result, str) or not sha256:
            skipped.append(SkippedFile(path, label, result if isinstance(result, str) else "cannot be read"))
            continue
        rows.append(dataclasses.replace(result[0], path=path, sha256=sha256, label=label, part=part))
        thumbnails += result[1].tobytes()
    every = np.frombuffer(thumbnails, np.uint8).reshape(len(rows), THUMBNAIL, THUMBNAIL)
    return Index(folder.root, folder.classes, tuple(rows), tuple(skipped), every)


def _key(files: Iterable[tuple[str, str, str]], hashes: Iterable[str]) -> str:
    digest = hashlib.sha256(b"index 4\n")
    for (path, label, part), sha256 in zip(files, hashes, strict=True):
        digest.update(f"{path}\t{label}\t{part}\t{sha256}\n".encode())
    return digest.hexdigest()[:32]


def _write_cache(path: Path, index: Index) -> None:
    with writing(path.with_suffix(".npy")) as file:
        np.save(file, index.thumbnails)
    facts = {"rows": list(map(dataclasses.astuple, index.rows)),
             "unreadable": list(map(dataclasses.astuple, index.unreadable))}  # fmt: skip
    with writing(path) as file:  # not indented: that would first create an object of every value and comma
        file.write(json.dumps(facts, ensure_ascii=False, allow_nan=False).encode())


def _from_cache(path: Path, folder: ImageFolder) -> Index | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(ImageRecord(*values) for values in content["rows"])
        thumbnails = np.load(path.with_suffix(".npy"), allow_pickle=False)
        if thumbnails.shape != (len(rows), THUMBNAIL, THUMBNAIL) or thumbnails.dtype != np.uint8:
            return None
        return Index(
            folder.root, folder.classes, rows, tuple(SkippedFile(*u) for u in content["unreadable"]), thumbnails
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None  # missing or of another version


def _check_classes(index: Index, folder: ImageFolder) -> None:
    counts = index.counts()
    for label in index.classes:
        if not counts.get(TRAINING, {}).get(label):
            reason = next((f"; the first file: {u.reason}" for u in index.unreadable if u.label == label), "")
            raise DataError(
                f"Class {label!r} has no usable training image in {index.root}{reason}.",
                cure="Add images, or remove that class folder.",
            )
    for part, top in folder.parts().items():
        if part not in counts:
            place = top.relative_to(folder.root).as_posix()
            reasons = (f"; the first file: {u.reason}" for u in index.unreadable if u.path.startswith(f"{place}/"))
            raise DataError(
                f"{top} holds no usable image{next(reasons, '')}.",
                cure=f"Restore its images; or remove the folder, so that {part.lower()} images are split off Training.",
            )


def write_index(path: Path, rows: Sequence[ImageRecord]) -> None:
    """Write index.csv, one line per image."""
    text = io.StringIO()
    # QUOTE_NONNUMERIC: a lone carriage return in a name would otherwise break the line
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    table.writerow(field.name for field in dataclasses.fields(ImageRecord))
    table.writerows(map(dataclasses.astuple, rows))
    with writing(path) as file:
        file.write(text.getvalue().encode())


def read_index(path: Path) -> tuple[ImageRecord, ...]:
    """Read index.csv.

    Raises
    ------
    RunError
        The file is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(_row(record) for record in csv.DictReader(file))
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", cure="Run `tumorlens study` first.") from None
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{path} is damaged ({error}).", cure="Delete it and run the same command again.") from None


def _row(record: dict[str, str]) -> ImageRecord:
    """One line of index.csv; KeyError or ValueError if it is damaged."""
    parse: dict[str, Callable[[str], Any]] = {
        "int": int, "float": float, "str": str, "float | None": lambda text: float(text) if text else None,
    }  # fmt: skip
    record = {"patient": ""} | record  # runs of earlier versions have none
    return ImageRecord(*(parse[str(field.type)](record[field.name]) for field in dataclasses.fields(ImageRecord)))
