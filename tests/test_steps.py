"""Recorded steps take the images that plain ones do. With a stand-in for CUDA's graphs; real ones: test_cuda.py."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import LATE, held, network, part
from learning import rows as rows  # a fixture

from tumorlens import train
from tumorlens.configurations import INITIAL, Configuration
from tumorlens.datasets.index import Row
from tumorlens.steps import RecordedSteps, Steps, steps_of

CPU = torch.device("cpu")


class Graph:
    """Carries the recorded step out anew; the first time its recording has done it, which on CUDA does nothing."""

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
    rows: tuple[Row, ...], small_folder: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch,
    configuration: Configuration,
) -> None:  # fmt: skip
    source = held(rows, small_folder, small_cache, configuration.frozen_prefix, CPU, torch.float32)
    made: list[RecordedSteps] = []

    def recorded(*args: Any) -> RecordedSteps:
        made.append(RecordedSteps(*args))
        return made[-1]

    def graph(graph: Graph, stream: object) -> Any:
        graph.step = lambda: made[0]._on(made[0].batch)
        return contextlib.nullcontext()

    ends = []
    for kind in (steps_of, recorded):
        monkeypatch.setattr(train, "steps_of", kind)
        if kind is recorded:
            monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
            monkeypatch.setattr(torch.cuda, "Stream", Stream)
            monkeypatch.setattr(torch.cuda, "current_stream", Stream)
            monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
            monkeypatch.setattr(torch.cuda, "graph", graph)
        model = network()
        history, _ = train.fit(
            model, configuration, source, part(rows, "train"), part(rows, "validation"),
            seed=0, device=CPU, precision=torch.float32, convolutions="direct",
        )  # fmt: skip
        ends.append((model, [(r["train_loss"], r["validation_loss"]) for r in history]))
    (plain, losses), (other, others) = ends
    assert isinstance(made[0].graph, Graph)
    assert made[0].graph.replayed == 3 * (27 // configuration.batch_size) - 3
    assert losses == others
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_on_a_cpu_steps_are_plain(rows: tuple[Row, ...], small_folder: Path, small_cache: Path) -> None:
    source = held(rows, small_folder, small_cache, "avgpool", CPU, torch.float32)
    made = steps_of(network(), INITIAL, source, part(rows, "train"), CPU, torch.float32, train.ALONE)
    assert type(made) is Steps
    assert not made.optimizer.param_groups[0]["capturable"]
