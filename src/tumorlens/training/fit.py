"""Fit one configuration: epochs over cached activations, early stopping, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import Json
from tumorlens.core.progress import Bar
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import Compute, deterministic
from tumorlens.training.kernels.dispatch import fast_convolutions
from tumorlens.training.model import forward, set_trainable, stage_modules
from tumorlens.training.resume_state import ResumeState, restore_state, trainable_state
from tumorlens.training.steps import (
    FeatureSource,
    Steps,
    TrainingData,
    make_steps,
)
from tumorlens.training.sync_batchnorm import convert_batchnorm

EVALUATION_BATCH = 128


@deterministic()
def fit(
    model: ResNet,
    configuration: Configuration,
    data: TrainingData,
    compute: Compute,
    *,
    seed: int,
    last: Path | None = None,
    on_epoch: Callable[[Json], None] = lambda _: None,
) -> tuple[list[Json], str]:
    """Train `model` in place and leave it with the weights of its best epoch.

    An epoch's batch order depends on `seed` and the epoch's number alone, and nothing else is
    random, so a run that goes on from `last` ends where an uninterrupted one does.

    Several processes take the steps that one would: each computes its share of every batch, and gradients
    and the statistics of learning BatchNorm are those of the whole batch. All begin with the same `model`.

    Parameters
    ----------
    model
        At its start; changed in place. Frozen stages and their BatchNorm statistics stay bit-identical.
    data
        Features at a boundary before every trainable stage, the images to train on, and those that choose the epoch.
    compute
        Where and how to compute. Of its processes, rank 0 alone reads and writes `last`.
    seed
        Of the batch order.
    last
        Where to keep the state after every epoch, written by one process while the next epoch runs, by several before
        it; on a GPU, whose epochs may take less time than that, for a fifth of the time at most. An existing one of the
        same configuration is gone on from.
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
        The loss is no finite number, another process has ended, or the state cannot be written, which is said when it
        is to be written again or all epochs have run.
    ConfigError
        There are more processes than images in a batch.
    """
    train, validation, world = data.train, data.validation, compute.world
    if min(configuration.batch_size, len(train)) < world.size:
        raise ConfigError(
            f"{configuration.name}: {world.size} processes cannot share a batch of "
            f"{min(configuration.batch_size, len(train))} images.",
            cure="Start fewer processes, or set a larger batch_size in a --config file.",
        )
    model.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world.size > 1:
        convert_batchnorm(model, world)
    set_trainable(model, configuration.learns, training=True)
    steps = make_steps(model, configuration, data, compute)
    optimizer = steps.optimizer
    state = ResumeState(configuration, seed)
    world.resume_hint[:] = [f"{configuration.name} starts from the beginning"]
    if saved := world.run_on_rank0(state.read, last) if last else None:
        state.resume(saved, model, optimizer)
    for earlier in state.history:
        on_epoch(earlier)
        world.resume_hint[:] = [f"{configuration.name} resumes after epoch {earlier['epoch']}"]
    best_loss = min((r["validation_loss"] for r in state.history), default=float("inf"))
    best_epoch = max((r["epoch"] for r in state.history if r["best"]), default=0)
    stopped = f"all {configuration.max_epochs} epochs ran"
    with trainable_convolutions(model, configuration, compute), state:
        for epoch in range(len(state.history) + 1, configuration.max_epochs + 1):
            if epoch - 1 - best_epoch >= configuration.patience:
                break
            began = time.perf_counter()
            train_loss, train_accuracy = _one_epoch(steps, configuration, epoch, seed)
            seconds = time.perf_counter() - began
            logits = predict_logits(model, data.source, validation.hashes, compute)
            loss, accuracy = world.run_on_rank0(_validated, configuration, epoch, train_loss, logits, validation.labels)
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
                state.best = trainable_state(model, configuration)
            if last and (world.size > 1 or compute.device.type == "cpu" or state.is_due()):
                world.run_on_rank0(state.save, last, model, optimizer)
                if world.size > 1:  # the hint must be true
                    world.run_on_rank0(state.wait)
                world.resume_hint[:] = [f"{configuration.name} resumes after epoch {epoch}"]
            on_epoch(record)
    if len(state.history) - best_epoch >= configuration.patience:
        stopped = f"early stopping: no lower validation loss for {configuration.patience} epochs"
    restore_state(model, state.best)
    set_trainable(model, (), training=False)
    return state.history, stopped


def trainable_convolutions(
    model: ResNet, configuration: Configuration, compute: Compute
) -> AbstractContextManager[None]:
    """Within it the learning stages convolve by Winograd's algorithm, where that is faster and `auto` lets it."""
    learning = [m for stage in configuration.learns for m in stage_modules(model, stage)]
    return fast_convolutions(learning if compute.convolutions == "winograd" else ())


def _validated(
    configuration: Configuration, epoch: int, train_loss: float, logits: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Validation loss and accuracy; rank 0's decide for all, whose processors may round otherwise."""
    loss = float(nn.functional.cross_entropy(logits, labels))
    if not np.isfinite(loss) or not np.isfinite(train_loss):
        raise RunError(
            f"{configuration.name}: the loss is {loss} after epoch {epoch}, so it diverged.",
            cure=f"Lower learning_rate (now {configuration.learning_rate}) in a --config file.",
        )
    return loss, float((logits.argmax(1) == labels).double().mean())


def _one_epoch(steps: Steps, configuration: Configuration, epoch: int, seed: int) -> tuple[float, float]:
    """One pass over the training images in a fresh order; returns mean loss and accuracy on the way."""
    set_trainable(steps.model, configuration.learns, training=True)
    n, world = len(steps.train), steps.world
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    batches = list(steps.begin(order).split(configuration.batch_size))  # type: ignore[no-untyped-call]
    # BatchNorm cannot take one image, and a process cannot take none.
    if len(batches) > 1 and len(batches[-1]) < max(2, world.size):
        batches[-2:] = [torch.cat(batches[-2:])]
    with Bar(f"{configuration.name}, epoch {epoch}", n) as bar:
        for batch in steps.each(batches):
            bar.advance(len(batch))
    world.all_reduce(steps.loss)
    world.all_reduce(steps.correct)
    return float(steps.loss) / n, float(steps.correct) / n


@deterministic()
def predict_logits(
    model: ResNet,
    source: FeatureSource,
    hashes: Sequence[str],
    compute: Compute,
    *,
    title: str = "Predicting",
) -> Tensor:
    """Logits float32 [n, classes] on the CPU, from activations; the model is put into eval mode.

    Several processes predict a share each, and all get the logits of all images.
    """
    model.eval()
    world = compute.world
    mine = hashes[world.rank :: world.size]
    found = []
    with Bar(title, len(mine)) as bar, torch.inference_mode():
        for i in range(0, len(mine), EVALUATION_BATCH):
            x = source.rows(mine[i : i + EVALUATION_BATCH]).to(compute.device)
            with compute.autocast():
                found.append(forward(model, x, source.boundary).float())
            bar.advance(len(x))
    if world.size == 1:
        return torch.cat(found).cpu().clone()
    logits = torch.zeros(len(hashes), model.fc.out_features)
    if found:  # there may be fewer images than processes
        logits[world.rank :: world.size] = torch.cat(found).cpu()
    return world.all_reduce(logits)  # exact: each row is one process's, and zero at all others
