"""Whether heatmaps depend on the trained weights: the sanity check of Adebayo et al., NeurIPS 2018, section 3.

    python benchmarks/sanity.py RUN [--configuration finetuned] [--n 100]

The stages of a trained network are randomized one after another, from the head down ("cascading randomization"). The
map of the class that the trained network predicts must change. Writes benchmarks/results/sanity.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import command, keep
from scipy.stats import spearmanr
from torchvision.models import resnet18

from tumorlens.export.onnx_graph import build_graph
from tumorlens.export.trained_run import open_trained_run
from tumorlens.inference.network import open_session

STAGES = ("fc", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="finetuned")
    parser.add_argument("--n", type=int, default=100, help="test images")
    asked = parser.parse_args(arguments)
    source = open_trained_run(asked.run, asked.configuration)
    rows = source.split("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[: asked.n])
    pixels = np.concatenate(list(source.batches([rows[i] for i in chosen], "Test images")))
    k = len(source.classes)
    state = {n: v.numpy() for n, v in torch.load(source.checkpoint, map_location="cpu", weights_only=True).items()}
    torch.manual_seed(0)
    fresh = {name: value.numpy() for name, value in resnet18(num_classes=k).state_dict().items()}

    def outputs() -> tuple[np.ndarray, np.ndarray]:
        session = open_session(build_graph(state, k).SerializeToString())
        found = [session.run(["logits", "heatmap"], {"pixels": pixels[i : i + 32]}) for i in range(0, len(pixels), 32)]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]

    logits, before = outputs()
    named, every = logits.argmax(1), np.arange(len(logits))
    steps = []
    for i, stage in enumerate(STAGES):
        state |= {name: value for name, value in fresh.items() if name.split(".")[0] == stage}
        after = outputs()[1]
        rank = [
            float(spearmanr(one.ravel(), two.ravel()).statistic)
            for one, two in zip(before[every, named], after[every, named], strict=True)
        ]
        steps.append({
            "drawn_anew": list(STAGES[: i + 1]), "mean": float(np.mean(rank)),
            "mean_absolute": float(np.mean(np.abs(rank))),
            "low": float(np.quantile(rank, 0.05)), "high": float(np.quantile(rank, 0.95)),
        })  # fmt: skip
    detail = {"n": len(pixels), "configuration": asked.configuration, "steps": steps}
    keep("sanity", command(), {}, detail | {"checkpoint_sha256": source.sha256})
    print(json.dumps(detail, indent=1))


if __name__ == "__main__":
    main()
