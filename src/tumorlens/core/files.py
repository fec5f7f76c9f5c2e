"""Files: atomic writes, JSON, CSV lines, locks, the user's folders, and messages for disk errors."""

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.progress import log

Json = dict[str, Any]

NO_FINAL_MODEL = (
    "repeat the command with --final-model (`tumorlens study --protocol grouped-cv --final-model`), which keeps the "
    "folds and trains one model on all images; then export it."
)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: it appears under its name only when complete (write, fsync, rename).

    Raises
    ------
    RunError
        The folder cannot be written or the disk is full. An existing file of that name is left unchanged.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise disk_error(error, path) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock file `file` exclusively among all processes; it is created if needed.

    Raises
    ------
    OSError
        The lock file cannot be created.
    """
    from filelock import FileLock, Timeout  # its import takes as long as all else that `tumorlens --help` needs

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.info(f"Waiting for another tumorlens process that is writing to {file.parent} …")
        held = lock.acquire()
    with held:
        yield


def disk_error(error: OSError, path: Path, again: str = "run the same command again; a study resumes") -> RunError:
    """The error for a failed write to `path`; `again` is what to do once there is space."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: {path} could not be written.",
            cure=f"Free some space, then {again}.",
        )
    blocking = next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)
    why = f"{blocking} is a file" if blocking else error.strerror or error
    return RunError(
        f"{path} cannot be written ({why}).",
        cure="Choose a writable folder with --out (or --cache for caches).",
    )


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically, with a final newline. NaN raises ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        cure = "Run `tumorlens study` first, or give the folder of a finished run."
        if folds := sorted(path.parent.glob(f"fold-*/{path.name}")):
            cure = f"{path.parent} holds a cross-validation. Give one of its folds, such as {folds[0].parent}."
            cure += f" For a model to use: {NO_FINAL_MODEL}"
        raise RunError(f"{path} is missing.", cure=cure) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is not valid JSON ({error}).", cure="Delete it and run the same command again."
        ) from None
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}).", cure="Check the path and its permissions."
        ) from None


def cache_dir() -> Path:
    """Folder for decoded images and activations: $TUMORLENS_CACHE, by default in the user's cache folder.

    Raises
    ------
    ConfigError
        None of the variables names a folder, and the user has no home.
    """
    if named := os.environ.get("TUMORLENS_CACHE"):
        return expanded(named)
    return user_cache("Name a folder with --cache, or set TUMORLENS_CACHE to one.") / "tumorlens"


def user_cache(cure: str) -> Path:
    """Folder for the caches of all programs, by the XDG base directory specification: relative paths do not count.

    Raises
    ------
    ConfigError
        The user has no home; `cure` is what to do about it.
    """
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if sys.platform != "darwin" and xdg.is_absolute():
        return xdg
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute() or os.environ.get("HOME") == "":
        raise ConfigError("There is no home folder to put a cache into (HOME is not set).", cure=cure)
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def expanded(path: str | Path) -> Path:
    """The path, with a home folder in place of a leading `~` or `~user`.

    Raises
    ------
    ConfigError
        There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path} begins with a home folder that does not exist.", cure="Write it out.") from None


def csv_line(values: Sequence[str]) -> str:
    """One line of CSV that `csv.reader` reads back, whatever characters the values contain."""
    # With "\n" as line terminator, csv does not quote a lone "\r" and cannot read it back.
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def probe_writable(root: Path, option: str = "--out") -> None:
    """Check that a folder can be created and written, before work that takes long.

    Raises
    ------
    RunError
        It cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise RunError(f"{option} {root} is a file.", cure="Choose a folder.")
    probe = root / ".probe"
    try:
        write_json(probe, {})
    except RunError as error:  # report the folder, not the probe file
        cure = error.cure if "full" in error.what else f"Choose a writable folder with {option}."
        raise RunError(error.what.replace(str(probe), str(root)), cure=cure) from None
    probe.unlink()
