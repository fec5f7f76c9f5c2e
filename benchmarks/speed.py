"""Speed of training: ours beside the usual notebook loop, in one process and in turns.

    python benchmarks/speed.py --data DATA --weights WEIGHTS          whole epochs, three repeats
    python benchmarks/speed.py --data phantom --weights none --quick  three minutes, on part of the images
    python benchmarks/speed.py --data DATA --weights WEIGHTS --study  also a whole cold study as users run it

Updates benchmarks/results/speed.json (speed-quick.json with --quick).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import CPU, Material
from measuring import alternate, command, keep, spread
from notebook_baseline import Notebook
from PIL import Image
from torch import nn

from tumorlens.core.files import cache_dir
from tumorlens.data.datasheets import TRAINING
from tumorlens.data.fetch import fetch
from tumorlens.data.index import build_index
from tumorlens.readers.pixels import SIZE, read_image
from tumorlens.training.configurations import FINETUNED, INITIAL
from tumorlens.training.devices import BACKENDS, PRECISIONS
from tumorlens.training.features import InMemoryFeatures
from tumorlens.training.kernels.dispatch import fast_convolutions
from tumorlens.training.model import build_model, forward, set_trainable
from tumorlens.training.weights import find_weights, plain_state_dict

CORE_BATCH = 8  # of the convolutions measured alone: what the pass gives a core at a time


def epochs(material: Material, precisions: Sequence[str], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds an epoch of both configurations, baseline and ours in turns; and the passes over frozen layers."""
    start = material.folder / "start.pth"
    torch.save(plain_state_dict(build_model(material.weights, len(material.classes), 0)), start)
    data = material.folder / "images"
    material.linked(data / "Training")
    (data / "Testing").exists() or (data / "Testing").symlink_to(data / "Training")
    work: dict[str, Any] = {}
    passes: dict[str, Any] = {}
    for name in ("initial", "finetuned"):
        work[f"baseline {name}"] = Notebook(data, start, name).epoch
    further = {"initial fp32": 20} | {f"finetuned {p}": 3 for p in precisions}  # a training starts up once, not in each
    caches, seconds = material.prefix(["avgpool"], "fp32", "initial")
    passes["initial fp32"] = seconds
    hashes = [sha256 for part in material.parts() for sha256 in part.hashes]
    source = InMemoryFeatures.load(caches["avgpool"], hashes, CPU)
    work["initial fp32"] = lambda: material.train(INITIAL, source, "fp32", further["initial fp32"])
    for precision in precisions:
        caches, passes[f"finetuned {precision}"] = material.prefix(["layer2"], precision, f"finetuned-{precision}")
        work[f"finetuned {precision}"] = (
            lambda cache=caches["layer2"], p=precision: material.train(FINETUNED, cache, p, further[f"finetuned {p}"])
        )  # fmt: skip
        material.train(FINETUNED, caches["layer2"], precision, 1)  # loops are compiled once a machine
    found = alternate(work, repeats, warm=False)
    found |= {name: [s / n for s in found[name]] for name, n in further.items()}
    middle = {name: statistics.median(values) for name, values in found.items()}
    ours_50 = passes["initial fp32"] + 50 * middle["initial fp32"]
    figures = {
        "speedup.initial_50_epochs": 50 * middle["baseline initial"] / ours_50,
        "speedup.initial_further_epoch": middle["baseline initial"] / middle["initial fp32"],
    } | {f"speedup.finetuned_epoch_{p}": middle["baseline finetuned"] / middle[f"finetuned {p}"] for p in precisions}
    detail = {
        "images": len(material.rows),
        "epoch_seconds": {name: spread(values) for name, values in found.items()},
        "prefix_seconds": passes,
        "epochs_at_once": further,
    }
    return figures, {"epochs": detail}


