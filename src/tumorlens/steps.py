"""Steps of an optimiser: one by one, or on CUDA recorded once and replayed.

The kernels of a step on 32 images take an H100 less time than launching them from Python, one after the other. A CUDA
graph launches all of them at once (Nguyen et al., "Accelerating PyTorch with CUDA Graphs", PyTorch blog 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models import ResNet

from tumorlens.configurations import Configuration
from tumorlens.distributed import World
from tumorlens.features import InMemory
from tumorlens.global_batch import sum_gradients
from tumorlens.model import forward

if TYPE_CHECKING:
    from tumorlens.train import Part, Source

_EAGER = 3  # steps before a graph is recorded: libraries and the optimiser make their working memory in them


class Steps:
    """Takes steps on batches of training images, and adds up loss and right answers on the way.

    `loss` and `correct` are float32 scalars on the device, sums over images since they were last set to zero.
    """

    def __init__(
        self, model: ResNet, configuration: Configuration, source: Source, train: Part, *,
        device: torch.device, precision: torch.dtype, world: World,
    ) -> None:  # fmt: skip
        self.model, self.source, self.train = model, source, train
        self.device, self.precision, self.world = device, precision, world
        self.learning = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.learning, configuration, device)
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)

    def begin(self, order: Tensor) -> Tensor:
        """Set the sums to zero, and give an epoch's order of images, int64 [n], as `take` wants parts of it."""
        self.loss.zero_()
        self.correct.zero_()
        return order

    def take(self, batch: Tensor) -> None:
        """One step on a batch, indices int64 [B] into the training images; every process computes its share."""
        mine = batch[self.world.rank :: self.world.size]
        x = self.source.rows([self.train.hashes[i] for i in mine.tolist()]).to(self.device)
        self._step(x, self.train.labels[mine].to(self.device), len(batch))

    def _step(self, x: Tensor, y: Tensor, n: int) -> None:
        """A step on this process's activations and labels [b] of a batch of `n`."""
        # Every weight is cast once a step anyhow, and a recorded one must not find what was cast before.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16, cache_enabled=False
        ):
            logits = forward(self.model, x, self.source.boundary).float()  # (b, classes)
        loss = nn.functional.cross_entropy(logits, y)
        self.optimizer.zero_grad()
        if self.world.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            (loss * (len(y) / n)).backward()  # type: ignore[no-untyped-call]  # summed: the batch's mean
            sum_gradients(self.learning, self.world)
        self.optimizer.step()
        self.loss += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()


class RecordedSteps(Steps):
    """The same of one process on CUDA, with activations in the device's memory: full batches replay one CUDA graph."""

    def __init__(
        self, model: ResNet, configuration: Configuration, source: InMemory, train: Part, *,
        device: torch.device, precision: torch.dtype, world: World,
    ) -> None:  # fmt: skip
        super().__init__(model, configuration, source, train, device=device, precision=precision, world=world)
        self.held = source
        self.places = torch.tensor([source.row_of[sha256] for sha256 in train.hashes], device=device)
        self.labels = train.labels.to(device)
        self.batch = torch.zeros(configuration.batch_size, dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.taken = 0

    def begin(self, order: Tensor) -> Tensor:
        return super().begin(order.to(self.device))

    def take(self, batch: Tensor) -> None:
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


def steps(
    model: ResNet, configuration: Configuration, source: Source, train: Part, *,
    device: torch.device, precision: torch.dtype, world: World,
) -> Steps:  # fmt: skip
    """The quicker kind that can be had; `model` lies on the device, and what learns has gradients switched on."""
    alone = world.size == 1 and device.type == "cuda"
    if alone and isinstance(source, InMemory) and source.values.device.type == "cuda":
        return RecordedSteps(model, configuration, source, train, device=device, precision=precision, world=world)
    return Steps(model, configuration, source, train, device=device, precision=precision, world=world)


def _optimizer(
    learning: list[nn.Parameter], configuration: Configuration, device: torch.device
) -> torch.optim.Optimizer:
    decay = configuration.weight_decay
    if configuration.optimizer == "sgd":
        return torch.optim.SGD(learning, configuration.learning_rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if configuration.optimizer == "adamw" else torch.optim.Adam
    cuda = device.type == "cuda"  # there one kernel steps them all, and its count of steps must be there to be recorded
    return kind(learning, configuration.learning_rate, weight_decay=decay, fused=cuda or None, capturable=cuda)
