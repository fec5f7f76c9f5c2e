"""Image folder → index: every file hashed, decoded once, and listed with its label.

A file that cannot be used is listed with its reason and left out; it never stops a study.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tumorlens.core.errors import (
    DataError,
    ImageError,
    RunError,
    TumorlensError,
)
from tumorlens.core.files import writing
from tumorlens.core.progress import Bar
from tumorlens.core.text import shown
from tumorlens.data.fetch import ImageFolder
from tumorlens.data.image_stats import ImageStats, measure_image
from tumorlens.readers.pixels import (
    READERS,
    THUMBNAIL,
    Pixels,
    suppress_warnings,
)

TRAINING, TESTING = "Training", "Testing"
_AHEAD = 256  # files at work, or looked at and not yet taken up
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One usable image."""

    path: str
    """Relative to the data set's root, with forward slashes."""
    sha256: str
    """Of the file's bytes, hex."""
    bytes: int
    width: int
    """Pixels, as stored."""
    height: int
    """Pixels, as stored."""
    mode: str
    """Pillow's mode as stored: L, RGB, RGBA, P, ..."""
    tables: str
    """Hash of the JPEG quantisation tables; empty for other formats."""
    colour: float
    """Share of pixels, 0 to 1, that are visibly not grey (channels differ by over 20 levels)."""
    brightness: float
    """Mean grey level, 0 to 255."""
    border: float
    """Share of black pixels, 0 to 1, in the frame of 1/16 of each side."""
    pixels: str
    """SHA-256 of the decoded pixels and their size, hex: equal for pixel-identical images."""
    label: str
    part: str
    """`Training` or `Testing`: the folder it lies in."""
    split: str = ""
    """`train`, `validation` or `test`; empty where a protocol leaves the image out."""
    group: str = ""
    """Images of one group are near-duplicates, or of one patient where the user says so."""
    twin: str = ""
    """Path of the most similar other image to learn from: of Training, but in folds and in splits of one's own."""
    similarity: float | None = None
    """Cosine of both thumbnails, -1 to 1, in the orientation that fits best."""
    transformation: str = ""
    """That orientation: `direct`, `mirrored`, ..."""


@dataclass(frozen=True)
class SkippedFile:
    """One file that was left out."""

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
        """Usable images per part and class."""
        found = Counter((row.part, row.label) for row in self.rows)
        parts = [part for part in (TRAINING, TESTING) if any(row.part == part for row in self.rows)]
        return {part: {label: found[part, label] for label in self.classes} for part in parts}

    def same_content(self) -> list[list[str]]:
        """Groups of files that differ only in name."""
        groups: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            groups[row.sha256].append(row.path)
        return [paths for paths in groups.values() if len(paths) > 1]


def list_files(folder: ImageFolder) -> list[tuple[str, str, str]]:
    """Files of all classes as (path, label, part), sorted; hidden files are left out.

    Paths are relative to the data set's root, with forward slashes: a `Path` of each would take ten times the memory.
    """
    found = []
    for part, top in ((TRAINING, folder.training), (TESTING, folder.testing)):
        if top is None:
            continue
        for label in folder.classes:
            for here, subfolders, names in os.walk(top / label, onerror=_unreadable_folder):
                subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
                place = Path(here).relative_to(folder.root).as_posix()
                found += [(f"{place}/{name}", label, part) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda file: file[0].split("/"))


def _unreadable_folder(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}).", cure="Check its permissions.") from None


