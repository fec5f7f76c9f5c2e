"""Extract a zip of a data set into the cache: all of it or nothing.

Nothing in an archive is trusted: names must stay inside the target folder, and what an entry may cost is checked by
`readers.zips` before it is decompressed. Content is checked against the CRC that each entry carries.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from tumorlens.core.errors import DataError, ImageError
from tumorlens.core.files import disk_error, locked
from tumorlens.core.progress import Bar
from tumorlens.readers.types import ReadLimits
from tumorlens.readers.zips import check_entry, entry_content, open_zip, visible_files

#: Version 1 of the data set has 7,023 files, 159 MB, and a largest compression ratio of 1.75.
LIMITS = ReadLimits(bytes=500_000_000, ratio_from=10_000_000)
TOTAL_BYTES = 50_000_000_000  # of all entries together, decompressed


_OTHER_ARCHIVES = {
    b"\x1f\x8b": "it is compressed by gzip, as .tar.gz and .tgz are",
    b"7z\xbc\xaf": "it is a 7-Zip archive",
    b"Rar!": "it is a RAR archive",
    b"BZh": "it is compressed by bzip2",
    b"\xfd7zX": "it is compressed by xz",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd",
}


def extract_zip(archive: Path, cache: Path, *, limits: ReadLimits = LIMITS, total_bytes: int = TOTAL_BYTES) -> Path:
    """Extract a zip into `cache`/datasets/<first 16 hex digits of its SHA-256>, once.

    An earlier extraction is used again if every file still has its size.

    Parameters
    ----------
    archive
        The zip file.
    cache
        Folder of caches; created if needed.
    limits
        Bounds on the number of entries and on each entry.
    total_bytes
        Bound on the size of all files together, decompressed.

    Returns
    -------
    Path
        The extracted folder.

    Raises
    ------
    DataError
        The file is not a zip, is damaged, encrypted or over a limit, or an entry's name leaves the target folder.
    RunError
        The cache cannot be written.
    """
    digest = _check_and_hash(archive)
    with archive.open("rb") as file:
        try:
            opened = open_zip(file, limits)
        except (ImageError, OSError) as error:
            raise _damaged(archive, getattr(error, "what", f"unreadable ({error})")) from None
        plan = _plan(opened, archive, limits, total_bytes)
        return cached_folder(
            cache / "datasets" / digest[:16],
            lambda folder: _extract(opened, archive, plan, folder),
            lambda folder: all(
                (folder / path).is_file() and (folder / path).stat().st_size == info.file_size
                for path, info in plan.items()
            ),
        )


def cached_folder(target: Path, make: Callable[[Path], object], is_complete: Callable[[Path], bool]) -> Path:
    """Return the folder `target`; unless it exists and `is_complete`, have `make` fill it first.

    `make` fills a temporary sibling, which is renamed at the end: if it is interrupted, nothing
    stands under the final name. A lock lets one process work at a time, so every temporary folder
    found while holding it was left by a killed process, and is removed.

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
                if is_complete(target):
                    return target
                # Renamed first: if killed while deleting, half a folder must not stand under the final name.
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
                    raise _damaged(archive, "its end is missing: the download or copy was cut off")
                kind = next((kind for magic, kind in _OTHER_ARCHIVES.items() if start.startswith(magic)), "")
                raise DataError(
                    f"{archive} is not a zip file ({kind or f'it starts with {start!r}'}).",
                    cure="Unpack it, and name the folder of images."
                    if kind or archive.suffix == ".tar"
                    else "Name the zip as Kaggle ships it, or a folder of images.",
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


def _plan(
    opened: zipfile.ZipFile, archive: Path, limits: ReadLimits, total_bytes: int
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The entries by path below the target folder; the archive is refused if it looks hostile."""
    if (n := len(opened.infolist())) > limits.entries:
        raise _refused(archive, f"it has {n:,} entries, over the limit of {limits.entries:,}")
    plan: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in visible_files(opened):
        path = _safe_path(info, archive)
        if path in plan:
            raise _refused(archive, f"it holds {info.orig_filename!r} twice")
        try:
            check_entry(info, limits)
        except ImageError as error:
            raise _refused(archive, f"{info.orig_filename!r} is {error.what}") from None
        plan[path] = info
    if inside := next((path for path in plan if not plan.keys().isdisjoint(path.parents)), None):
        raise _refused(archive, f"{str(inside)!r} lies inside something that is a file")
    total = sum(info.file_size for info in plan.values())
    if total > total_bytes:
        raise _refused(archive, f"it has {total:,} bytes decompressed, over the limit of {total_bytes:,}")
    return plan


def _safe_path(info: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The entry's path relative to the target; the archive is refused if the name could mean anything else."""
    name = _name(info)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    kind = stat.S_IFMT(info.external_attr >> 16)
    reasons = {
        "points outside the archive": name.startswith("/")
        or ".." in parts
        or any(re.match("[A-Za-z]:", part) for part in parts),
        "has control characters in its name": any(ord(c) < 32 or ord(c) == 127 for c in name),
        "has no usable name": not parts,
        "has too long a name": len(name) > 2000
        or any(len(part.encode(errors="surrogatepass")) > 255 for part in parts),
        "is a symbolic link": kind == stat.S_IFLNK,
        "is neither a file nor a folder": kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK),
    }
    if why := next((reason for reason, applies in reasons.items() if applies), ""):
        raise _refused(archive, f"the entry {name[:300]!r} {why}")
    return PurePosixPath(*parts)


def _name(info: zipfile.ZipInfo) -> str:
    """The entry's name as it was meant, with forward slashes: some tools of Windows write backslashes."""
    name = info.orig_filename  # `filename` is already cut at a NUL and rewritten on Windows
    if not info.flag_bits & 0x800:  # read as code page 437; macOS and others write UTF-8 without saying so
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _extract(opened: zipfile.ZipFile, archive: Path, plan: dict[PurePosixPath, zipfile.ZipInfo], folder: Path) -> None:
    with Bar(f"Extracting {archive.name}", len(plan), "files") as bar:
        for path, info in plan.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Mode x: two names that are one on this file system never overwrite each other.
                with target.open("xb") as file:
                    file.writelines(_read(opened, archive, info))
            except FileExistsError:
                raise _refused(archive, f"{str(path)!r} and another entry are one file on this disk") from None
            bar.advance()


def _read(opened: zipfile.ZipFile, archive: Path, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The entry's content in pieces."""
    try:
        yield from entry_content(opened, info)
    except (ImageError, OSError) as error:
        raise _damaged(
            archive, f"{info.orig_filename!r} is {getattr(error, 'what', f'unreadable ({error})')}"
        ) from None


def _damaged(archive: Path, why: str) -> DataError:
    return DataError(f"{archive} cannot be used: {why}.", cure="Download or copy it again.")


def _refused(archive: Path, why: str) -> DataError:
    return DataError(
        f"{archive} is refused: {why}. Nothing was extracted.",
        cure="Extract it with your system's tools, look at the files, and name the folder instead.",
    )
