"""Several processes that train as one, started by torchrun: which of them leads, and what they tell each other.

Nothing here imports torch until torchrun has started more than one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

from tumorlens.core.errors import ConfigError
from tumorlens.training.world import SINGLE_PROCESS, World

# How long a rank waits for another. Rank 0 may fetch and index for hours; a rank that ends is noticed at once.
_PATIENCE = timedelta(hours=12)


def process_count() -> int:
    """Number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_rank0() -> bool:
    """Whether this process is the one that prints; true without torchrun."""
    return process_count() == 1 or os.environ["RANK"] == "0"


def launch_prefix() -> list[str]:
    """What stands before `tumorlens` in a command line that starts this run again."""
    if process_count() == 1:
        return []
    hosts = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if hosts == "1" else ["--nnodes", hosts]
    return ["torchrun", *several, "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m"]


def refuse_multiple_processes(argv: Sequence[str]) -> None:
    """Stop a command line that several processes would carry out several times over, into the same files.

    The others leave without a word, and with 0: torchrun might stop rank 0 before it has said why.

    Raises
    ------
    ConfigError
        torchrun started more than one process.
    """
    if process_count() > 1 and argv and argv[0] not in ("study", "train"):
        if not is_rank0():
            raise SystemExit(0)
        raise ConfigError(
            f"torchrun started {process_count()} processes, but `tumorlens {argv[0]}` is work for one.",
            cure="Run it without torchrun: only `study` and `train` share their work out.",
        )


@contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Discard what every rank but 0 prints: they would all print the same."""
    if is_rank0():
        yield
        return
    try:
        with Path(os.devnull).open("w") as null, redirect_stdout(null), redirect_stderr(null):
            yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def process_group(device: str) -> Iterator[World]:
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
    if process_count() == 1:
        yield SINGLE_PROCESS
        return
    import torch
    from torch import distributed

    from tumorlens.training.devices import BACKENDS, choose_device

    world = World(int(os.environ["RANK"]), process_count(), int(os.environ["LOCAL_RANK"]))
    kind = choose_device(device)[0].type
    backend = BACKENDS[kind]
    if kind != "cpu":
        if world.local_rank >= torch.accelerator.device_count():
            raise ConfigError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a host with "
                f"{torch.accelerator.device_count()} {kind} device(s).",
                cure=f"Say --nproc-per-node {torch.accelerator.device_count()} or fewer, or --device cpu.",
            )
        torch.accelerator.set_device_index(world.local_rank)  # from here on torch.device(kind) means this one
    with silence_other_ranks(), _answering_sigterm(world):
        try:
            # Objects travel between the hosts' memories, gradients between the GPUs.
            distributed.init_process_group(
                f"cpu:gloo,{kind}:{backend.collectives}" if kind != "cpu" else "gloo", timeout=_PATIENCE
            )
        except RuntimeError as error:
            raise world.lost(f"could not join the others ({error})") from None
        if (leaders := world.run_on_rank0(lambda: kind)) != kind:
            raise ConfigError(
                f"Process 0 computes on {leaders} and process {world.rank} on {kind}.",
                cure="Use --device cpu, or hosts that all have GPUs.",
            )
        yield world
        distributed.destroy_process_group()


@contextmanager
def _answering_sigterm(world: World) -> Iterator[None]:
    """Say why, and end at once, on the SIGTERM that torchrun sends to all when one process ends.

    A Python handler would not run while the main thread waits for the others inside a collective, and torchrun
    kills without a word after 30 s; so a thread reads the signal from the wakeup descriptor. Windows has no SIGTERM
    that a process could answer.
    """
    if sys.platform == "win32":
        yield
        return
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
