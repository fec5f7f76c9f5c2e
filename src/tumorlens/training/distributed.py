"""Training with several processes started by torchrun: their ranks, process group and shutdown.

torch is imported only if torchrun has started more than one process.
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

# How long a rank waits for another. Rank 0 may download and index for hours; a rank that ends is noticed at once.
_PATIENCE = timedelta(hours=12)


def process_count() -> int:
    """Return the number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_rank0() -> bool:
    """Return whether this process is the one that prints; always true without torchrun."""
    return process_count() == 1 or os.environ["RANK"] == "0"


def launch_prefix() -> list[str]:
    """Return what precedes `tumorlens` on the command line that starts this run again."""
    if process_count() == 1:
        return []
    hosts = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [] if hosts == "1" else ["--nnodes", hosts]
    return ["torchrun", *several, "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], "-m"]


def refuse_multiple_processes(argv: Sequence[str]) -> None:
    """Reject a command that several processes would each run in full, writing to the same files.

    The other ranks exit silently with status 0; otherwise torchrun might stop rank 0 before it has printed the error.

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
    """Discard the output of every rank but 0, as all ranks would print the same."""
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
    """Yield the World of the processes that torchrun started; a single-process one without torchrun.

    Parameters
    ----------
    device
        As in `Study.device`. On CUDA, each process uses the device whose index is its `local_rank`.

    Raises
    ------
    ConfigError
        A host has fewer CUDA devices than processes, or the processes use different kinds of device.
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
                cure=f"Use --nproc-per-node {torch.accelerator.device_count()} or fewer, or --device cpu.",
            )
        torch.accelerator.set_device_index(world.local_rank)  # from here on, torch.device(kind) refers to this device
    with silence_other_ranks(), _answering_sigterm(world):
        try:
            # Objects are exchanged through host memory, gradients between the GPUs.
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
    """Print the reason and exit at once on SIGTERM, which torchrun sends to all processes when one of them ends.

    A Python signal handler would not run while the main thread waits inside a collective, and torchrun kills the
    process after 30 s. Therefore a thread reads the signal from the wakeup file descriptor. On Windows, a process
    cannot handle SIGTERM.
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
        before = signal.SIG_IGN  # the process now ends with its own error message, which must not be cut short
        raise
    finally:
        signal.set_wakeup_fd(descriptor)
        os.close(writable)
        signal.signal(signal.SIGTERM, before)
