"""On an NVIDIA GPU: the same results as on the CPU, the same bits again, and recorded steps that are the plain ones."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import LATE, held, network, part
from learning import rows as rows  # a fixture
from torchvision.models import ResNet

from tumorlens.data.index import ImageRecord
from tumorlens.training import steps
from tumorlens.training.configurations import INITIAL, Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.features import InMemoryFeatures
from tumorlens.training.fit import fit, predict_logits
from tumorlens.training.steps import TrainingData

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PRECISIONS = pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])


def train(
    rows: tuple[ImageRecord, ...], source: InMemoryFeatures, configuration: Configuration, precision: torch.dtype,
    last: Path | None = None,
) -> tuple[ResNet, list[dict[str, float]]]:  # fmt: skip
    model = network()
    history, _ = fit(
        model, configuration, TrainingData(source, part(rows, "train"), part(rows, "validation")),
        Compute(CUDA, precision), seed=0, last=last,
    )  # fmt: skip
    return model, [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in history]


def assert_same(one: ResNet, other: ResNet) -> None:
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@PRECISIONS
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_recorded_steps_are_the_plain_ones(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch,
    precision: torch.dtype, optimizer: str,
) -> None:  # fmt: skip
    source = held(rows, small_folder, small_cache, "layer2", CUDA, precision)
    configuration = dataclasses.replace(LATE, optimizer=optimizer, weight_decay=0.01)
    replayed: list[int] = []
    real = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replayed.append(1), real(graph))[1])
    recorded, history = train(rows, source, configuration, precision)
    assert len(replayed) == 3 * 6 - steps._EAGER
    monkeypatch.setattr(steps, "_EAGER", 1000)
    plain, plain_history = train(rows, source, configuration, precision)
    assert len(replayed) == 3 * 6 - 3
    assert history == plain_history
    assert_same(recorded, plain)


@PRECISIONS
@pytest.mark.parametrize("configuration", [LATE, dataclasses.replace(INITIAL, batch_size=4, max_epochs=3)])
def test_a_training_gives_the_same_bits_again(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path, tmp_path: Path, precision: torch.dtype,
    configuration: Configuration,
) -> None:  # fmt: skip
    ends = []
    for cache in (small_cache, tmp_path):
        source = held(rows, small_folder, cache, configuration.frozen_prefix, CUDA, precision)
        ends.append(train(rows, source, configuration, precision))
    (one, history), (two, again) = ends
    assert history == again
    assert_same(one, two)


def test_frozen_parts_stay_bit_identical(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    before = network().state_dict()
    source = held(rows, small_folder, small_cache, "image", CUDA, torch.bfloat16)  # frozen BatchNorm runs in every step
    model, _ = train(rows, source, LATE, torch.bfloat16)
    for key, value in model.state_dict().items():
        assert torch.equal(value.cpu(), before[key]) != key.startswith(LATE.learns), key


def test_resuming_ends_where_an_uninterrupted_training_does(
    rows: tuple[ImageRecord, ...],
    small_folder: Path,
    small_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = held(rows, small_folder, small_cache, "layer2", CUDA, torch.bfloat16)
    whole, history = train(rows, source, LATE, torch.bfloat16)

    def stop(record: dict[str, float]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    last = tmp_path / "last.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(
            network(), LATE, TrainingData(source, part(rows, "train"), part(rows, "validation")),
            Compute(CUDA, torch.bfloat16), seed=0, last=last, on_epoch=stop,
        )  # fmt: skip
    resumed, again = train(rows, source, LATE, torch.bfloat16, last)
    assert "late: resuming after epoch" in capsys.readouterr().err  # 1 or 2: the second is written where that is quick
    assert again == history
    assert_same(whole, resumed)


def test_float32_is_exact(rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path) -> None:
    """TensorFloat-32, the default of convolutions, would be off by a thousandth."""
    hashes = [row.sha256 for row in rows]
    cpu = held(rows, small_folder, small_cache, "avgpool", CPU, torch.float32).rows(hashes)
    cuda = held(rows, small_folder, small_cache, "avgpool", CUDA, torch.float32).rows(hashes).cpu()
    assert (cuda - cpu).norm() / cpu.norm() < 2e-6
    half = held(rows, small_folder, small_cache, "avgpool", CUDA, torch.bfloat16).rows(hashes).cpu()
    assert 1e-4 < (half - cpu).norm() / cpu.norm() < 2e-2


def test_training_in_float32_follows_the_cpu(
    rows: tuple[ImageRecord, ...], small_folder: Path, small_cache: Path
) -> None:
    logits = {}
    for device in (CPU, CUDA):
        source = held(rows, small_folder, small_cache, "layer2", device, torch.float32)
        model = network()
        data = TrainingData(source, part(rows, "train"), part(rows, "validation"))
        fit(model, dataclasses.replace(LATE, max_epochs=1), data, Compute(device, torch.float32), seed=0)
        hashes = [row.sha256 for row in rows]
        logits[device] = predict_logits(model, source, hashes, Compute(device, torch.float32))
    assert torch.allclose(logits[CPU], logits[CUDA], rtol=0.02, atol=0.02)


def test_a_whole_study_on_the_gpu(small_folder: Path, tmp_path: Path) -> None:
    words = [
        sys.executable, "-m", "tumorlens", "study", "--data", str(small_folder), "--weights", "none", "--out",
        str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--max-epochs", "2", "--configurations", "initial",
        "finetuned", "initial_lbfgs", "initial_lbfgs_refit",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "study.json").read_text())
    assert (record["device"]["device"], record["device"]["precision"]) == ("cuda", "bf16")
    assert record["device"]["name"] == torch.cuda.get_device_name()
    for name in ("initial", "finetuned", "initial_lbfgs"):
        state = torch.load(next((tmp_path / "run" / name).glob("*.pth")), weights_only=True)
        assert {value.device.type for value in state.values()} == {"cpu"}
        assert all(bool(np.isfinite(value.numpy()).all()) for value in state.values())
    again = subprocess.run(words, capture_output=True, text=True, check=True)
    assert again.stderr.count("already trained") == 4


def test_more_processes_than_gpus_are_refused(small_folder: Path, tmp_path: Path) -> None:
    n = torch.cuda.device_count() + 1
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "-m", "tumorlens", "study",
        "--data", str(small_folder), "--weights", "none", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert f"torchrun started {n} processes on a host with {n - 1} cuda device(s)" in done.stderr
