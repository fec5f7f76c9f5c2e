"""Fit one configuration: epochs over cached activations, early stopping, resumable at every epoch."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.configurations import STAGES, Configuration
from tumorlens.errors import RunError
from tumorlens.features import Activations
from tumorlens.model import forward, set_learning
from tumorlens.progress import Bar, say
from tumorlens.runs import Json, writing

EVALUATION_BATCH = 128


class Source(Protocol):
    """Where rows of activations come from."""

    @property
    def boundary(self) -> str: ...

    def rows(self, hashes: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Part:
    """Images of one split.

    `hashes` are SHA-256 of the files; `labels` int64 [n], indices into the classes.
    """

    hashes: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class InMemory:
    """Activations held in memory: for small ones, whose reading would cost more than the step."""

    boundary: str
    values: Tensor
    row_of: dict[str, int]

    @classmethod
    def load(cls, source: Activations, parts: Sequence[Part]) -> InMemory:
        """Read the rows of all parts once."""
        hashes = list(dict.fromkeys(sha256 for part in parts for sha256 in part.hashes))
        return cls(source.boundary, source.rows(hashes).float(), {h: i for i, h in enumerate(hashes)})

    def rows(self, hashes: Sequence[str]) -> Tensor:
        return self.values[[self.row_of[sha256] for sha256 in hashes]]


def fit(
    model: ResNet,
    configuration: Configuration,
    source: Source,
    train: Part,
    validation: Part,
    *,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
    last: Path | None = None,
    on_epoch: Callable[[Json], None] = lambda _: None,
) -> tuple[list[Json], str]:
    """Train `model` in place and leave it with the weights of its best epoch.

    An epoch's batch order depends on `seed` and the epoch's number alone, and nothing else is
    random, so a run that goes on from `last` ends where an uninterrupted one does.

    Parameters
    ----------
    model
        At its start; changed in place. Frozen stages and their BatchNorm statistics stay bit-identical.
    source
        Activations at a boundary before every learning stage.
    train, validation
        What to learn from, and what chooses the epoch.
    seed
        Of the batch order.
    device, precision
        Where and how to compute; losses and weights are float32 in any case.
    last
        Where to keep the state after every epoch; an existing one of the same configuration is gone on from.
    on_epoch
        Called with each epoch's record, those of a resumed run's first part included.

    Returns
    -------
    history
        One record an epoch: epoch, train_loss, train_accuracy, validation_loss, validation_accuracy,
        seconds, images_per_s, best.
    stopped
        Why it stopped, as a phrase.

    Raises
    ------
    RunError
        The loss is no finite number, or the state cannot be written.
    """
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, configuration)
    state = _State.resume(last, configuration, seed, model, optimizer) if last else _State()
    for earlier in state.history:
        on_epoch(earlier)
    best_loss = min((r["validation_loss"] for r in state.history), default=float("inf"))
    best_epoch = max((r["epoch"] for r in state.history if r["best"]), default=0)
    stopped = f"all {configuration.max_epochs} epochs ran"
    for epoch in range(len(state.history) + 1, configuration.max_epochs + 1):
        if epoch - 1 - best_epoch >= configuration.patience:
            break
        began = time.perf_counter()
        train_loss, train_accuracy = _one_epoch(
            model, configuration, source, train, optimizer, epoch, seed, device, precision
        )
        seconds = time.perf_counter() - began
        logits = predict_logits(model, source, validation.hashes, device=device, precision=precision)
        loss = float(nn.functional.cross_entropy(logits, validation.labels))
        if not np.isfinite(loss) or not np.isfinite(train_loss):
            raise RunError(
                f"{configuration.name}: the loss is {loss} after epoch {epoch}, so it diverged.",
                cure=f"Lower learning_rate (now {configuration.learning_rate}) in a --config file.",
            )
        accuracy = float((logits.argmax(1) == validation.labels).double().mean())
        record: Json = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "seconds": round(time.perf_counter() - began, 3),
            "images_per_s": round(len(train) / seconds, 1),
            "best": loss < best_loss,
        }
        state.history.append(record)
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            state.best = _learned(model, configuration)
        if last:
            state.save(last, configuration, seed, model, optimizer)
        on_epoch(record)
    if len(state.history) - best_epoch >= configuration.patience:
        stopped = f"early stopping: no lower validation loss for {configuration.patience} epochs"
    _restore(model, state.best)
    set_learning(model, (), training=False)
    return state.history, stopped


def _one_epoch(
    model: ResNet,
    configuration: Configuration,
    source: Source,
    train: Part,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[float, float]:
    """One pass over the training images in a fresh order; returns mean loss and accuracy on the way."""
    set_learning(model, configuration.learns, training=True)
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    batches = list(torch.randperm(len(train), generator=generator).split(configuration.batch_size))  # type: ignore[no-untyped-call]
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm cannot take one image
        batches[-2:] = [torch.cat(batches[-2:])]
    total_loss, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    with Bar(f"{configuration.name}, epoch {epoch}", len(train)) as bar:
        for batch in batches:
            x = source.rows([train.hashes[i] for i in batch.tolist()]).to(device)
            y = train.labels[batch].to(device)  # (B,)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                logits = forward(model, x, source.boundary).float()  # (B, classes)
            loss = nn.functional.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach() * len(y)
            correct += (logits.detach().argmax(1) == y).sum()
            bar.advance(len(y))
    return float(total_loss) / len(train), float(correct) / len(train)


def predict_logits(
    model: ResNet,
    source: Source,
    hashes: Sequence[str],
    *,
    device: torch.device,
    precision: torch.dtype,
    title: str = "Predicting",
) -> Tensor:
    """Logits float32 [n, classes] on the CPU, from activations; the model is put into eval mode."""
    model.eval()
    found = []
    with Bar(title, len(hashes)) as bar, torch.inference_mode():
        for i in range(0, len(hashes), EVALUATION_BATCH):
            x = source.rows(hashes[i : i + EVALUATION_BATCH]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                found.append(forward(model, x, source.boundary).float().cpu())
            bar.advance(len(x))
    return torch.cat(found).clone()


def _optimizer(model: ResNet, configuration: Configuration) -> torch.optim.Optimizer:
    set_learning(model, configuration.learns, training=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    decay = configuration.weight_decay
    if configuration.optimizer == "sgd":
        return torch.optim.SGD(learning, configuration.learning_rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if configuration.optimizer == "adamw" else torch.optim.Adam
    return kind(learning, configuration.learning_rate, weight_decay=decay)


def _learned(model: ResNet, configuration: Configuration) -> dict[str, Tensor]:
    """A copy of parameters and statistics of the learning stages."""
    stages = tuple(f"{s}." for s in configuration.learns if s != "stem")
    stages += ("conv1.", "bn1.") if "stem" in configuration.learns else ()
    return {k: v.detach().cpu().clone() for k, v in model.state_dict().items() if k.startswith(stages)}


def _restore(model: ResNet, state: dict[str, Tensor]) -> None:
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise RunError(f"The kept state has unknown tensors: {unexpected[:3]}.", cure="Delete last.pt.")


class _State:
    """What a training needs to go on: history, best weights; beside them weights and optimiser in `last.pt`."""

    def __init__(self) -> None:
        self.history: list[Json] = []
        self.best: dict[str, Tensor] = {}

    @staticmethod
    def key(configuration: Configuration, seed: int) -> str:
        return json.dumps({"configuration": asdict(configuration), "seed": seed, "stages": STAGES}, sort_keys=True)

    @classmethod
    def resume(
        cls, last: Path, configuration: Configuration, seed: int, model: ResNet, optimizer: torch.optim.Optimizer
    ) -> _State:
        state = cls()
        if not last.exists():
            return state
        try:
            kept = torch.load(last, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds on damaged files
            say(f"{last} is damaged ({type(error).__name__}): {configuration.name} starts anew.")
            return state
        if kept.get("key") != cls.key(configuration, seed):
            say(f"{last} belongs to another configuration: {configuration.name} starts anew.")
            return state
        _restore(model, kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        state.history, state.best = json.loads(kept["history"]), kept["best"]
        say(f"{configuration.name}: going on after epoch {len(state.history)}.")
        return state

    def save(
        self, last: Path, configuration: Configuration, seed: int, model: ResNet, optimizer: torch.optim.Optimizer
    ) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "key": self.key(configuration, seed),
                "weights": _learned(model, configuration),
                "best": self.best,
                "optimizer": optimizer.state_dict(),
                "history": json.dumps(self.history),
            },
            buffer,
        )
        with writing(last) as file:
            file.write(buffer.getbuffer())
