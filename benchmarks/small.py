"""Small measurements that the documents quote: start-up of the command line, speed and difficulty of phantoms.

    python benchmarks/small.py

Writes docs/results/bench-cli.json and docs/results/bench-phantom.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tumorlens.data.phantom.generator import LABELS, make_slice, write_dataset

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
REPEATS = 9
SLICES = 400


def help_seconds() -> list[float]:
    """Wall-clock seconds of `tumorlens --help`, a whole process each."""
    tool = Path(sys.executable).with_name("tumorlens")
    found = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        subprocess.run([tool, "--help"], check=True, capture_output=True)
        found.append(time.perf_counter() - began)
    return found[1:]  # the first one compiles and warms the disk


def phantom_rates() -> list[float]:
    """Slices a second of this process, which is held to one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    make_slice(0, LABELS[0], 0, 0)
    found = []
    for repeat in range(3):
        began = time.perf_counter()
        for i in range(SLICES):
            make_slice(0, LABELS[i % 4], 10_000 + repeat * SLICES + i // 2, i % 2)
        found.append(SLICES / (time.perf_counter() - began))
    return found


def nearest_neighbour_accuracy(root: Path) -> tuple[float, int]:
    """1-nearest-neighbour on mean-centred 32x32 grey thumbnails by cosine: accuracy and number of test images."""

    def thumbnails(part: str) -> tuple[np.ndarray, np.ndarray]:
        paths = sorted((root / part).rglob("*.jpg"))
        found = []
        for path in paths:
            with Image.open(path) as image:
                small = image.convert("L").resize((32, 32), Image.Resampling.BILINEAR)
            vector = np.asarray(small, dtype=np.float64).ravel()
            found.append((vector - vector.mean()) / np.linalg.norm(vector - vector.mean()))
        return np.array(found), np.array([path.parent.name for path in paths])

    train, test = thumbnails("Training"), thumbnails("Testing")
    nearest = (test[0] @ train[0].T).argmax(axis=1)
    return float((train[1][nearest] == test[1]).mean()), len(test[1])


def write(name: str, figures: dict[str, float], detail: dict[str, object]) -> None:
    """Keep figures and how they were measured."""
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "command": "python benchmarks/small.py", "figures": figures, **detail, "machine": machine}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(figures))


def main() -> None:
    """Measure and write."""
    seconds = help_seconds()
    write("bench-cli", {"cli.help_s": round(statistics.median(seconds), 4)}, {"seconds": seconds})
    with tempfile.TemporaryDirectory() as folder:
        accuracy, n = nearest_neighbour_accuracy(write_dataset(Path(folder) / "phantom"))
    rates = phantom_rates()
    write(
        "bench-phantom",
        {"phantom.images_per_s": round(statistics.median(rates), 1), "phantom.nn_accuracy": accuracy},
        {"rates": rates, "n_test": n},
    )


if __name__ == "__main__":
    main()
