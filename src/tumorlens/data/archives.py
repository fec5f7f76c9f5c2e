"""A zip from anywhere → a folder in the cache that is either whole or absent.

Nothing in an archive is trusted: names must stay inside the target, and sizes are counted while
extracting. Content is checked against the CRC that each entry carries.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tumorlens.core.errors import DataError
from tumorlens.core.files import disk_error, locked
from tumorlens.core.progress import Bar

_CHUNK = 1 << 18  # bytes; also bounds what one read may inflate to
_SKIPPED = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"})
_EXTRACT_YOURSELF = "Extract it with your system's tools, look at the files, and name the folder instead."
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold at most. Version 1 has 7,023 files, 159 MB, and a largest ratio of 1.75."""

    entries: int = 500_000
    total_bytes: int = 50_000_000_000
    entry_bytes: int = 500_000_000
    ratio: float = 200.0
    """Inflated over stored bytes of one entry; counts from `ratio_from` bytes on."""
    ratio_from: int = 10_000_000
    """Bytes. A small blank bitmap compresses by more than any limit and does no harm."""


@dataclass(frozen=True)
class _Planned:
    info: zipfile.ZipInfo
    path: PurePosixPath


def extract_zip(archive: Path, cache: Path, *, limits: Limits | None = None) -> Path:
    """Extract a zip into `cache`/datasets/<first 16 hex digits of its SHA-256>, once.

    An earlier extraction is used again if every file still has its size.

    Parameters
    ----------
    archive
        The zip file.
    cache
        Folder of caches; made if absent.
    limits
        Bounds that no honest data set reaches.

    Returns
    -------
    Path
        The extracted folder.

    Raises
    ------
    DataError
        No zip, damaged, encrypted, over a limit, or with a name that leaves the target.
    RunError
        The cache cannot be written.
    """
    limits = limits or Limits()
    digest = _check_and_hash(archive)
    with _open(archive) as opened:
        plan = _plan(opened, archive, limits)

        def make(folder: Path) -> None:
            _extract(opened, archive, plan, folder, limits)

        def whole(folder: Path) -> bool:
            return all(_size(folder / p.path) == p.info.file_size for p in plan)

        return made_whole(cache / "datasets" / digest[:16], make, whole)


