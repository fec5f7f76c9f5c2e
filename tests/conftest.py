"""Shared data: a small folder of generated images, and its cache, made once per test run."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Until all is imported: most objects that are made stay, and to look through them again and again takes a quarter of
# the time of collecting tests.
gc.disable()

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")

# No test may look for data in the user's own caches.
os.environ.pop("TUMORLENS_CACHE", None)

# Side by side on the same cores, threads would wait for each other.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# Side by side, what takes longest must not begin last.
SLOWEST = ("test_distributed.py", "test_study.py", "test_serve_running.py", "test_features_train.py", "test_page.py",
           "test_export.py")  # fmt: skip


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


def draw(label: int, number: int, size: int = 96) -> Image.Image:
    """A grey disc on black with a brighter blob whose place depends on the class."""
    random = np.random.default_rng([label, number])
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    head = (x**2 + y**2 < 0.2) * 0.5
    centre = np.array([[-0.2, -0.2], [0.2, -0.2], [-0.2, 0.2], [0.2, 0.2]])[label] + random.normal(0, 0.02, 2)
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 0.01) * 0.4
    grey = np.clip(head + blob + random.normal(0, 0.03, head.shape), 0, 1)
    return Image.fromarray((grey * 255).astype(np.uint8))


def picture(number: int) -> np.ndarray:
    """A smooth picture of its own, uint8 [64, 64], unlike any other and unlike its mirror image."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6), dtype=np.uint8))
    return np.array(coarse.resize((64, 64), Image.Resampling.BICUBIC))


def write_folder(root: Path, *, train: int, test: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Training/ and Testing/ with `train` and `test` images a class."""
    for part, n, first in (("Training", train, 0), ("Testing", test, 1000)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                draw(label, first + i).save(folder / f"{name[:2]}_{i:04d}.png")
    return root


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 training and 3 test images a class."""
    return write_folder(tmp_path_factory.mktemp("small") / "data", train=8, test=3)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share, so that the frozen layers run once for them."""
    return tmp_path_factory.mktemp("cache")
