"""Speed of classifying files: the exported classifier and torch, decoding included, alternating in one process.

    python benchmarks/predict.py RUN [--configuration finetuned] [--int8 FILE] [--images FOLDER] [--n 256]

RUN must be exported (`tumorlens export RUN`, and with --int8). Images are by default those of the run's test split.
"torch" is the usual loop: Pillow and torchvision's Resize, ToTensor and Normalize, eager forward in eval mode without
gradients, softmax, with as many threads as ONNX Runtime. "torch channels_last" is the fastest eager torch: images read
by our reader, weights and images in channels_last. Ours is the whole predict job: prefetching, inference, verdicts,
records as JSON. "batch1" is one job on all files in batches of one; "alone" is one job per file, one after another.
Writes benchmarks/results/predict.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import alternate, command, machine, versions
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18

from tumorlens.core.cpu import usable_cores
from tumorlens.export.export import compare_with_torch, graph
from tumorlens.export.trained_run import open_trained_run
from tumorlens.inference.classifier import FILE, INT8_FILE, Classifier, load_classifier
from tumorlens.inference.predict import PredictSettings, predict
from tumorlens.inference.records import format_record
from tumorlens.readers.pixels import (
    MEAN,
    SIZE,
    STD,
    read_image,
)
from tumorlens.training.model import forward
from tumorlens.training.weights import read_state_dict

RESULT = Path(__file__).resolve().parent / "results" / "predict.json"
BATCH = 32
REPEATS = 5  # of each, alternating
SINGLE = 64  # images one by one; of fewer, filling and emptying the cores shows
FRESH = 5  # processes

Run = Callable[[Sequence[str], int], None]


def torchs(run: Path, configuration: str, threads: int) -> dict[str, Run]:
    """The usual loop in torch eager on the CPU, and the best that eager torch does."""
    source = open_trained_run(run, configuration)
    model = resnet18(num_classes=len(source.classes))
    model.load_state_dict(read_state_dict(source.checkpoint, len(source.classes)))
    model.eval()
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_num_threads(threads)
    prepare = transforms.Compose(
        [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize([MEAN] * 3, [STD] * 3)]
    )

    def usual(paths: Sequence[str]) -> torch.Tensor:
        images = []
        for path in paths:
            with Image.open(path) as image:
                images.append(prepare(image.convert("RGB")))
        return torch.softmax(model(torch.stack(images)), 1)

    def best(paths: Sequence[str]) -> torch.Tensor:
        pixels = torch.from_numpy(np.stack([read_image(Path(path))[0] for path in paths]))
        return torch.softmax(forward(channels_last, pixels.permute(0, 3, 1, 2)), 1)

    def loop(answer: Callable[[Sequence[str]], torch.Tensor], paths: Sequence[str], batch: int) -> None:
        with torch.inference_mode():
            for i in range(0, len(paths), batch):
                answer(paths[i : i + batch]).numpy()

    return {"torch": partial(loop, usual), "torch channels_last": partial(loop, best)}


def ours(classifier: Classifier) -> Run:
    """The predict job, rows thrown away."""

    def work(paths: Sequence[str], batch: int) -> None:
        for row in predict(paths, classifier, PredictSettings(batch)):
            format_record(row, "json", classifier.classes)

    return work


def alone(work: Run) -> Run:
    """The same with a job for each file."""

    def each(paths: Sequence[str], batch: int) -> None:
        for path in paths:
            work([path], batch)

    return each


def alternating(runs: dict[str, Run], paths: Sequence[str], batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each, turn by turn, after one round that does not count."""
    return alternate({name: partial(work, paths, batch) for name, work in runs.items()}, repeats)


def first_answer(model: Path, image: str, repeats: int) -> list[float]:
    """Seconds of `tumorlens predict` on one image, a whole process each."""
    tool = Path(sys.executable).with_name("tumorlens")
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run([tool, "predict", image, "--model", model], check=True, capture_output=True)
        found.append(time.perf_counter() - began)
    return found[1:]  # the first one warms the disk


def summary(seconds: Sequence[float], n: int) -> dict[str, Any]:
    """Images a second: median, smallest and largest."""
    rates = [n / s for s in seconds]
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "seconds": list(seconds)}


def speedup(found: dict[str, list[float]], name: str) -> float:
    """Median over rounds of torch's time by ours in the same round, so that other load cancels out."""
    return statistics.median(a / b for a, b in zip(found["torch"], found[name], strict=True))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="finetuned")
    parser.add_argument("--int8", type=Path, help="default: RUN/classifier-int8.onnx where it is there")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--no-parity", action="store_true", help="leave out the comparison on the whole test part")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    threads = usable_cores()
    source = open_trained_run(options.run, options.configuration)
    every = (
        sorted(options.images.rglob("*.*")) if options.images else [source.root / r.path for r in source.split("test")]
    )
    paths = [str(path) for path in every[:: max(1, len(every) // options.n)]][: options.n]
    runs = torchs(options.run, options.configuration, threads) | {"fp32": ours(load_classifier(options.run / FILE))}
    int8 = options.int8 or options.run / INT8_FILE
    if int8.exists():
        runs["int8"] = ours(load_classifier(int8))
    batched = alternating(runs, paths, BATCH, options.repeats)
    single = alternating(runs, paths[:SINGLE], 1, options.repeats)
    lone = alternating({name: alone(work) for name, work in runs.items()}, paths[:SINGLE], 1, options.repeats)
    fresh = first_answer(options.run, paths[0], FRESH)
    figures: dict[str, float] = {"predict.first_answer_s": round(statistics.median(fresh), 3)}
    for name in runs.keys() & {"fp32", "int8"}:
        figures[f"predict.speedup_{name}_batch32"] = round(speedup(batched, name), 2)
        figures[f"predict.speedup_{name}_batch1"] = round(speedup(single, name), 2)
        figures[f"predict.speedup_{name}_alone"] = round(speedup(lone, name), 2)
    detail: dict[str, Any] = {}
    if not options.no_parity:
        trained = open_trained_run(options.run, options.configuration)
        detail["parity"] = compare_with_torch(trained, graph(trained), trained.split("test"))[0]
        figures["onnx.max_probability_difference"] = detail["parity"]["max_probability_difference"]
    if int8.exists():
        detail["int8"] = load_classifier(int8).card["int8"]
        figures["int8.accuracy_drop"] = detail["int8"]["accuracy_drop"]
    content = {
        "name": "bench-predict",
        "command": command(),
        "figures": dict(sorted(figures.items())),
        "images": len(paths),
        "images_per_s_batch32": {name: summary(seconds, len(paths)) for name, seconds in batched.items()},
        "images_per_s_batch1": {name: summary(s, len(paths[:SINGLE])) for name, s in single.items()},
        "images_per_s_alone": {name: summary(s, len(paths[:SINGLE])) for name, s in lone.items()},
        "first_answer_s": fresh,
        **detail,
        "machine": machine() | {"threads": threads, "load": os.getloadavg()[0]},
        "versions": versions(),
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content["figures"]))


if __name__ == "__main__":
    main()
