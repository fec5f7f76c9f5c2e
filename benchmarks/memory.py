"""Peak memory and time of training against the number of images, on generated slices.

    python benchmarks/memory.py                    8,000 to 64,000 images (an hour on 2 cores)
    python benchmarks/memory.py --most 4000        500 to 4,000, to try it

Each size is a `tumorlens train` of `initial`, two epochs, as a process of its own with a cold cache: indexing,
searching twins, the frozen layers, training. Updates benchmarks/results/memory.json; the figure
memory.growth_8k_to_64k is written only for those sizes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measuring import keep
from PIL import Image

from tumorlens.data.phantom.generator import LABELS, make_slice

LARGEST = 64_000


def write_slices(work: tuple[Path, int, int]) -> None:
    """Generated slices `first` to `last`, two of each patient."""
    root, first, last = work
    for i in range(first, last):
        label, patient = LABELS[i % 4], i // 8
        part = "Testing" if patient % 5 == 0 else "Training"
        pixels = np.asarray(make_slice(0, label, patient, i // 4 % 2).pixels)
        Image.fromarray(pixels).save(root / part / label / f"{i:06d}.jpg", quality=90)


def measured(root: Path, n: int, cache: Path, weights: str) -> dict[str, Any]:
    """Train on what is in `root`; seconds by step, processor time and peak memory in GB of that process."""
    out = cache / "run"
    words = [str(Path(sys.executable).with_name("tumorlens")), "train", "--data", str(root), "--weights", weights,
             "--configurations", "initial", "--max-epochs", "2", "--out", str(out), "--cache", str(cache)]  # fmt: skip
    before = os.times()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    record = json.loads((out / "study.json").read_text())
    return {"images": n, "steps": record["timing"], "seconds": record["timing"]["total_s"],
            "processor_seconds": processor, "peak_memory_gb": record["peak_memory_gb"]}  # fmt: skip


def line(curve: Sequence[dict[str, Any]], what: str) -> dict[str, float]:
    """The straight line through a curve; processor time tells the same where other work shares the machine."""
    images, seconds = (np.array([one[key] for one in curve]) for key in ("images", what))
    slope, intercept = np.polyfit(images, seconds, 1)
    residual = seconds - (slope * images + intercept)
    return {
        "an_image": float(slope), "at_start": float(intercept), "r_squared": float(1 - residual.var() / seconds.var()),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--most", type=int, default=LARGEST)
    parser.add_argument("--weights", default="none")
    asked = parser.parse_args(arguments)
    sizes = [asked.most // 8, asked.most // 4, asked.most // 2, asked.most]
    curve: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root, done = Path(folder) / "data", 0
        for part in ("Training", "Testing"):
            for label in LABELS:
                (root / part / label).mkdir(parents=True)
        for n in sizes:
            cores = os.cpu_count() or 1
            edges = np.linspace(done, n, cores + 1).astype(int).tolist()
            with multiprocessing.get_context("spawn").Pool(cores) as pool:
                pool.map(write_slices, [(root, a, b) for a, b in pairwise(edges)])
            done = n
            with tempfile.TemporaryDirectory() as cache:
                curve.append(measured(root, n, Path(cache), asked.weights))
            print(json.dumps(curve[-1]), flush=True)
    fits = {what: line(curve, what) for what in ("seconds", "processor_seconds")}
    growth = curve[-1]["peak_memory_gb"] / curve[0]["peak_memory_gb"] - 1
    print(json.dumps({"growth": growth, "linear fits": fits}, indent=1))
    full = asked.most == LARGEST
    keep("memory" if full else "memory-small", f"python benchmarks/memory.py --most {asked.most}",
         {"memory.growth_8k_to_64k": growth} if full else {},
         {"curve": curve, "fits": fits, "growth": growth})  # fmt: skip


if __name__ == "__main__":
    main()
