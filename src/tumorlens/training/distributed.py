"""Several processes that train as one, started by torchrun: which of them leads, and what they tell each other.

Nothing here imports torch until torchrun has started more than one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tumorlens.core.errors import ConfigError, RunError

if TYPE_CHECKING:
    from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

# How long a rank waits for another. Rank 0 may fetch and index for hours; a rank that ends is noticed at once.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes that train as one. By default there is a single one, and every method does next to nothing."""

    rank: int = 0
    """This process, 0 to `size` - 1."""
    size: int = 1
    """Number of processes, on all hosts."""
    local_rank: int = 0
    """This process among those of its host: the index of its CUDA device."""
    reached: list[str] = field(default_factory=lambda: ["it goes on from what is finished"], compare=False)
    """One phrase: what the same command would do now, for the message when another process is lost."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone prepares, evaluates, prints and writes files."""
        return self.rank == 0

    def led(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns at rank 0, at every rank; the others wait for it.

        Where it fails at rank 0, which then says why, the others exit with 1 and say nothing.

        Raises
        ------
        RunError
            Another process of the run has ended.
        """
        if self.size == 1:
            return work(*args, **kwargs)
        if not self.leads:
            done, made = self._from_leader(None)
            if not done:
                raise SystemExit(1)
            return made  # type: ignore[no-any-return]
        try:
            made = work(*args, **kwargs)
        except BaseException:
            self._from_leader((False, None))
            raise
        self._from_leader((True, made))
        return made

    def _from_leader(self, value: Any) -> Any:
        """Rank 0's value at every rank."""
        import torch
        from torch import distributed

        values = [value]
        try:
            distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        except RuntimeError:  # the collectives have no error type of their own for a closed connection
            raise self.lost("lost the connection to another one, which was killed or failed") from None
        return values[0]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place; every rank gets the same bits.

        Raises
        ------
        RunError
            Another process of the run has ended.
        """
        if self.size > 1:
            from torch import distributed

            try:
                distributed.all_reduce(tensor)
            except RuntimeError:
                raise self.lost("lost the connection to another one, which was killed or failed") from None
        return tensor

    def lost(self, what: str) -> RunError:
        """The error for a run that cannot go on because another of its processes ended."""
        return RunError(
            f"Process {self.rank} of 0 to {self.size - 1} {what}.",
            cure=f"Run the same command again: {self.reached[0]}.",
        )


ALONE = World()


def launched() -> int:
    """Number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def leads() -> bool:
    """Whether this process is the one that prints; true without torchrun."""
    return launched() == 1 or os.environ["RANK"] == "0"


def launcher() -> list[str]:
    """What stands before `tumorlens` in a command line that starts this run again."""
    if launched() == 1:
        return []
    hosts = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if hosts == "1" else ["--nnodes", hosts]
    return ["torchrun", *several, "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m"]


def refuse_several(argv: Sequence[str]) -> None:
    """Stop a command line that several processes would carry out several times over, into the same files.

    The others leave without a word, and with 0: torchrun might stop rank 0 before it has said why.

    Raises
    ------
    ConfigError
        torchrun started more than one process.
    """
    if launched() > 1 and argv and argv[0] not in ("study", "train"):
        if not leads():
            raise SystemExit(0)
        raise ConfigError(
            f"torchrun started {launched()} processes, but `tumorlens {argv[0]}` is work for one.",
            cure="Run it without torchrun: only `study` and `train` share their work out.",
        )


@contextmanager
def quiet_followers() -> Iterator[None]:
    """Discard what every rank but 0 prints: they would all print the same."""
    if leads():
        yield
        return
    try:
        with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
            yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def joined(device: str) -> Iterator[World]:
    """This process's place among those that torchrun started; a world of one without torchrun.

    Parameters
    ----------
    device
        As in `Study.device`. On CUDA each process takes the device of its `local_rank`.

    Raises
    ------
    ConfigError
        A host has fewer CUDA devices than processes, or the processes compute on different kinds of device.
    RunError
        Another process of the run has ended.
    """
    if launched() == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    from tumorlens.training.devices import choose_device

    world = World(int(os.environ["RANK"]), launched(), int(os.environ["LOCAL_RANK"]))
    kind = choose_device(device)[0].type
    if kind == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a host with "
                f"{torch.cuda.device_count()} CUDA device(s).",
                cure=f"Say --nproc-per-node {torch.cuda.device_count()} or fewer, or --device cpu.",
            )
        torch.cuda.set_device(world.local_rank)  # from here on torch.device("cuda") means this one
    with quiet_followers(), _answering_sigterm(world):
        try:
            # Objects travel between the hosts' memories, gradients between the GPUs.
            distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
        except RuntimeError as error:
            raise world.lost(f"could not join the others ({error})") from None
        if (leaders := world.led(lambda: kind)) != kind:
            raise ConfigError(
                f"Process 0 computes on {leaders} and process {world.rank} on {kind}.",
                cure="Say --device cpu, or use hosts that all have GPUs.",
            )
        yield world
        distributed.destroy_process_group()


@contextmanager
def _answering_sigterm(world: World) -> Iterator[None]:
    """Say why, and end at once, on the SIGTERM that torchrun sends to all when one process ends.

    A Python handler would not run while the main thread waits for the others inside a collective, and torchrun
    kills without a word after 30 s; so a thread reads the signal from the wakeup descriptor.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    def answer() -> None:
        while got := os.read(readable, 1):
            if got[0] == signal.SIGTERM:
                error = world.lost("was told to stop, because another one ended or the whole run was stopped")
                print(f"Error: {error.what}\n  → {error.cure}", file=sys.__stderr__, flush=True)
                os._exit(1)
        os.close(readable)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writable)
    threading.Thread(target=answer, name="sigterm", daemon=True).start()
    try:
        yield
    except BaseException:
        before = signal.SIG_IGN  # it ends with a message of its own, which nothing may cut short
        raise
    finally:
        signal.set_wakeup_fd(descriptor)
        os.close(writable)
        signal.signal(signal.SIGTERM, before)
