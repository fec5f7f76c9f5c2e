"""Build ResNet18, freeze its stages, and run it from one boundary to another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

from tumorlens.training.architecture import BOUNDARIES, STAGES, TABLE
from tumorlens.training.configurations import Configuration
from tumorlens.training.state_dicts import read_backbone
from tumorlens.training.weights import Weights


def build_model(weights: Weights, n_classes: int, seed: int) -> ResNet:
    """Build the initial network: `weights` up to the pooling, and a new head with `n_classes` outputs.

    The head, or the whole network if `weights` has no file, uses torchvision's default initialisation, seeded with
    `seed`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: ResNet = resnet18(num_classes=n_classes)
    if weights.path is not None:
        model.load_state_dict(_backbone(weights.path, weights.sha256), strict=False)
    return model.eval()


@lru_cache(maxsize=1)
def _backbone(path: Path, _sha256: str) -> dict[str, Tensor]:
    """Read weights without the head. Cached, as a study builds many networks; load_state_dict copies the tensors."""
    return read_backbone(path)[0]


def stage_modules(model: ResNet, stage: str) -> list[nn.Module]:
    """Return the modules that hold the parameters of a stage, one of STAGES."""
    return [getattr(model, name) for name in TABLE[STAGES.index(stage)].modules]


def set_trainable(model: ResNet, learns: Iterable[str], *, training: bool) -> None:
    """Freeze all other stages: they get no gradients, and their BatchNorm statistics stay fixed (eval mode).

    Parameters
    ----------
    learns
        Trainable stages, a subset of STAGES.
    training
        Whether trainable stages are in train mode (BatchNorm uses batch statistics) or in eval mode.
    """
    learns = set(learns)
    model.eval()
    for stage in STAGES:
        for module in stage_modules(model, stage):
            module.requires_grad_(stage in learns)
            module.train(training and stage in learns)


def forward(model: ResNet, x: Tensor, start: str = "image", stop: str = "logits") -> Tensor:
    """Run the network from one boundary to another.

    Parameters
    ----------
    x
        Values at `start`: uint8 [n, 3, 224, 224] (0 to 255) or normalised floats at `image`, float [n, 512] at
        `avgpool`, and float [n, c, h, w] otherwise.
    start, stop
        Keys of BOUNDARIES.

    Returns
    -------
    Tensor
        Activations at `stop`; at `logits`, float [n, classes].
    """
    for stage in STAGES[BOUNDARIES[start] : BOUNDARIES[stop]]:
        if stage == "stem":
            x = model.maxpool(model.bn1(model.conv1(normalise(x))))
            x = model.relu(x)  # gives the same values as ReLU before pooling, on a quarter as many numbers
        else:
            x = getattr(model, stage)(x)
        if stage == "layer4":
            if x.requires_grad and x.device.type == "cpu":
                # The gradient of the pooling is an expanded view, which the next kernels are slow to read.
                x.register_hook(lambda g: g.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
            x = torch.flatten(model.avgpool(x), 1)  # (B, 512)
    return x


def normalise(x: Tensor) -> Tensor:
    """Scale uint8 [n, 3, h, w] by 1/255 and apply Normalize(mean=0.5, std=0.5): float32 from -1 to 1."""
    return x if x.is_floating_point() else (x.float() / 255 - 0.5) / 0.5


def state_hash(model: ResNet, stop: str) -> str:
    """Return the hex SHA-256 of all parameters and buffers up to a boundary: part of the key of cached features."""
    digest = hashlib.sha256()
    for stage in STAGES[: BOUNDARIES[stop]]:
        for module in stage_modules(model, stage):
            for key, value in module.state_dict().items():
                if key.endswith("num_batches_tracked"):
                    continue
                digest.update(f"{stage}.{key}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def count_parameters(model: ResNet, configuration: Configuration) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of all parameters."""
    learned = sum(
        p.numel() for s in configuration.learns for m in stage_modules(model, s) for p in m.parameters()
    )  # fmt: skip
    return learned, sum(p.numel() for p in model.parameters())
