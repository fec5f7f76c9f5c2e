"""Find, download and save weight files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import urllib.error
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.models import ResNet, ResNet18_Weights

from tumorlens.core.errors import FetchError, WeightsError
from tumorlens.core.files import expanded, user_cache, writing
from tumorlens.core.progress import log
from tumorlens.readers.pixels import PREPROCESSING
from tumorlens.training.configurations import Configuration
from tumorlens.training.state_dicts import read_backbone

OFFICIAL_SHA256 = "f37072fd"  # first 8 hex digits, as in the official file's name
_PATIENCE_SECONDS = 30.0  # timeout for a server that accepts a connection but sends nothing


@dataclass(frozen=True)
class Weights:
    """The initial weights of a network."""

    name: str
    sha256: str
    """SHA-256 of the file; empty for random weights."""
    official: bool
    """Whether these are torchvision's IMAGENET1K_V1."""
    kind: Literal["imagenet", "file", "none"]
    note: str
    """One sentence for the reader; empty for the official weights."""
    path: Path | None = None

    def record(self) -> dict[str, Any]:
        """Return what is written to study.json."""
        return {k: v for k, v in asdict(self).items() if k != "path"}


def find_weights(spec: str) -> Weights:
    """Resolve `--weights`: `imagenet` (downloaded by torchvision, hash-checked), `none` or a file.

    Raises
    ------
    FetchError
        The official weights cannot be downloaded.
    WeightsError
        The file is missing or does not hold ResNet18 weights.
    """
    if spec == "none":
        return Weights("random weights", "", False, "none", "The network started from RANDOM weights, not ImageNet's.")
    path = _download() if spec == "imagenet" else expanded(spec)
    if not path.is_file():
        raise WeightsError(
            f"--weights {spec} is no file.",
            cure="Name a file with a ResNet18 state dict (.pth, .pt), imagenet or none.",
        )
    sha256 = _sha256(path)
    if sha256.startswith(OFFICIAL_SHA256):
        return Weights("torchvision ResNet18_Weights.IMAGENET1K_V1", sha256, True, "imagenet", "", path)
    if spec == "imagenet":  # torch.hub checks downloads, but not files that already exist
        raise WeightsError(
            f"{path} is not torchvision's file: its SHA-256 begins with {sha256[:8]}, not {OFFICIAL_SHA256}.",
            cure="Delete it, and it is downloaded again; or name your own file with --weights FILE.",
        )
    if how := read_backbone(path)[1]:
        log.info(f"Weights of {path.name}: {how}.")
    how = f" ({how})" if how else ""
    note = f"The network started from the file {path.name}{how}, not from torchvision's official ImageNet weights."
    return Weights(path.name, sha256, False, "file", note, path)


def _download() -> Path:
    official = ResNet18_Weights.IMAGENET1K_V1
    folder = Path(torch.hub.get_dir())
    if not folder.is_absolute() and not os.environ.get("TORCH_HOME"):  # no home, or a variable that does not count
        folder = user_cache("Set TORCH_HOME to a folder, or name a file with --weights FILE.") / "torch" / "hub"
    path = folder / "checkpoints" / Path(official.url).name
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        official.get_state_dict(progress=False, check_hash=True, model_dir=path.parent)
    except (urllib.error.URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = getattr(error, "reason", None) or error
        path.unlink(missing_ok=True) if isinstance(error, RuntimeError | EOFError | pickle.UnpicklingError) else None
        raise FetchError(
            f"The ImageNet weights could not be downloaded from {official.url} ({reason}).",
            cure="Download that file elsewhere and name it with --weights FILE. "
            "--weights none starts from random weights, which gives far lower accuracy.",
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_state_dict(model: ResNet) -> dict[str, Tensor]:
    """Return the state dict on the CPU, in float32 and the default memory layout, as torchvision saves it."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}


def save_checkpoint(model: ResNet, path: Path) -> str:
    """Write a plain state dict atomically; return the SHA-256 of the file.

    `torchvision.models.resnet18(num_classes=n).load_state_dict(torch.load(path, weights_only=True))` loads it.
    """
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind an error of its own
    torch.save(plain_state_dict(model), buffer)
    with writing(path) as file:
        file.write(buffer.getbuffer())
    return _sha256(path)


def checkpoint_card(
    configuration: Configuration, classes: tuple[str, ...], sha256: str, provenance: dict[str, Any]
) -> dict[str, Any]:
    """Return the content of the JSON file next to a checkpoint: classes, preprocessing and provenance."""
    return {
        "architecture": "torchvision resnet18",
        "file": configuration.checkpoint,
        "sha256": sha256,
        "classes": list(classes),
        "preprocessing": PREPROCESSING,
        "configuration": asdict(configuration),
        **provenance,
    }