def build_index(folder: ImageFolder, cache: Path, *, workers: int | None = None) -> Index:
    """Hash and decode every file of a data set.

    Facts of a data set that was indexed before come from the cache: the key is a hash over
    every path and file hash, so a changed byte means a new look.

    Parameters
    ----------
    folder
        From `fetch`.
    cache
        Folder for the facts; written only when whole.
    workers
        Threads for decoding; READERS where None.

    Raises
    ------
    DataError
        No usable image, a class without one, or a Testing folder without one.
    """
    files = list_files(folder)
    workers = workers or READERS
    with suppress_warnings(), ThreadPoolExecutor(workers) as pool:
        odd = [f for f in files if not _is_utf8(f[0])]  # such a name has no place in JSON, CSV or a page
        files = [f for f in files if _is_utf8(f[0])]
        paths = [f[0] for f in files]
        hashes = list(_tracked(pool, folder.root, paths, _hash, "Hashing files"))
        known = cache / "facts" / f"{_key(files, hashes)}.json"
        index = _from_cache(known, folder)
        if index and any(not isinstance(_look(folder.root / u.path), str) for u in index.unreadable):
            index = None  # it was short of memory then, or Pillow reads more now
        if index is None:
            rows: list[ImageRecord] = []
            thumbnails = bytearray()  # not a list of arrays: there may be very many
            unreadable: list[SkippedFile] = []
            looks = _tracked(pool, folder.root, paths, _look, "Checking images")
            for (path, label, part), sha256, look in zip(files, hashes, looks, strict=True):
                if isinstance(look, str) or not sha256:
                    unreadable.append(SkippedFile(path, label, look if isinstance(look, str) else "cannot be read"))
                    continue
                rows.append(ImageRecord(path, sha256, **look.facts(), label=label, part=part))
                thumbnails += look.thumbnail.tobytes()
            shape = (len(rows), THUMBNAIL, THUMBNAIL)
            every = np.frombuffer(thumbnails, np.uint8).reshape(shape)
            index = Index(folder.root, folder.classes, tuple(rows), tuple(unreadable), every)
            with writing(known.with_suffix(".npy")) as file:
                np.save(file, every)
            facts = {"rows": [dataclasses.astuple(r) for r in rows],
                     "unreadable": [dataclasses.astuple(u) for u in unreadable]}  # fmt: skip
            with writing(known) as file:  # not indented: that makes an object of every value and comma first
                file.write(json.dumps(facts, ensure_ascii=False, allow_nan=False).encode())
    left_out = [SkippedFile(shown(f[0]), f[1], "its name is not UTF-8") for f in odd]
    index = dataclasses.replace(index, unreadable=(*index.unreadable, *left_out))
    _check_classes(index)
    if folder.testing is not None and TESTING not in index.counts():
        reasons = [u.reason for u in index.unreadable if Path(u.path).parts[0] == folder.testing.name][:1]
        raise DataError(
            f"{folder.testing} holds no usable image" + (f"; the first file: {reasons[0]}." if reasons else "."),
            cure="Restore its images; or remove the folder, then a part of Training is set apart to test on.",
        )
    return index


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tracked(
    pool: ThreadPoolExecutor, root: Path, paths: Sequence[str], work: Callable[[Path], T], title: str
) -> Iterator[T]:
    waiting: deque[Future[T]] = deque()  # not pool.map: it makes every task at once, 2 kB each, and keeps all results
    with Bar(title, len(paths), "files") as bar:
        try:
            for path in paths:
                waiting.append(pool.submit(work, root / path))
                if len(waiting) > _AHEAD:
                    bar.advance()
                    yield waiting.popleft().result()
            while waiting:
                bar.advance()
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _hash(path: Path) -> str:
    try:  # to open a pipe would wait for ever
        if not path.is_file():
            return ""
        with path.open("rb") as file:  # in pieces: it may be no image, and larger than memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # the look at its content says why


def _look(path: Path) -> ImageStats | str:
    try:
        return measure_image(path)
    except ImageError as error:
        return error.what


def _key(files: Iterable[tuple[str, str, str]], hashes: Iterable[str]) -> str:
    digest = hashlib.sha256(b"index 3\n")
    for (path, label, part), sha256 in zip(files, hashes, strict=True):
        digest.update(f"{path}\t{label}\t{part}\t{sha256}\n".encode())
    return digest.hexdigest()[:32]


def _from_cache(path: Path, folder: ImageFolder) -> Index | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(ImageRecord(*values) for values in content["rows"])
        thumbnails = np.load(path.with_suffix(".npy"), allow_pickle=False)
        if thumbnails.shape != (len(rows), THUMBNAIL, THUMBNAIL) or thumbnails.dtype != np.uint8:
            return None
        unreadable = tuple(SkippedFile(*values) for values in content["unreadable"])
        return Index(folder.root, folder.classes, rows, unreadable, thumbnails)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None  # absent or of another version: the files are looked at again


def _check_classes(index: Index) -> None:
    counts = index.counts().get(TRAINING, {})
    for label in index.classes:
        if not counts.get(label):
            reasons = [u.reason for u in index.unreadable if u.label == label][:1]
            seen = f"; the first file: {reasons[0]}" if reasons else ""
            raise DataError(
                f"Class {label!r} has no usable training image in {index.root}{seen}.",
                cure="Add images, or remove that class folder.",
            )


def write_index(path: Path, rows: Sequence[ImageRecord]) -> None:
    """Write index.csv, one row an image."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(ImageRecord)]
    # QUOTE_NONNUMERIC: a lone carriage return in a name would otherwise break the line
    table = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    table.writerow(names)
    table.writerows([getattr(row, name) for name in names] for row in rows)
    with writing(path) as file:
        file.write(text.getvalue().encode())


def read_index(path: Path) -> tuple[ImageRecord, ...]:
    """Read index.csv back.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(_row(record) for record in csv.DictReader(file))
    except FileNotFoundError:
        error: TumorlensError = RunError(f"{path} is missing.", cure="Run `tumorlens study` first.")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as problem:
        error = RunError(f"{path} is damaged ({problem}).", cure="Delete it and run the same command again.")
    raise error


def _row(record: dict[str, str]) -> ImageRecord:
    """One line of index.csv; KeyError or ValueError where it is damaged."""
    parse: dict[str, Callable[[str], Any]] = {
        "int": int, "float": float, "str": str, "float | None": lambda text: float(text) if text else None,
    }  # fmt: skip
    return ImageRecord(*(parse[str(field.type)](record[field.name]) for field in dataclasses.fields(ImageRecord)))
