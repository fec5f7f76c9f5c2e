"""A run's folder: where things stand, atomic writes, and what the run ran on. For Linux and macOS."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tumorlens.errors import RunError
from tumorlens.progress import say

Json = dict[str, Any]

INTENDED_USE = "Research and teaching. Not for diagnosis."


@dataclass(frozen=True)
class Run:
    """The names inside one run's folder."""

    root: Path

    @property
    def study(self) -> Path:
        return self.root / "study.json"

    @property
    def index(self) -> Path:
        return self.root / "index.csv"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def baselines(self) -> Path:
        """What no-learning baselines say about each test image."""
        return self.root / "baselines.csv"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def folder(self, configuration: str) -> Path:
        """The folder of one configuration."""
        return self.root / configuration

    def metrics(self, configuration: str) -> Path:
        return self.folder(configuration) / "metrics.json"

    def predictions(self, configuration: str) -> Path:
        return self.folder(configuration) / "predictions.csv"

    def history(self, configuration: str) -> Path:
        return self.folder(configuration) / "history.jsonl"

    def training(self, configuration: str) -> Path:
        """Summary of a finished training; its presence marks it as finished."""
        return self.folder(configuration) / "training.json"

    def last(self, configuration: str) -> Path:
        """State to resume from; removed once the training is finished."""
        return self.folder(configuration) / "last.pt"


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when complete (write, fsync, rename).

    Raises
    ------
    RunError
        The folder cannot be written or the disk is full. An older file of that name stays whole.
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
    """Within it no other tumorlens holds the same lock file, which is made where it is absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another tumorlens that is writing into {file.parent} …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def disk_error(
    error: OSError, path: Path, again: str = "run the same command again; a study goes on from there"
) -> RunError:
    """The message for a failed write to `path`; `again` is what to do when there is space."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"The disk is full: {path} could not be written.",
            cure=f"Free some space, then {again}.",
        )
    blocking = next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)
    why = f"{blocking} is a file" if blocking else error.strerror or error
    return RunError(
        f"{path} cannot be written ({why}).",
        cure="Name a folder that you may write to with --out (or --cache for caches).",
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, with a final newline. NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises
    ------
    RunError
        It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        cure = "Run `tumorlens study` first, or name the folder of a finished run."
        if folds := sorted(path.parent.glob(f"fold-*/{path.name}")):
            cure = f"{path.parent} holds a cross-validation. Name one of its folds, such as {folds[0].parent}."
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
    """Where decoded images and activations are kept: $TUMORLENS_CACHE, else the user's cache folder."""
    if named := os.environ.get("TUMORLENS_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tumorlens"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tumorlens"


def environment() -> Json:
    """Versions of what computes, as recorded in study.json."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of what `tumorlens --help` takes to import

    packages = ("tumorlens", "torch", "torchvision", "numba", "numpy", "pillow", "scikit-learn", "scipy")
    found: Json = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> Json | None:
    """Commit and cleanliness of the source tree that ran, or None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parents[1] / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "clean": not changes}


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (1e9 bytes), mapped caches included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
