"""Shared data: a small folder of generated images, and its cache, made once per test run."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from folders import write_folder

from tumorlens.core.progress import log_to_stderr

# Until all is imported: most objects that are made stay, and to look through them again and again takes a quarter of
# the time of collecting tests.
gc.disable()

# What functions log is looked for on stderr.
log_to_stderr()

# No test may look for data in the user's own caches.
os.environ.pop("TUMORLENS_CACHE", None)

# Side by side on the same cores, threads would wait for each other.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# Side by side, what takes longest must not begin last.
SLOWEST = ("test_distributed.py", "test_run.py", "test_server.py", "test_fit.py", "test_page.py", "test_export.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files; the others stay in their order."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    """Spare the garbage collector what the imports left, hundreds of thousands of objects that stay to the end."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Else extension modules would take what stays for leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 3 test images a class."""
    return write_folder(tmp_path_factory.mktemp("small") / "data", train=8, test=3)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, so that the frozen layers run once for them."""
    return tmp_path_factory.mktemp("cache")
