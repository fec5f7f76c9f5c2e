"""On one NVIDIA GPU: a whole study, and its epochs beside the usual notebook loop on the same GPU, in turns.

    python benchmarks/gpu.py --data DATA --weights WEIGHTS [--repeats 5] [--run NEW]

The study is a process of its own with a cold cache, as users run it: unpacking, decoding and the report are in its
seconds. An epoch of the notebook (notebook_baseline.py) decodes its images again, in as many processes as there are
cores; "decoded before" is the same loop over normalised images that lie in main memory, which is decoding apart.
Updates benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import Material
from measuring import alternate, command, keep, spread
from notebook_baseline import Notebook
from torch.utils.data import DataLoader, TensorDataset

from tumorlens.core.files import cache_dir, read_json
from tumorlens.data.datasheets import TRAINING
from tumorlens.data.fetch import fetch
from tumorlens.data.index import build_index
from tumorlens.readers.pixels import READERS, read_image, suppress_warnings
from tumorlens.training.configurations import BUILT_IN, Configuration
from tumorlens.training.features import InMemoryFeatures
from tumorlens.training.model import build_model
from tumorlens.training.weights import find_weights, plain_state_dict

CUDA = torch.device("cuda")
EPOCHS = {"initial": 40, "finetuned": 10}  # of ours at once: a training starts up once, not in each


class Decoded(Notebook):
    """The notebook's loop over images decoded and normalised before, float32 in main memory."""

    def __init__(self, data: Path, weights: Path, configuration: str) -> None:
        super().__init__(data, weights, configuration)
        self.train, self.validation = self.decoded(self.train), self.decoded(self.validation)

    def decoded(self, images: Any) -> Any:
        batches = list(super().loader(images))
        return TensorDataset(*(torch.cat(part) for part in zip(*batches, strict=True)))

    def loader(self, images: Any, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(images, batch_size=32, shuffle=shuffle)


def epochs(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds an epoch of the notebook and of ours, validation included, and the images/s that ours learns from."""
    folder = fetch(asked.data, cache=cache_dir())
    index, weights = build_index(folder, cache_dir()), find_weights(asked.weights)
    training = [row for row in index.rows if row.part == TRAINING]
    rows = tuple(training[i] for i in np.random.default_rng(0).permutation(len(training)))
    material = Material(folder.root, rows, index.classes, weights, scratch, CUDA)
    start = scratch / "start.pth"
    torch.save(plain_state_dict(build_model(weights, len(index.classes), 0)), start)
    work: dict[str, Callable[[], Any]] = {}
    passes, rates = {}, {name: list[float]() for name in EPOCHS}
    for name, n in EPOCHS.items():
        work[f"notebook {name}"] = Notebook(folder.root, start, name).epoch
        work[f"notebook {name}, decoded before"] = Decoded(folder.root, start, name).epoch
        one = BUILT_IN[name]
        caches, passes[name] = material.prefix([one.frozen_prefix], "bf16", name)
        source = InMemoryFeatures.load(caches[one.frozen_prefix], [row.sha256 for row in rows], CUDA)

        def ours(one: Configuration = one, source: InMemoryFeatures = source, n: int = n) -> None:
            rates[one.name].extend(record["images_per_s"] for record in material.train(one, source, "bf16", n))

        work[name] = ours
    found = alternate(work, asked.repeats)
    for name, n in EPOCHS.items():
        del rates[name][:n]  # of the round that does not count
        found[name] = [seconds / n for seconds in found[name]]
    middle = {name: statistics.median(values) for name, values in found.items()}
    figures = {
        "gpu.finetuned_images_per_s": statistics.median(rates["finetuned"]),
        "gpu.speedup_over_naive": middle["notebook finetuned"] / middle["finetuned"],
    }
    return figures, {
        "epochs": {
            "seconds": {name: spread(values) for name, values in found.items()},
            "images_per_s": {name: spread(values) for name, values in rates.items()},
            "epochs_at_once": EPOCHS,
            "prefix_seconds": passes,
        }
    }


def study(asked: argparse.Namespace, scratch: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole study from the archive to the report, in seconds of its process, and what decoding alone takes.

    Every image is decoded twice, for the index and for the frozen layers, so decoding apart is without twice of that.
    """
    run = asked.run or scratch / "run"
    words = [sys.executable, "-m", "tumorlens", "study", "--data", asked.data, "--weights", asked.weights, "--out",
             str(run), "--cache", str(scratch / "study")]  # fmt: skip
    began = time.perf_counter()
    subprocess.run(words, check=True)
    seconds = time.perf_counter() - began
    folder = fetch(asked.data, cache=scratch / "study")
    paths = {row.sha256: folder.root / row.path for row in build_index(folder, scratch / "study").rows}
    began = time.perf_counter()
    with suppress_warnings(), ThreadPoolExecutor(READERS) as pool:
        deque(pool.map(read_image, paths.values()), 0)
    decoding = time.perf_counter() - began
    record = read_json(run / "study.json")
    trained = {name: read_json(run / name / "training.json") for name in EPOCHS}
    tested = {name: read_json(run / name / "metrics.json")["parts"]["test"] for name in EPOCHS}
    detail = {
        "seconds": seconds,
        "decoding": {"images": len(paths), "seconds": decoding},
        "steps": record["timing"],
        "precision": record["device"]["precision"],
        "peak_memory_gb": record["peak_memory_gb"],
        "epochs": {name: one["epochs_run"] for name, one in trained.items()},
        "correct": {name: [one["correct"], one["n"]] for name, one in tested.items()},
    }
    return {"gpu.study_s": seconds - 2 * decoding, "gpu.study_decoding_included_s": seconds}, {"study": detail}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="phantom", help="phantom, a zip as Kaggle ships it, or a folder")
    parser.add_argument("--weights", default="none", help="none, imagenet or a ResNet18 state dict")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", type=Path, help="a new folder for the study's run (default: a temporary one)")
    parser.add_argument("--parts", nargs="*", default=["study", "epochs"], choices=["study", "epochs"])
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here, and this measures one")
    if asked.run and asked.run.exists():
        parser.error(f"--run {asked.run} exists, and a resumed run is not a cold one; name a new folder")
    for part in asked.parts:
        with tempfile.TemporaryDirectory() as scratch:
            figures, detail = {"study": study, "epochs": epochs}[part](asked, Path(scratch))
        keep("gpu", command(), figures, detail)
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