def convolutions_alone(model: nn.Module, stop: str, precision: str) -> list[tuple[nn.Conv2d, torch.Tensor]]:
    """Each convolution up to a boundary with an input of the shape that it gets."""
    shapes: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(module: nn.Module, args: Any, _: Any) -> None:
        assert isinstance(module, nn.Conv2d)
        shapes.append((module, tuple(args[0].shape)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.inference_mode():
        forward(model, torch.zeros((CORE_BATCH, 3, SIZE, SIZE), dtype=torch.uint8), "image", stop)  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    kind = PRECISIONS[precision]
    return [
        (c.to(kind), torch.rand(shape, dtype=kind).to(memory_format=torch.channels_last)) for c, shape in shapes
    ]  # fmt: skip


def prefix(material: Material, precision: str, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The pass over the frozen layers beside its convolutions and its decoding alone, an image."""
    rows = {row.sha256: row for row in material.rows}.values()  # each content is computed once
    n = len(rows)
    model = build_model(material.weights, len(material.classes), 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    alone = convolutions_alone(model, "layer2", precision)
    cores = torch.get_num_threads()
    batches = max(1, n // (CORE_BATCH * cores))
    turn = iter(range(1000))

    def of_a_core() -> None:
        torch.set_num_threads(1)  # of this thread
        with torch.inference_mode():
            for _ in range(batches):
                for convolution, x in alone:
                    convolution(x)

    def bare() -> None:
        with ThreadPoolExecutor(cores) as pool:
            for one in [pool.submit(of_a_core) for _ in range(cores)]:
                one.result()
        torch.set_num_threads(cores)

    def decoding() -> None:
        with ThreadPoolExecutor(cores) as pool:
            deque(pool.map(lambda row: read_image(material.root / row.path), rows), 0)

    work = {
        "bare convolutions": bare,
        "prefix pass": lambda: material.prefix(["layer2"], precision, f"prefix-{next(turn)}"),
        "decoding alone": decoding,
    }
    found = alternate(work, repeats)
    per_image = {name: [s / n for s in found[name]] for name in found}
    per_image["bare convolutions"] = [s / (batches * CORE_BATCH * cores) for s in found["bare convolutions"]]
    ratio = statistics.median(per_image["prefix pass"]) / statistics.median(per_image["bare convolutions"])
    detail = {"precision": precision, "images": n, "seconds_an_image": {k: spread(v) for k, v in per_image.items()}}
    return {"prefix.over_bare_convolutions": ratio}, {"prefix": detail}


def decode(material: Material, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Images a second that one core decodes and resizes, beside Pillow used plainly; and the largest difference."""
    paths = [material.root / row.path for row in material.rows[:1000]]

    def plainly(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    differences = [
        float(np.abs(read_image(p)[0].astype(int) - plainly(p).astype(int)).mean()) / 255 for p in paths[:200]
    ]
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    try:
        found = alternate(
            {"ours": lambda: [read_image(p) for p in paths], "Pillow": lambda: [plainly(p) for p in paths]}, repeats
        )
    finally:
        os.sched_setaffinity(0, every)
    rates = {name: [len(paths) / s for s in values] for name, values in found.items()}
    detail = {
        "images": len(paths), "images_per_s_core": {k: spread(v) for k, v in rates.items()},
        "mean_difference": max(differences),
    }  # fmt: skip
    return {"decode.images_per_s_core": statistics.median(rates["ours"])}, {"decode": detail}


def rounding(material: Material) -> tuple[dict[str, float], dict[str, Any]]:
    """Relative error of `finetuned`'s gradient in fp32 at its start, by Winograd and directly, against float64."""
    start = build_model(material.weights, len(material.classes), 0)
    labels = material.part(material.rows).labels
    errors: dict[str, list[float]] = {"direct": [], "winograd": []}
    for batch in torch.arange(min(len(material.rows), 8 * FINETUNED.batch_size)).split(FINETUNED.batch_size):  # type: ignore[no-untyped-call]
        pixels = np.stack([read_image(material.root / material.rows[i].path)[0] for i in batch.tolist()])
        with torch.inference_mode():
            x = forward(start, torch.from_numpy(pixels).permute(0, 3, 1, 2), "image", "layer2")

        def gradient(kind: torch.dtype, fast: bool, x: torch.Tensor = x, y: torch.Tensor = labels[batch]) -> Any:
            model = copy.deepcopy(start).to(kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
            set_trainable(model, FINETUNED.learns, training=True)
            with fast_convolutions([model.layer3, model.layer4] if fast else ()):
                nn.functional.cross_entropy(forward(model, x.to(kind, copy=True), "layer2"), y).backward()  # type: ignore[no-untyped-call]
            return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

        truth = gradient(torch.float64, fast=False)
        for name in errors:
            error = gradient(torch.float32, fast=name == "winograd") - truth
            errors[name].append(float(error.norm() / truth.norm()))
    middle = {name: statistics.median(values) for name, values in errors.items()}
    return {f"gradient_error.{name}": value for name, value in middle.items()}, {
        "rounding": {"batches": len(errors["direct"]), "error": {k: spread(v) for k, v in errors.items()}}
    }


def study(asked: Any, detail: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """A whole study as a process of its own, cold, beside the baseline's epochs of this run times its numbers."""
    with tempfile.TemporaryDirectory() as folder:
        run = asked.run or Path(folder, "run")
        words = [str(Path(sys.executable).with_name("tumorlens")), "study", "--data", asked.data, "--weights",
                 asked.weights, "--precision", asked.precision, "--out", str(run), "--cache", f"{folder}/cache",
                 *(["--max-epochs", "2"] if asked.quick else [])]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        record = json.loads((run / "study.json").read_text())
        trained = {name: json.loads((run / name / "training.json").read_text())["epochs_run"]
                   for name in ("initial", "finetuned")}  # fmt: skip
    share = (record["split"]["train"] + record["split"]["validation"]) / detail["images"]
    baseline = {name: share * detail["epoch_seconds"][f"baseline {name}"]["median"] * trained[name] for name in trained}
    precision = record["device"]["precision"]  # auto's choice is the processor's
    name = f"study_{precision}"
    return {f"speedup.{name}": sum(baseline.values()) / seconds}, {
        name: {
            "precision": precision,
            "seconds": seconds,
            "epochs": trained,
            "baseline_seconds": baseline,
            "steps": record["timing"],
            "peak_memory_gb": record["peak_memory_gb"],
        }
    }


def folds(material: Material, weights: str, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """A cold cross-validation of both configurations, five folds beside the first alone; at most six epochs each."""
    data = material.linked(material.folder / "pooled")
    prefix_seconds: list[float] = []

    def run(*more: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = [str(Path(sys.executable).with_name("tumorlens")), "study", "--data", str(data), "--weights",
                     weights, "--protocol", "grouped-cv", "--max-epochs", "6", "--out", f"{folder}/run", "--cache",
                     f"{folder}/cache", *more]  # fmt: skip
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            records = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("run/fold-*/study.json"))]
            prefix_seconds[:] = [record["timing"]["prefix_s"] for record in records]

    found = alternate({"one": lambda: run("--fold", "1"), "five": run}, repeats, warm=False)
    middle = {name: statistics.median(values) for name, values in found.items()}
    return {"folds.cost_over_one": middle["five"] / middle["one"]}, {
        "folds": {
            "images": len(material.rows),
            "seconds": {k: spread(v) for k, v in found.items()},
            "prefix_s": prefix_seconds,
        }
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="phantom", help="phantom, a zip as Kaggle ships it, or a folder")
    parser.add_argument("--weights", default="none", help="none, imagenet or a ResNet18 state dict")
    parser.add_argument("--images", type=int, help="training images to use (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of the study")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--run", type=Path, help="a new folder for the study's run (default: a temporary one)")
    parser.add_argument("--parts", nargs="*", default=["decode", "prefix", "rounding", "folds", "epochs"])
    asked = parser.parse_args(arguments)
    if asked.run and asked.run.exists():
        parser.error(f"--run {asked.run} exists, and a resumed run is not a cold one; name a new folder")
    if asked.quick:
        asked.images, asked.repeats = asked.images or 256, 1
        asked.parts = [part for part in asked.parts if part != "folds"]
    folder = fetch(asked.data, cache=cache_dir())
    index = build_index(folder, cache_dir())
    training = [row for row in index.rows if row.part == TRAINING]
    order = np.random.default_rng(0).permutation(len(training))[: asked.images]
    native = ["fp32", "bf16"] if BACKENDS["cpu"].has_bf16() else ["fp32"]
    with tempfile.TemporaryDirectory() as scratch:
        rows = tuple(training[i] for i in order)
        material = Material(folder.root, rows, index.classes, find_weights(asked.weights), Path(scratch))
        some = dataclasses.replace(material, rows=rows[:640])
        done: dict[str, Any] = {}
        work = {
            "decode": lambda: decode(material, asked.repeats),
            "prefix": lambda: prefix(some, "fp32", asked.repeats),
            "rounding": lambda: rounding(some),
            "folds": lambda: folds(some, asked.weights, 1),
            "epochs": lambda: epochs(material, native, asked.repeats),
            "study": lambda: study(asked, done["epochs"]),
        }
        chosen = [*asked.parts, *(["study"] if asked.study and "epochs" in asked.parts else [])]
        for measure in (work[name] for name in work if name in chosen):
            figures, detail = measure()
            done |= detail
            # At once: what follows may take an hour.
            keep("speed-quick" if asked.quick else "speed", command(), figures, detail)
            print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
