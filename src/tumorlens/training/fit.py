"""Train one configuration on cached activations, with early stopping; an interrupted training can be resumed."""

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

    The batch order of an epoch depends only on `seed` and the epoch number, and nothing else is random, so a run
    resumed from `last` gives the same result as an uninterrupted one.

    Several processes take the same steps as one: each computes its share of every batch, and gradients and the
    statistics of trainable BatchNorm layers are those of the whole batch. All processes start with the same `model`.

    Parameters
    ----------
    model
        The network with its initial weights; changed in place. Frozen stages and their BatchNorm statistics stay
        bit-identical.
    data
        Features at a boundary before every trainable stage, the training images, and the validation images, which
        choose the best epoch.
    compute
        Where and how to compute. Only rank 0 reads and writes `last`.
    seed
        Seed of the batch order.
    last
        File to which the state is saved after every epoch. A single process writes it while the next epoch runs;
        several processes finish writing it first. A single process on a GPU, whose epochs can be shorter than the
        write, skips saves so that they take at most a fifth of the time. If the file exists and belongs to the same
        configuration, training resumes from it.
    on_epoch
        Called with the record of each epoch, including those before a resumed run was interrupted.

    Returns
    -------
    history
        One record per epoch: epoch, train_loss, train_accuracy, validation_loss, validation_accuracy,
        seconds, images_per_s, best.
    stopped
        Why training stopped, as a phrase.

    Raises
    ------
    RunError
        The loss is not finite, another process has ended, or the state could not be written; a failed write is
        reported at the next write or after the last epoch.
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
                if world.size > 1:  # the hint below must not be given before the file is written
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
    """Return a context in which trainable stages use Winograd convolutions where faster, if `compute` selects them."""
    learning = [m for stage in configuration.learns for m in stage_modules(model, stage)]
    return fast_convolutions(learning if compute.convolutions == "winograd" else ())


def _validated(
    configuration: Configuration, epoch: int, train_loss: float, logits: Tensor, labels: Tensor
) -> tuple[float, float]:
    """Return validation loss and accuracy; all ranks use rank 0's, as their processors may round differently."""
    loss = float(nn.functional.cross_entropy(logits, labels))
    if not np.isfinite(loss) or not np.isfinite(train_loss):
        raise RunError(
            f"{configuration.name}: the loss is {loss} after epoch {epoch}, so it diverged.",
            cure=f"Lower learning_rate (now {configuration.learning_rate}) in a --config file.",
        )
    return loss, float((logits.argmax(1) == labels).double().mean())


def _one_epoch(steps: Steps, configuration: Configuration, epoch: int, seed: int) -> tuple[float, float]:
    """Train for one epoch in a new random order; return the mean loss and accuracy during the epoch."""
    set_trainable(steps.model, configuration.learns, training=True)
    n, world = len(steps.train), steps.world
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    batches = list(steps.begin(order).split(configuration.batch_size))  # type: ignore[no-untyped-call]
    # BatchNorm needs at least two images per batch, and every process needs at least one.
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
    """Compute logits, float32 [n, classes] on the CPU, from activations; puts the model into eval mode.

    With several processes, each predicts a share of the images, and all get the logits of all images.
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
    return world.all_reduce(logits)  # exact: each row is nonzero in one process only
