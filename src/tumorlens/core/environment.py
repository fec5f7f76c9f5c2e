"""What a run ran on: versions, git state, peak memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

from tumorlens.core.files import Json


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
    if not (here.parents[2] / ".git").exists():
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
