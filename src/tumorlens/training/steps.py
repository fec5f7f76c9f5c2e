"""Steps of an optimiser: one by one, or on CUDA recorded once and replayed.

The kernels of a step on 32 images take an H100 less time than launching them from Python, one after the other. A CUDA
graph launches all of them at once (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog 2021).
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

_EAGER = 3  # steps before a graph is recorded: libraries and the optimiser make their working memory in them


class FeatureSource(Protocol):
    """Where rows of activations come from."""

    @property
    def boundary(self) -> str: ...

    def rows(self, hashes: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Subset:
    """Images of one split.

    `hashes` are SHA-256 of the files; `labels` int64 [n], indices into the classes.
    """

    hashes: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.hashes)


@dataclass(frozen=True)
class TrainingData:
    """Features of the images that a training needs, and which of them it trains and validates on."""

    source: FeatureSource
    """Features at a boundary before every trainable stage."""
    train: Subset
    validation: Subset


@dataclass(eq=False)
class Steps:
    """Takes steps on batches of training images, and adds up loss and right answers on the way.

    `model` lies on the device, and what learns has gradients switched on. `loss` and `correct` are float32 scalars
    there, sums over images since `begin`.
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
        """Set the sums to zero, and give an epoch's order of images, int64 [n], as `each` wants parts of it."""
        self.loss.zero_()
        self.correct.zero_()
        return order

    def each(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Take a step on each batch, indices int64 [B] into the training images, then give it back.

        Every process computes its share. What lies in a file is read while the batch before is learned from.
        """
        shares = ((batch, self._share(batch)) for batch in batches)
        for batch, (x, y) in shares if isinstance(self.source, InMemoryFeatures) else prefetch(shares, 1):
            self._step(x.to(self.device), y.to(self.device), len(batch))
            yield batch

    def _share(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and labels of what this process computes of a batch."""
        mine = batch[self.world.rank :: self.world.size]
        return self.source.rows([self.train.hashes[i] for i in mine.tolist()]), self.train.labels[mine]

    def _step(self, x: Tensor, y: Tensor, n: int) -> None:
        """A step on this process's activations and labels [b] of a batch of `n`."""
        # Every weight is cast once a step anyhow, and a recorded one must not find what was cast before.
        with self.compute.autocast(cache_weights=False):
            logits = forward(self.model, x, self.source.boundary).float()  # (b, classes)
        loss = nn.functional.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        if self.world.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            (loss * (len(y) / n)).backward()  # type: ignore[no-untyped-call]  # summed: the batch's mean
            all_reduce_gradients(self.learning, self.world)
        self.optimizer.step()
        self.loss += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()


class GraphSteps(Steps):
    """The same of one process on CUDA, with activations in the device's memory: full batches replay one CUDA graph."""

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
        if len(batch) != len(self.batch):  # what is left at an epoch's end
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
    """The faster kind that the device, the features and the number of processes allow."""
    on_device = isinstance(data.source, InMemoryFeatures) and BACKENDS[data.source.values.device.type].has_graphs
    kind = GraphSteps if on_device and compute.world.size == 1 else Steps
    return kind(model, configuration, data, compute)


def make_optimizer(
    trainable: list[nn.Parameter], configuration: Configuration, device: torch.device
) -> torch.optim.Optimizer:
    """The configuration's optimiser over the trainable parameters."""
    decay = configuration.weight_decay
    if configuration.optimizer == "sgd":
        return torch.optim.SGD(trainable, configuration.learning_rate, momentum=0.9, weight_decay=decay)
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[configuration.optimizer]
    # Fused: one pass over a weight and its moments on a CPU, one kernel for all weights on CUDA, where the step count
    # must be on the device to be recorded in a graph.
    graphs = BACKENDS[device.type].has_graphs
    optimizer = kind(trainable, configuration.learning_rate, weight_decay=decay, fused=True, capturable=graphs)
    if device.type == "cpu":
        optimizer.register_step_pre_hook(_match_strides)
    return optimizer


def _match_strides(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    """Give each gradient the memory layout of its weight.

    PyTorch's fused Adam for CPUs reads memory in order, so a gradient with other strides than its weight would be
    paired with the wrong weights.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.stride() != weight.stride():
                weight.grad = torch.empty_like(weight).copy_(weight.grad)
