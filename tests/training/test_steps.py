"""Recorded steps take the images that plain ones do. With a stand-in for CUDA's graphs; real ones: test_cuda.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import LATE, held, network, part
from learning import rows as rows  # a fixture

from tumorlens.data.index import ImageRecord
from tumorlens.training import fit as train
from tumorlens.training.configurations import INITIAL, Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.steps import (
    GraphSteps,
    Steps,
    TrainingData,
    make_optimizer,
    make_steps,
)

CPU = torch.device("cpu")


class Graph:
    """Takes the recorded step again; the first time, recording has taken it already, which on CUDA does nothing."""

    def __init__(self) -> None:
        self.step: Any = None
        self.replayed = 0

    def replay(self) -> None:
        self.replayed += 1
        if self.replayed > 1:
            self.step()


class Stream:
    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass


@pytest.mark.parametrize("configuration", [LATE, Configuration("head", ("fc",), 1e-2, batch_size=7, max_epochs=3)])
def test_recorded_steps_see_the_images_of_plain_ones(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch,
    configuration: Configuration,
) -> None:  # fmt: skip
    source = held(rows, small_folder, small_cache, configuration.frozen_prefix, CPU, torch.float32)
    made: list[GraphSteps] = []

    def recorded(*args: Any) -> GraphSteps:
        made.append(GraphSteps(*args))
        return made[-1]

    def graph(graph: Graph, stream: object) -> Any:
        graph.step = lambda: made[0]._on(made[0].batch)
        return contextlib.nullcontext()

    ends = []
    for kind in (make_steps, recorded):
        monkeypatch.setattr(train, "make_steps", kind)
        if kind is recorded:
            monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
            monkeypatch.setattr(torch.cuda, "Stream", Stream)
            monkeypatch.setattr(torch.cuda, "current_stream", Stream)
            monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
            monkeypatch.setattr(torch.cuda, "graph", graph)
        model = network()
        history, _ = train.fit(
            model, configuration, TrainingData(source, part(rows, "train"), part(rows, "validation")),
            Compute(CPU, torch.float32), seed=0,
        )  # fmt: skip
        ends.append((model, [(r["train_loss"], r["validation_loss"]) for r in history]))
    (plain, losses), (other, others) = ends
    assert isinstance(made[0].graph, Graph)
    assert made[0].graph.replayed == 3 * (27 // configuration.batch_size) - 3
    assert losses == others
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_on_a_cpu_steps_are_plain(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    source = held(rows, small_folder, small_cache, "avgpool", CPU, torch.float32)
    made = make_steps(
        network(),
        INITIAL,
        TrainingData(source, part(rows, "train"), part(rows, "validation")),
        Compute(CPU, torch.float32),
    )
    assert type(made) is Steps
    assert not made.optimizer.param_groups[0]["capturable"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("weight_lies", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("gradient_lies", [torch.channels_last, torch.contiguous_format])
def test_adam_steps_the_same_however_tensors_lie(
    optimizer: str, weight_lies: torch.memory_format, gradient_lies: torch.memory_format
) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 6, 3, 3), torch.randn(3, 8, 6, 3, 3)
    configuration = Configuration("x", ("fc",), 0.1, optimizer=optimizer, weight_decay=0.01)

    def stepped(chosen: Any) -> torch.Tensor:
        weight = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format).to(memory_format=weight_lies))
        steps = chosen([weight])
        for gradient in gradients:
            weight.grad = gradient.to(memory_format=gradient_lies)
            steps.step()
        assert steps.state_dict()["state"][0]["exp_avg"].shape == start.shape  # as files of before hold it
        return weight.detach()

    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    wanted = stepped(lambda weights: plain(weights, 0.1, weight_decay=0.01, foreach=False))
    found = stepped(lambda weights: make_optimizer(weights, configuration, CPU))
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, start)
