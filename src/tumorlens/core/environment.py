"""The environment of a run: package versions, git state, peak memory."""

import platform
import subprocess
import sys
from pathlib import Path

from tumorlens.core.files import Json


def environment() -> Json:
    """Versions of Python, the platform and the numerical packages, as recorded in study.json."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of the import time of `tumorlens --help`

    packages = ("tumorlens", "torch", "torchvision", "numba", "numpy", "pillow", "scikit-learn", "scipy")
    found: Json = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> Json | None:
    """Commit of the source tree, and whether it is clean; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        found = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, dirty, _ = found.stdout.strip().partition("-dirty")
    return {"commit": commit, "clean": not dirty}


def peak_memory_gb() -> float | None:
    """Peak resident memory of this process in GB (1e9 bytes), to 0.001, mapped files included.

    None on systems that do not report it (Windows).
    """
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 3)
