"""Two processes under torchrun: what one process gives, once printed, once written; a lost process; what is refused."""

from __future__ import annotations

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

from tumorlens import Study, run_study
from tumorlens.cli.app import main
from tumorlens.core.errors import ConfigError
from tumorlens.training.configurations import INITIAL, Configuration
from tumorlens.training.devices import Compute
from tumorlens.training.fit import fit
from tumorlens.training.model import build_model
from tumorlens.training.steps import Subset, TrainingData
from tumorlens.training.sync_batchnorm import SyncBatchNorm
from tumorlens.training.weights import find_weights
from tumorlens.training.world import World

pytestmark = [
    pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch was built without gloo"),
    pytest.mark.timeout(900),  # three processes that each import torch, on whatever else the machine does
]

# SGD, whose steps are proportional to the gradients: Adam's are about as long for rounding errors as for gradients,
# which would hide a wrong one. Batches of 8, 8, 8 and 3 images, of which one process takes 2 and the other 1.
CONFIGURATIONS = """
[[configuration]]
name = "initial"
batch_size = 8
[[configuration]]
name = "layer4"
learns = ["layer4", "fc"]
start = "initial"
optimizer = "sgd"
learning_rate = 0.001
batch_size = 8
"""
CHECKPOINTS = {
    "initial": "best_brain_tumor_resnet18.pth",
    "layer4": "best_brain_tumor_resnet18_layer4.pth",
}
# Reports which process opens, makes, renames or removes what in the folder named by WATCHED.
AUDIT = """
import os, sys
def report(event, args):
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(args[0]).startswith(os.environ["WATCHED"]):
        if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR):
            os.write(2, f"rank {os.environ['RANK']} changes {args[0]}\\n".encode())
if "WATCHED" in os.environ and "RANK" in os.environ:
    sys.addaudithook(report)
"""


