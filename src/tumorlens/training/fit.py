"""Fit one configuration: epochs over cached activations, early stopping, resumable."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.core.errors import ConfigError, RunError
from tumorlens.core.files import Json, writing
from tumorlens.core.progress import Bar, log
from tumorlens.training.architecture import STAGES
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import Compute, deterministic
from tumorlens.training.kernels.dispatch import quick
from tumorlens.training.model import forward, set_trainable, stage_modules
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
    kept = world.run_on_rank0(_State.read, last, configuration, seed) if last else None
    state = _State.resume(kept, configuration, model, optimizer) if kept else _State()
    world.resume_hint[:] = [f"{configuration.name} starts anew"]
    for earlier in state.history:
        on_epoch(earlier)
        world.resume_hint[:] = [f"{configuration.name} goes on after epoch {earlier['epoch']}"]
    best_loss = min((r["validation_loss"] for r in state.history), default=float("inf"))
    best_epoch = max((r["epoch"] for r in state.history if r["best"]), default=0)
    stopped = f"all {configuration.max_epochs} epochs ran"
    with fast_convolutions(model, configuration, compute), state:
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
                state.best = _learned(model, configuration)
            if last and (world.size > 1 or compute.device.type == "cpu" or state.is_due()):
                world.run_on_rank0(state.save, last, configuration, seed, model, optimizer)
                if world.size > 1:  # what is said to be reached must be
                    world.run_on_rank0(state.wait)
                world.resume_hint[:] = [f"{configuration.name} goes on after epoch {epoch}"]
            on_epoch(record)
    if len(state.history) - best_epoch >= configuration.patience:
        stopped = f"early stopping: no lower validation loss for {configuration.patience} epochs"
    _restore(model, state.best)
    set_trainable(model, (), training=False)
    return state.history, stopped


def fast_convolutions(model: ResNet, configuration: Configuration, compute: Compute) -> AbstractContextManager[None]:
    """Within it the learning stages convolve by Winograd's algorithm, where that is faster and `auto` lets it."""
    learning = [m for stage in configuration.learns for m in stage_modules(model, stage)]
    return quick(learning if compute.convolutions == "winograd" else ())


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


def _learned(model: ResNet, configuration: Configuration) -> dict[str, Tensor]:
    """A copy of parameters and statistics of the learning stages."""
    stages = tuple(f"{s}." for s in configuration.learns if s != "stem")
    stages += ("conv1.", "bn1.") if "stem" in configuration.learns else ()
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items() if k.startswith(stages)}


def _restore(model: ResNet, state: dict[str, Tensor]) -> None:
    if unexpected := model.load_state_dict(state, strict=False).unexpected_keys:
        raise RunError(f"The kept state has unknown tensors: {unexpected[:3]}.", cure="Delete last.pt.")


class _State:
    """What a training needs to go on: history, best weights; beside them weights and optimiser in `last.pt`."""

    def __init__(self) -> None:
        self.history: list[Json] = []
        self.best: dict[str, Tensor] = {}
        self._written, self._cost = 0.0, 0.0  # when it was, and the seconds that it took
        self._thread = ThreadPoolExecutor(1)  # begun with the first state that is written
        self._writing: Future[None] | None = None

    def __enter__(self) -> _State:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; where an error ends the training, that is what is raised."""
        try:
            self.wait()
        except RunError as error:
            if kind is None:
                raise
            log.info(error.what)

    def is_due(self) -> bool:
        """Whether work of four times the cost of writing has been done since."""
        done = self._writing is None or self._writing.done()
        return done and time.perf_counter() - self._written >= 4 * self._cost

    @staticmethod
    def key(configuration: Configuration, seed: int) -> str:
        return json.dumps({"configuration": asdict(configuration), "seed": seed, "stages": STAGES}, sort_keys=True)

    @classmethod
    def read(cls, last: Path, configuration: Configuration, seed: int) -> Json | None:
        """What `last` holds, or None where there is nothing to go on with."""
        if not last.exists():
            return None
        try:
            kept: Json = torch.load(last, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds on damaged files
            log.info(f"{last} is damaged ({type(error).__name__}): {configuration.name} starts anew.")
            return None
        if kept.get("key") != cls.key(configuration, seed):
            raise RunError(
                f"{last} holds an unfinished training of {configuration.name} with other values.",
                cure="Say the same options as then to go on, name another folder with --out, or delete that file.",
            )
        return kept

    @classmethod
    def resume(
        cls, kept: Json, configuration: Configuration, model: ResNet, optimizer: torch.optim.Optimizer
    ) -> _State:
        state = cls()
        _restore(model, kept["weights"])
        # Groups are the configuration's, and how they are stepped is this device's.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": kept["optimizer"]["state"], "param_groups": groups})
        state.history, state.best = json.loads(kept["history"]), kept["best"]
        log.info(f"{configuration.name}: going on after epoch {len(state.history)}.")
        return state

    def save(
        self, last: Path, configuration: Configuration, seed: int, model: ResNet, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write `last` as all is now, on a thread: the disk takes longer than the copy."""
        self.wait()
        began = time.perf_counter()
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
        self._writing = self._thread.submit(self._write, last, buffer, began)

    def _write(self, last: Path, buffer: io.BytesIO, began: float) -> None:
        with writing(last) as file:
            file.write(buffer.getbuffer())
        self._written = time.perf_counter()
        self._cost = self._written - began

    def wait(self) -> None:
        """Wait until `last` is on the disk, and raise what kept it from there."""
        if self._writing:
            try:
                self._writing.result()
            finally:  # a Ctrl-C may end the wait, not the writing
                if self._writing.done():
                    self._writing = None
