"""Does the notebook's loop reach the accuracy of ours? Both on the same images, split and starting weights.

    python benchmarks/same_accuracy.py --data DATA --weights WEIGHTS                the whole study (hours on 2 cores)
    python benchmarks/same_accuracy.py --data DATA --weights WEIGHTS --images 640 --epochs 15

`tumorlens study` as a process of its own, then the notebook (notebook_baseline.py): `initial`, and `finetuned` from
what that left, with early stopping; each is tested on all of Testing. They draw heads and batches differently, once
each: interval and McNemar's test count the chance of the test images, not that of another draw. Updates
benchmarks/results/accuracy.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import command, keep
from notebook_baseline import Notebook

from tumorlens.core.files import cache_dir, read_json
from tumorlens.core.run_folder import Run
from tumorlens.data.datasheets import TESTING, TRAINING
from tumorlens.data.fetch import fetch
from tumorlens.data.index import build_index
from tumorlens.evaluation.bootstrap import bootstrap_difference
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.statistics import mcnemar
from tumorlens.training.model import build_model
from tumorlens.training.weights import find_weights, plain_state_dict

CONFIGURATIONS = ("initial", "finetuned")


def write_split(notebook: Notebook, root: Path) -> Path:
    """The notebook's own split as a file for --split; paths relative to `root`."""
    parts = {"train": notebook.train, "validation": notebook.validation}
    with (root.parent / "split.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "split"])
        for name, part in parts.items():
            table.writerows([Path(part.dataset.samples[i][0]).relative_to(root), name] for i in part.indices)
        table.writerows([Path(path).relative_to(root), "test"] for path, _ in notebook.test.samples)
    return Path(file.name)


def ours(asked: Any, root: Path, split: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Test answers and epochs of a study, by configuration."""
    words = [str(Path(sys.executable).with_name("tumorlens")), "study", "--data", str(root), "--weights",
             asked.weights, "--split", str(split), "--max-epochs", str(asked.epochs), "--precision", "fp32",
             "--out", str(out), "--cache", str(out.parent / "cache")]  # fmt: skip
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for name in CONFIGURATIONS:
        predictions = read_predictions(Run(out).predictions(name))
        test = np.array([part == "test" for part in predictions.splits])
        right = predictions.probabilities.argmax(1) == predictions.labels
        answers = {predictions.paths[i]: bool(right[i]) for i in np.flatnonzero(test)}
        found[name] = {"right": answers, "epochs": read_json(Run(out).training(name))["epochs_run"]}
    return found


def theirs(notebook: Notebook, root: Path, epochs: int) -> dict[str, Any]:
    """The same of the notebook."""
    epochs_run = len(notebook.fit(epochs))
    notebook.model.eval()
    correct: list[torch.Tensor] = []
    with torch.no_grad():
        for images, labels in notebook.loader(notebook.test):
            correct.append(notebook.model(images.to(notebook.device)).argmax(1).cpu() == labels)
    right = torch.cat(correct).tolist()
    paths = [Path(path).relative_to(root).as_posix() for path, _ in notebook.test.samples]
    return {"right": dict(zip(paths, right, strict=True)), "epochs": epochs_run}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="phantom", help="phantom, a zip as Kaggle ships it, or a folder")
    parser.add_argument("--weights", default="none", help="none, imagenet or a ResNet18 state dict")
    parser.add_argument("--images", type=int, help="training images to use (default: all)")
    parser.add_argument("--epochs", type=int, default=60, help="at most, for each configuration")
    asked = parser.parse_args(arguments)
    folder = fetch(asked.data, cache=cache_dir())
    index = build_index(folder, cache_dir())
    training = [row for row in index.rows if row.part == TRAINING]
    order = np.random.default_rng(0).permutation(len(training))[: asked.images]
    chosen = [training[i] for i in order] + [row for row in index.rows if row.part == TESTING]
    with tempfile.TemporaryDirectory() as scratch:
        root, start = Path(scratch) / "data", Path(scratch) / "start.pth"
        for row in chosen:
            link = root / row.part / row.label / Path(row.path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder.root / row.path)
        torch.save(plain_state_dict(build_model(find_weights(asked.weights), len(index.classes), 0)), start)
        first = Notebook(root, start, "initial")
        mine = ours(asked, root, write_split(first, root), Path(scratch) / "run")
        notebooks = {"initial": theirs(first, root, asked.epochs)}
        second = Notebook(root, start, "finetuned")  # the same seed, so the same split
        second.model.load_state_dict(first.model.state_dict())
        notebooks["finetuned"] = theirs(second, root, asked.epochs)
    detail: dict[str, Any] = {}
    for name in CONFIGURATIONS:
        paths = sorted(mine[name]["right"])
        one, two = ([found[name]["right"][path] for path in paths] for found in (mine, notebooks))
        low, high = bootstrap_difference(two, one)
        detail[name] = {
            "train_and_validation": len(order), "test": len(paths), "most_epochs": asked.epochs,
            "tumorlens": {"accuracy": float(np.mean(one)), "epochs": mine[name]["epochs"]},
            "notebook": {"accuracy": float(np.mean(two)), "epochs": notebooks[name]["epochs"]},
            "difference_interval": [low, high], "mcnemar": mcnemar(one, two),
        }  # fmt: skip
    print(json.dumps(detail, indent=1))
    keep("accuracy", command(), {}, detail)


if __name__ == "__main__":
    main()