@dataclass(frozen=True)
class Setting:
    """One study for one process and for two."""

    root: Path
    data: Path
    cache: Path

    def options(self, out: Path) -> dict[str, object]:
        return {"data": str(self.data), "weights": "none", "device": "cpu", "precision": "fp32", "cache": self.cache,
                "out": out, "config": self.root / "c.toml", "max_epochs": 2,
                "configurations": ("initial", "layer4")}  # fmt: skip

    def start(self, command: str, out: Path, **changes: object) -> subprocess.Popen[str]:
        """`tumorlens COMMAND --json` in two processes on this host."""
        options = self.options(out) | changes
        words = []
        for key, value in options.items():
            words += [f"--{key.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--local-addr", "127.0.0.1",
                    "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]  # fmt: skip
        paths = os.pathsep.join([str(self.root / "audit"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.Popen(
            [*torchrun, "-m", "tumorlens", command, *words, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "WATCHED": str(self.root)},
        )  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, small_folder: Path, small_cache: Path) -> Setting:
    root = tmp_path_factory.mktemp("distributed")
    (root / "c.toml").write_text(CONFIGURATIONS)
    (root / "audit").mkdir()
    (root / "audit" / "sitecustomize.py").write_text(AUDIT)
    return Setting(root, small_folder, small_cache)


@pytest.fixture(scope="module")
def one(setting: Setting) -> Path:
    out = setting.root / "one"
    run_study(Study(**setting.options(out)))  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def two(setting: Setting) -> tuple[Path, str, str]:
    """The run's folder, stdout and stderr."""
    process = setting.start("study", setting.root / "two")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return setting.root / "two", out, err


State = dict[str, torch.Tensor]


def state(run: Path, name: str) -> State:
    return torch.load(run / name / CHECKPOINTS[name], weights_only=True)  # type: ignore[no-any-return]


def apart(found: State, wanted: State, start: State) -> float:
    """How far the worst tensor lies from where it should, as a share of the way that it went."""
    shares = []
    for key, value in wanted.items():
        way, off = ((other[key].double() - value.double()).norm() for other in (start, found))
        shares.append(float(off / way) if way > 0 else float(off))
    return max(shares)


def probabilities(run: Path, name: str) -> np.ndarray:
    with (run / name / "predictions.csv").open() as file:
        return np.array([[float(v) for k, v in row.items() if k.startswith("p_")] for row in csv.DictReader(file)])


@pytest.mark.parametrize("name", ["initial", "layer4"])
def test_two_processes_train_as_one_does(one: Path, two: tuple[Path, str, str], name: str) -> None:
    whole, shared = state(one, name), state(two[0], name)
    assert list(shared) == list(whole)
    start = build_model(find_weights("none"), 4, seed=0).state_dict() if name == "initial" else state(one, "initial")
    # In float32 sums in another order put some values on the other side of a ReLU's zero, and small batches feel
    # each: 1 % after four steps. The test in double precision below has no such excuse.
    assert apart(shared, whole, start) < {"initial": 1e-4, "layer4": 0.05}[name]
    assert np.allclose(probabilities(two[0], name), probabilities(one, name), atol=1e-4)


def test_rank_0_alone_prints_and_writes(two: tuple[Path, str, str]) -> None:
    run, out, err = two
    assert json.loads(out)["run"] == str(run)  # a single JSON text
    for line in ("initial epoch  1:", "layer4 epoch  2:", "Device: cpu"):
        assert err.count(line) == 1
    assert set(re.findall(r"rank (\d) changes", err)) == {"0"}
    assert json.loads((run / "layer4" / "training.json").read_text())["processes"] == 2


def workers(torchrun: int) -> list[int]:
    """Process ids of the ranks, in order: torchrun starts rank 0 first."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    return sorted(pid for pid, parent in pairs if parent == torchrun)


def test_a_killed_process_ends_the_run_and_the_next_start_goes_on(setting: Setting, two: tuple[Path, str, str]) -> None:
    run = setting.root / "killed"
    process = setting.start("train", run)
    assert process.stderr is not None
    for line in process.stderr:
        if "layer4 epoch  1" in line:
            os.kill(workers(process.pid)[1], signal.SIGKILL)
            break
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Process 0 of 0 to 1" in err
    assert (found := re.search(r"Run the same command again: layer4 resumes after epoch (\d)\.", err))
    # torchrun itself reports the killed one with a traceback of its own, which names none of our files.
    assert "tumorlens/" not in err[err.find("Process 0 of 0 to 1") :].replace(str(setting.root), "")
    again = setting.start("train", run)
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert f"layer4: resuming after epoch {found[1]}" in err
    for name in CHECKPOINTS:
        undisturbed, resumed = state(two[0], name), state(run, name)
        assert all(torch.equal(undisturbed[key], resumed[key]) for key in undisturbed)


def test_rank_0s_error_is_printed_once(setting: Setting) -> None:
    process = setting.start("train", setting.root / "none", data=str(setting.root / "absent"))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert err.count("Error: ") - err.count("ChildFailedError: ") == 1
    assert out == ""


class Threads(World):
    """Processes played by threads: what they send each other goes through `table`."""

    def __init__(self, rank: int, barrier: threading.Barrier, table: list[Any]) -> None:
        super().__init__(rank, barrier.parties)
        object.__setattr__(self, "barrier", barrier)
        object.__setattr__(self, "table", table)

    def exchanged(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(300)
        found = list(self.table)
        self.barrier.wait(300)
        return found

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self.exchanged(tensor.clone())).sum(0))

    def run_on_rank0(self, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.exchanged(work(*args, **kwargs) if self.is_rank0 else None)[0]

    @classmethod
    def run(cls, size: int, work: Callable[[World], Any]) -> list[Any]:
        """What each of `size` processes returns."""
        barrier, table = threading.Barrier(size), [None] * size
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(work, [cls(rank, barrier, table) for rank in range(size)], timeout=600))


def compute_in(world: World) -> Compute:
    return Compute(torch.device("cpu"), torch.float32, "winograd", world=world)


@dataclass(frozen=True)
class Exact:
    """Made-up activations in double precision, in which no rounding error reaches a ReLU's zero."""

    boundary: str = "layer3"

    def rows(self, hashes: Sequence[str]) -> torch.Tensor:
        made = [torch.rand(256, 4, 4, generator=torch.Generator().manual_seed(int(h)), dtype=torch.double)
                for h in hashes]  # fmt: skip
        return torch.stack(made)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_three_shares_make_the_steps_of_one_batch(optimizer: str) -> None:
    labels = torch.arange(16) % 4
    train = Subset(tuple(map(str, range(11))), labels[:11])  # batches of 8 and 3: shares down to one image
    validation = Subset(tuple(map(str, range(11, 16))), labels[11:])
    layer4 = Configuration("layer4", ("layer4", "fc"), 1e-3, optimizer=optimizer, batch_size=8, max_epochs=1)
    start = build_model(find_weights("none"), 4, seed=0).double()

    def learn(world: World) -> tuple[State, list[dict[str, Any]]]:
        model = copy.deepcopy(start)
        history, _ = fit(model, layer4, TrainingData(Exact(), train, validation), compute_in(world), seed=0)
        return model.state_dict(), history

    whole, history = learn(World())
    assert not torch.equal(whole["layer4.0.conv1.weight"], start.state_dict()["layer4.0.conv1.weight"])
    for found, records in Threads.run(3, learn):
        assert list(found) == list(whole)
        assert apart(found, whole, start.state_dict()) < 1e-6  # the loss is in float32, of 6e-8
        for record, wanted in zip(records, history, strict=True):
            for key in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "best"):
                assert record[key] == pytest.approx(wanted[key], rel=1e-6), key


def test_batchnorm_over_shares_is_batchnorm_over_the_batch() -> None:
    random = torch.Generator().manual_seed(0)
    # A mean far from zero, where a sum of squares would lose digits.
    x = torch.randn(7, 3, 5, 4, generator=random) * torch.tensor([1.0, 0.1, 3.0]).view(3, 1, 1) + 20
    gradient = torch.randn(x.shape, generator=random)
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        plain.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))

    def work(world: World) -> tuple[SyncBatchNorm, torch.Tensor, torch.Tensor]:
        norm = SyncBatchNorm(copy.deepcopy(plain), world)
        share = x[world.rank :: 2].clone().requires_grad_()
        out = norm(share)
        out.backward(gradient[world.rank :: 2])
        assert share.grad is not None
        return norm, out.detach(), share.grad

    found = Threads.run(2, work)
    exact = copy.deepcopy(plain).double()
    whole = x.double().requires_grad_()
    out = exact(whole)
    out.backward(gradient.double())
    assert whole.grad is not None
    close = {"rtol": 1e-4, "atol": 1e-4}  # values of 20 with a spread of 0.1 leave 4 digits of float32
    for rank, (norm, normalised, gradients) in enumerate(found):
        assert torch.allclose(normalised.double(), out[rank::2], **close)
        assert torch.allclose(gradients.double(), whole.grad[rank::2], **close)
        for key, value in exact.state_dict().items():
            assert torch.allclose(norm.state_dict()[key].double(), value.double(), rtol=1e-5), key
    for name in ("weight", "bias"):
        summed = sum(getattr(norm, name).grad for norm, _, _ in found)
        assert torch.allclose(summed.double(), getattr(exact, name).grad, **close)
    norm = found[0][0].eval()
    with torch.no_grad():
        plain.eval().load_state_dict(norm.state_dict())
        assert torch.equal(norm(x), plain(x))


def test_sigterm_is_answered_at_once() -> None:
    code = (
        "import os, signal, time\n"
        "from tumorlens.training.distributed import World, _answering_sigterm\n"
        "world = World(1, 2)\n"
        "world.resume_hint[:] = ['initial resumes after epoch 3']\n"
        "with _answering_sigterm(world):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(300)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "Process 1 of 0 to 1 was told to stop" in ended.stderr
    assert "initial resumes after epoch 3." in ended.stderr


def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    part = Subset(("0" * 64,) * 40, torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ConfigError, match="64 processes cannot share a batch of 32 images"):
        fit(build_model(find_weights("none"), 4, 0), INITIAL, TrainingData(Exact(), part, part),
            compute_in(World(0, 64)), seed=0)  # fmt: skip


def test_work_for_one_process_is_refused_to_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "work for one" in capsys.readouterr().err
