"""What tests of training begin with: the small folder split, a network, activations on disk and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet

from tumorlens.data.fetch import fetch
from tumorlens.data.index import ImageRecord, build_index
from tumorlens.data.splits import split_index
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.features import CachedFeatures, InMemoryFeatures, extract_features
from tumorlens.training.model import build_model
from tumorlens.training.steps import Subset
from tumorlens.training.weights import find_weights

CPU = torch.device("cpu")
EXACT = Compute(CPU, torch.float32, "winograd")
#: 27 training images: six full batches an epoch, more than are taken before a graph is recorded, and one of 3.
LATE = Configuration("late", ("layer3", "layer4", "fc"), learning_rate=1e-4, batch_size=4, max_epochs=3, patience=3)


@pytest.fixture(scope="module")
def rows(small_folder: Path, small_cache: Path) -> tuple[ImageRecord, ...]:
    index = build_index(fetch(str(small_folder), cache=small_cache), small_cache)
    return split_index(index, seed=0).rows


def network() -> ResNet:
    return build_model(find_weights("none"), 4, seed=0)


def part(rows: tuple[ImageRecord, ...], split: str) -> Subset:
    classes = sorted({row.label for row in rows})
    kept = [row for row in rows if row.split == split]
    return Subset(tuple(r.sha256 for r in kept), torch.tensor([classes.index(r.label) for r in kept]))


def features_of(
    model: ResNet, boundary: str, rows: tuple[ImageRecord, ...], folder: Path, cache: Path
) -> CachedFeatures:
    return extract_features(model, [boundary], rows, folder, cache=cache, compute=EXACT)[0][boundary]


def held(
    rows: tuple[ImageRecord, ...],
    folder: Path,
    cache: Path,
    boundary: str,
    device: torch.device,
    precision: torch.dtype,
) -> InMemoryFeatures:
    found = extract_features(network(), [boundary], rows, folder, cache=cache, compute=Compute(device, precision))[0]
    return InMemoryFeatures.load(found[boundary], [row.sha256 for row in rows], device)
