"""The state that an interrupted training resumes from: when it is written, what it takes over, and how it fails."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from learning import network

from tumorlens.training.configurations import Configuration
from tumorlens.training.model import set_trainable
from tumorlens.training.resume_state import ResumeState, trainable_state
from tumorlens.training.steps import make_optimizer

CPU = torch.device("cpu")
LAYER4 = Configuration("layer4", ("layer4", "fc"), learning_rate=1e-3, batch_size=16, max_epochs=2, patience=2)


def test_on_a_gpu_writing_the_state_takes_a_fifth_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("tumorlens.training.resume_state.time.perf_counter", lambda: now)
    model, state = network(), ResumeState(LAYER4, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert state.is_due()  # the first epoch is written whatever that takes

    def two_seconds(*_: object) -> None:
        nonlocal now
        now += 2

    monkeypatch.setattr("tumorlens.training.resume_state.torch.save", two_seconds)
    state.save(tmp_path / "last.pt", model, optimizer)
    state.wait()
    for later, due in ((0.0, False), (7.9, False), (8.0, True)):
        now = 102 + later
        assert state.is_due() == due, later
    state._writing = Future()  # of a disk that is slower still
    assert not state.is_due()


def test_a_state_goes_on_as_this_device_steps(tmp_path: Path) -> None:
    """One that a GPU left says `capturable`, which a CPU's steps must not take over."""
    model = network()
    set_trainable(model, LAYER4.learns, training=True)
    learning = [p for p in model.parameters() if p.requires_grad]
    there, here = (torch.optim.Adam(learning, 1e-3, capturable=capturable) for capturable in (True, False))
    for p in learning:
        p.grad = torch.ones_like(p)
    here.step()
    there.load_state_dict({"state": here.state_dict()["state"], "param_groups": there.state_dict()["param_groups"]})
    state = ResumeState(LAYER4, 0)
    state.best = trainable_state(model, LAYER4)
    state.save(tmp_path / "last.pt", model, there)
    state.wait()
    kept = state.read(tmp_path / "last.pt")
    assert kept is not None
    assert kept["optimizer"]["param_groups"][0]["capturable"]
    again = make_optimizer(learning, LAYER4, CPU)
    ResumeState(LAYER4, 0).resume(kept, model, again)
    assert not again.param_groups[0]["capturable"]
    assert float(again.state[learning[0]]["step"]) == 1
    again.step()


def test_what_ends_a_training_is_said_before_what_kept_its_state_from_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    model, state = network(), ResumeState(LAYER4, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def interrupted() -> None:
        with state:
            state.save(tmp_path / "file" / "last.pt", model, optimizer)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "last.pt" in capsys.readouterr().err
