"""Optimiser steps, taken eagerly or, on CUDA, recorded once as a graph and replayed.

On an H100, the kernels of a step on 32 images take less time than launching them one by one from Python. A CUDA graph
launches all of them at once (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.core.prefetch import prefetch
from tumorlens.training.configurations import Configuration
from tumorlens.training.devices import BACKENDS, Compute
from tumorlens.training.features import InMemoryFeatures
from tumorlens.training.model import forward
from tumorlens.training.sync_batchnorm import all_reduce_gradients

_EAGER = 3  # steps before recording a graph, in which libraries and the optimiser allocate their memory


class FeatureSource(Protocol):
    """A source of activations, one row per image."""

    @property
    def boundary(self) -> str: ...

    def rows(self, hashes: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Subset:
    """Images of one split.

    `hashes` are the SHA-256 of the files; `labels` are class indices, int64 [n].
    """

    hashes: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class TrainingData:
    """Features of all images that a training needs, and its training and validation subsets."""

    source: FeatureSource
    """Features at a boundary before every trainable stage."""
    train: Subset
    validation: Subset


@dataclass(eq=False)
class Steps:
    """Takes optimiser steps on batches of training images, and sums up the loss and the correct predictions.

    `model` is on the device, and its trainable parameters require gradients. `loss` and `correct` are float32 scalars
    on the device, summed over the images since `begin`.
    """

    model: ResNet
    configuration: Configuration
    data: TrainingData
    compute: Compute

    def __post_init__(self) -> None:
        self.source, self.train = self.data.source, self.data.train
        self.device, self.world = self.compute.device, self.compute.world
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.learning, self.configuration, self.device)
        self.loss, self.correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)

    def begin(self, order: Tensor) -> Tensor:
        """Reset the sums; return an epoch's image order, int64 [n], on the device where `each` expects its batches."""
        self.loss.zero_()
        self.correct.zero_()
        return order

    def each(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Take a step on each batch, int64 [B] indices into the training images, then yield the batch.

        Every process computes its share. Rows stored in a file are read while the previous batch is being processed.
        """
        shares = ((batch, self._share(batch)) for batch in batches)
        for batch, (x, y) in shares if isinstance(self.source, InMemoryFeatures) else prefetch(shares, 1):
            self._step(x.to(self.device), y.to(self.device), len(batch))
            yield batch

    def _share(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations and labels of this process's share of a batch."""
        mine = batch[self.world.rank :: self.world.size]
        return self.source.rows([self.train.hashes[i] for i in mine.tolist()]), self.train.labels[mine]

    def _step(self, x: Tensor, y: Tensor, n: int) -> None:
        """Take a step on this process's share, activations and labels [b], of a batch of `n` images."""
        # Each weight is cast only once per step anyway, and a recorded step must not reuse casts from an earlier one.
        with self.compute.autocast(cache_weights=False):
            logits = forward(self.model, x, self.source.boundary).float()  # (b, classes)
        loss = nn.functional.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        if self.world.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            (loss * (len(y) / n)).backward()  # type: ignore[no-untyped-call]  # sums to the mean over the batch
            all_reduce_gradients(self.learning, self.world)
        self.optimizer.step()
        self.loss += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()


class GraphSteps(Steps):
    """Steps of a single process on CUDA, with activations in device memory: full batches replay one CUDA graph."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.source, InMemoryFeatures)
        self.held, row_of = self.source, self.source.row_of
        self.places = torch.tensor([row_of[sha256] for sha256 in self.train.hashes], device=self.device)
        self.labels = self.train.labels.to(self.device)
        self.batch = torch.zeros(self.configuration.batch_size, dtype=torch.int64, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.taken = 0

    def begin(self, order: Tensor) -> Tensor:
        return super().begin(order.to(self.device))

    def each(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            self._take(batch)
            yield batch

    def _take(self, batch: Tensor) -> None:
        if len(batch) != len(self.batch):  # the last, partial batch of an epoch
            self._on(batch)
            return
        self.batch.copy_(batch)
        self.taken += 1
        if self.taken <= _EAGER:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self._on(self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                self._on(self.batch)
        self.graph.replay()

    def _on(self, batch: Tensor) -> None:
        self._step(self.held.at(self.places.index_select(0, batch)), self.labels.index_select(0, batch), len(batch))


def make_steps(model: ResNet, configuration: Configuration, data: TrainingData, compute: Compute) -> Steps:
    """Return the fastest kind of steps that the device, the features and the number of processes allow."""
    on_device = isinstance(data.source, InMemoryFeatures) and BACKENDS[data.source.values.device.type].has_graphs
    kind = GraphSteps if on_device and compute.world.size == 1 else Steps
    return kind(model, configuration, data, compute)


def make_optimizer(
    trainable: list[nn.Parameter], configuration: Configuration, device: torch.device
) -> torch.optim.Optimizer:
    """Create the configuration's optimiser for the trainable parameters."""
    decay = configuration.weight_decay
    if configuration.optimizer == "sgd":
        return torch.optim.SGD(trainable, configuration.learning_rate, momentum=0.9, weight_decay=decay)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[configuration.optimizer]
    # Fused takes one pass over a weight and its moments on a CPU, and one kernel for all weights on CUDA. There the
    # step count must be on the device (capturable) so that a step can be recorded in a graph.
    graphs = BACKENDS[device.type].has_graphs
    optimizer = kind(trainable, configuration.learning_rate, weight_decay=decay, fused=True, capturable=graphs)
    if device.type == "cpu":
        optimizer.register_step_pre_hook(_match_strides)
    return optimizer


def _match_strides(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Give each gradient the same memory layout as its weight.

    PyTorch's fused Adam for CPUs reads memory in order, so it would pair a gradient whose strides differ from its
    weight's with the wrong weights.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
