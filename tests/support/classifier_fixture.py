"""Classifiers for tests: a real one with random weights, and one that reads its answer off the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet, resnet18

from tumorlens.export.export import write_model
from tumorlens.export.onnx_graph import build_graph
from tumorlens.inference.classifier import FORMAT, Classifier
from tumorlens.inference.uncertainty import OK, REFUSED, UNCERTAIN, Classification, UncertaintyModel
from tumorlens.inference.uncertainty.fitting import LabelledOutputs, TrainingOutputs, fit_uncertainty
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.readers import Slice, Unreadable
from tumorlens.readers.pixels import PREPROCESSING

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
CARD: dict[str, Any] = {
    "format": FORMAT, "classes": list(CLASSES), "preprocessing": PREPROCESSING, "configuration": "finetuned",
    "precision": "fp32", "checkpoint_sha256": "0123456789abcdef",
}  # fmt: skip


def network(seed: int = 0) -> ResNet:
    """Random weights, and random BatchNorm statistics so that folding them is no identity."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet18(num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                values.copy_(torch.rand(values.shape, generator=random) * (high - low) + low)
    return model


def arrays(model: ResNet) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def lenient_uncertainty() -> UncertaintyModel:
    """Fitted on noise, with thresholds that keep everything."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    logits = (random.normal(0, 1, (40, 4)) + 4 * np.eye(4)[labels]).astype(np.float32)
    features, statistics = (random.normal(0, 1, (40, size)).astype(np.float32) for size in (512, 1024))
    pixels = random.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8)
    uncertainty = fit_uncertainty(
        CLASSES,
        LabelledOutputs(labels, logits, features, statistics, pixels),
        TrainingOutputs(labels, features, statistics, appearance_features(pixels)),
    )
    return replace(uncertainty, refuse_above=1e6, doubt_above=1e6, beyond_above=1e6)


def write_classifier(path: Path, seed: int = 0, **changes: object) -> Path:
    write_model(path, build_graph(arrays(network(seed)), 4), CARD | changes, lenient_uncertainty())
    return path


# A picture of one grey level says what must be answered: level = 10 * class + 1 ok, 2 uncertain, 3 refused.
STATES = (OK, UNCERTAIN, REFUSED)


def level(label: str, verdict: str = OK) -> int:
    return 10 * CLASSES.index(label) + 1 + STATES.index(verdict)


def grey(label: str, verdict: str = OK) -> Image.Image:
    return Image.new("L", (32, 32), level(label, verdict))


@dataclass(frozen=True)
class FakeSession:
    def run(self, names: tuple[str, ...], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        levels = feed["pixels"][:, 0, 0, 0].astype(int)
        logits = 5.0 * np.eye(4)[levels // 10 % 4]
        heatmap = np.zeros((len(levels), 4, 7, 7))
        heatmap[..., 2, 5] = logits
        found = {"logits": logits, "features": np.tile(levels[:, None] % 10, 512), "heatmap": heatmap,
                 "statistics": np.zeros((len(levels), 1024))}  # fmt: skip
        return [found[name].astype(np.float32) for name in names]


@dataclass(frozen=True)
class FakeUncertainty:
    classes: tuple[str, ...] = CLASSES

    def assess(self, logits: np.ndarray, features: np.ndarray, *_: object, coverage: float) -> Classification:
        p = np.exp(logits.astype(float))
        p /= p.sum(1, keepdims=True)
        verdicts = [STATES[int(f) - 1] for f in features[:, 0]]
        return Classification(
            p, p > 1 - coverage, verdicts, ["" if v == OK else "so made" for v in verdicts], features[:, 0]
        )


def fake_classifier() -> Classifier:
    return Classifier(Path("fake.onnx"), CLASSES, CARD, FakeUncertainty(), FakeSession())  # type: ignore[arg-type]


def volume(*labels: str, series: str = "series-1", file: str = "v.nii") -> list[Slice | Unreadable]:
    """Slices whose predictions are as named: `glioma`, `glioma?` (uncertain), `x` (refused) or `!` (unreadable)."""
    found: list[Slice | Unreadable] = []
    for i, text in enumerate(labels):
        if text == "!":
            found.append(Unreadable(file, i, f"frame {i + 1} cannot be decoded", "Export it again.", series))
            continue
        verdict = REFUSED if text == "x" else UNCERTAIN if text.endswith("?") else OK
        value = level("notumor" if text == "x" else text.rstrip("?"), verdict)
        found.append(Slice(file, i, len(labels), series, np.full((224, 224, 3), value, np.uint8), {}))
    return found