def made_whole(target: Path, make: Callable[[Path], None], whole: Callable[[Path], bool]) -> Path:
    """Return `target`, made by `make` unless it is there and `whole`.

    `make` fills a temporary sibling, which is renamed at the end; whatever stops it, nothing
    stands under the final name before that. A lock lets one process work at a time, so every
    temporary folder seen under the lock was left by a killed one, and is removed.

    Raises
    ------
    RunError
        The folder cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with locked(target.parent / ".lock"):
            for left_over in target.parent.glob(".*.part"):
                shutil.rmtree(left_over)
            if target.is_dir():
                if whole(target):
                    return target
                # Out of the way in one step: a kill in between must not leave half of it here.
                stale = target.with_name(f".{target.name}.stale.part")
                target.rename(stale)
                shutil.rmtree(stale)
            try:
                part.mkdir()
                make(part)
                part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _check_and_hash(archive: Path) -> str:
    """SHA-256 of a file that is a zip, in hex."""
    try:
        size = archive.stat().st_size
        with archive.open("rb") as file:
            start = file.read(4)
            if size == 0:
                raise DataError(f"{archive} is empty (0 bytes).", cure="Download it again.")
            if not zipfile.is_zipfile(archive):
                if start == b"PK\x03\x04":
                    raise _damaged(archive, "the zip has no end: the download or copy was cut off")
                raise DataError(
                    f"{archive} is not a zip file (it starts with {start!r}).",
                    cure="Name the zip as Kaggle ships it, or a folder of images.",
                )
            digest = hashlib.sha256(start)
            with Bar(f"Hashing {archive.name}", size // 1_000_000, "MB") as bar:
                while chunk := file.read(8_000_000):
                    digest.update(chunk)
                    bar.advance(len(chunk) // 1_000_000)
    except OSError as error:
        raise DataError(
            f"{archive} cannot be read ({error.strerror or error}).", cure="Check the path and its permissions."
        ) from None
    return digest.hexdigest()


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (OSError, *_DAMAGED) as error:
        raise _damaged(archive, f"its table of contents cannot be read ({error})") from None


def _plan(opened: zipfile.ZipFile, archive: Path, limits: Limits) -> list[_Planned]:
    """Decide before the first byte is written what goes where; refuse what looks hostile."""
    entries = opened.infolist()
    if len(entries) > limits.entries:
        raise _refused(archive, f"it has {len(entries):,} entries, over the limit of {limits.entries:,}")
    plan: list[_Planned] = []
    seen: set[PurePosixPath] = set()
    for info in entries:
        path = _safe_path(info, archive)
        if info.orig_filename.endswith("/") or _SKIPPED.intersection(path.parts):
            continue
        if path in seen:
            raise _refused(archive, f"it holds {info.orig_filename!r} twice")
        if info.flag_bits & 0x1:
            raise _refused(archive, f"{info.orig_filename!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Only these two inflate in bounded steps: a few bytes of bzip2 can fill the memory.
            raise _refused(
                archive, f"{info.orig_filename!r} uses compression method {info.compress_type}; 0 and 8 are read"
            )
        _check_size(archive, info, info.file_size, limits)
        seen.add(path)
        plan.append(_Planned(info, path))
    if inside := next((p.path for p in plan if seen.intersection(p.path.parents)), None):
        raise _refused(archive, f"{str(inside)!r} lies inside something that is a file")
    total = sum(p.info.file_size for p in plan)
    if total > limits.total_bytes:
        raise _refused(archive, f"it inflates to {total:,} bytes, over the limit of {limits.total_bytes:,}")
    return plan


def _safe_path(info: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The entry's path relative to the target; refused if it could name anything else."""
    name = info.orig_filename  # `filename` is already cut at a NUL and rewritten on Windows
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or any(re.match("[A-Za-z]:", p) for p in parts):
        raise _refused(archive, f"the entry {name!r} points outside the archive")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise _refused(archive, f"the entry {name!r} has control characters in its name")
    if not parts and not name.endswith("/"):
        raise _refused(archive, f"an entry has no usable name ({name!r})")
    if any(len(part.encode(errors="surrogatepass")) > 255 for part in parts) or len(name) > 2000:
        raise _refused(archive, f"the entry {name[:60]!r}… has too long a name")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "neither file nor folder"
        raise _refused(archive, f"the entry {name!r} is {what}")
    return PurePosixPath(*parts)


def _check_size(archive: Path, info: zipfile.ZipInfo, size: int, limits: Limits) -> None:
    if size > limits.entry_bytes:
        raise _refused(
            archive, f"{info.orig_filename!r} inflates to {size:,} bytes or more, over {limits.entry_bytes:,}"
        )
    if size >= limits.ratio_from and size > limits.ratio * max(info.compress_size, 1):
        raise _refused(
            archive,
            f"{info.orig_filename!r} inflates to over {limits.ratio:g} times its {info.compress_size:,} bytes",
        )


def _extract(opened: zipfile.ZipFile, archive: Path, plan: list[_Planned], folder: Path, limits: Limits) -> None:
    total = 0
    with Bar(f"Extracting {archive.name}", len(plan), "files") as bar:
        for planned in plan:
            target = folder / planned.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Mode x: two names that are one on this file system never overwrite each other.
                with target.open("xb") as file:
                    written = 0
                    for chunk in _read(opened, archive, planned.info):
                        written += len(chunk)
                        total += len(chunk)
                        _check_size(archive, planned.info, written, limits)
                        if total > limits.total_bytes:
                            raise _refused(archive, f"it inflates to over {limits.total_bytes:,} bytes")
                        file.write(chunk)
            except FileExistsError:
                raise _refused(archive, f"{str(planned.path)!r} and another entry are one file here") from None
            if written != planned.info.file_size:
                raise _damaged(archive, f"{planned.info.orig_filename!r} is shorter than the archive says")
            bar.advance()


def _read(opened: zipfile.ZipFile, archive: Path, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The entry's content in bounded pieces; its CRC is checked at the end."""
    try:
        with opened.open(info) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (OSError, *_DAMAGED) as error:
        raise _damaged(archive, f"{info.orig_filename!r} is corrupt ({error or type(error).__name__})") from None


def _size(path: Path) -> int:
    """Bytes of a regular file, -1 where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _damaged(archive: Path, why: str) -> DataError:
    return DataError(f"{archive} cannot be used: {why}.", cure="Download or copy it again.")


def _refused(archive: Path, why: str) -> DataError:
    return DataError(f"{archive} is refused: {why}. Nothing was extracted.", cure=_EXTRACT_YOURSELF)
