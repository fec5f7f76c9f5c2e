"""What is trained on where ours and the notebook are timed, and how ours is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tumorlens.core.files import Json
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import PRECISIONS, Compute
from tumorlens.training.features import CachedFeatures, extract_features
from tumorlens.training.fit import fit
from tumorlens.training.model import build_model
from tumorlens.training.steps import Subset, TrainingData
from tumorlens.training.weights import Weights

PREFIX_BATCH = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Material:
    """Some images of Training, dealt 85 to 15, and the weights to start from."""

    root: Path
    rows: tuple[Any, ...]
    classes: tuple[str, ...]
    weights: Weights
    folder: Path  # scratch
    device: torch.device = CPU  # of ours

    def parts(self) -> tuple[Subset, Subset]:
        cut = round(len(self.rows) * 0.85)
        return self.part(self.rows[:cut]), self.part(self.rows[cut:])

    def part(self, rows: Sequence[Any]) -> Subset:
        labels = torch.tensor([self.classes.index(row.label) for row in rows])
        return Subset(tuple(row.sha256 for row in rows), labels)

    def linked(self, root: Path) -> Path:
        """The same images as files below `root`, a folder a class."""
        for row in self.rows:
            place = root / row.label / f"{row.sha256[:16]}{Path(row.path).suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to(self.root / row.path)
        return root

    def prefix(self, boundaries: Sequence[str], precision: str, name: str) -> tuple[dict[str, CachedFeatures], float]:
        """The frozen layers over all images into a cache of its own; also the seconds."""
        model = build_model(self.weights, len(self.classes), 0)
        began = time.perf_counter()
        caches, computed = extract_features(
            model, boundaries, self.rows, self.root, cache=self.folder / name, 
            compute=Compute(self.device, PRECISIONS[precision]), batch_size=PREFIX_BATCH,
        )  # fmt: skip
        assert computed == len({row.sha256 for row in self.rows})
        return caches, time.perf_counter() - began

    def train(self, configuration: Configuration, source: Any, precision: str, epochs: int) -> list[Json]:
        """`epochs` epochs of ours, validation included; their records."""
        one = dataclasses.replace(configuration, start="imagenet", max_epochs=epochs, patience=epochs)
        before = torch.get_num_threads()
        torch.set_num_threads(1 if source.boundary == "avgpool" else before)
        model = build_model(self.weights, len(self.classes), 0)
        fast: Literal["winograd", "direct"] = "winograd" if self.device.type == "cpu" else "direct"
        compute = Compute(self.device, PRECISIONS[precision], fast)
        history, _ = fit(model, one, TrainingData(source, *self.parts()), compute, seed=0)
        torch.set_num_threads(before)
        return history
