"""Choose device, precision, convolution algorithm and processes, and record the reasons."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import ConfigError
from tumorlens.training.world import SINGLE_PROCESS, World

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Backend:
    """Properties of a kind of device. The functions take no argument and refer to the current device of that kind."""

    title: str
    """Name with article, for messages."""
    is_available: Callable[[], bool]
    has_bf16: Callable[[], bool]
    """Whether it has bfloat16 instructions; emulated bfloat16 takes several times as long as float32."""
    name: Callable[[], str]
    """Name of the hardware model, for the record."""
    free_memory: Callable[[], int]
    """Bytes of device memory that can still be allocated; 0 for the CPU, whose memory use is not planned."""
    collectives: str = "gloo"
    """The torch.distributed backend."""
    has_graphs: bool = False
    """Whether steps can be recorded as a CUDA graph."""


def _cpu_has_bf16() -> bool:
    # With plain AVX-512, oneDNN only emulates bf16, although it reports support.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _cpu_name() -> str:
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()  # may be just the vendor's product family
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


#: PyTorch names ROCm devices `cuda`.
BACKENDS = {
    "cuda": Backend(
        "a CUDA device", torch.cuda.is_available, torch.cuda.is_bf16_supported, torch.cuda.get_device_name,
        lambda: torch.cuda.mem_get_info()[0], collectives="nccl", has_graphs=True,
    ),
    "mps": Backend(
        "an Apple GPU", torch.backends.mps.is_available, lambda: torch.backends.mps.is_macos_or_newer(14, 0),
        lambda: f"Apple GPU of {platform.machine()}", 
        lambda: torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(),
    ),
    "xpu": Backend(
        "an Intel GPU", torch.xpu.is_available, torch.xpu.is_bf16_supported, torch.xpu.get_device_name,
        lambda: torch.xpu.mem_get_info()[0], collectives="xccl",
    ),
    "cpu": Backend("the CPU", lambda: True, _cpu_has_bf16, _cpu_name, lambda: 0),
}  # fmt: skip
_AUTO = ("cuda",)  # the other GPU kinds have not been tested on hardware


@dataclass(frozen=True)
class Compute:
    """Where and how to compute. `resolve_compute` creates one from options."""

    device: torch.device
    precision: torch.dtype
    """Precision of convolutions, by autocast: float32 or bfloat16. Weights and losses are always float32."""
    convolutions: Literal["winograd", "direct"] = "direct"
    """CPU convolution algorithm of trainable layers."""
    device_reason: str = ""
    precision_reason: str = ""
    threads: int = field(default_factory=torch.get_num_threads)
    """Number of CPU threads that PyTorch uses."""
    world: World = SINGLE_PROCESS
    """The processes that share the work."""

    @property
    def backend(self) -> Backend:
        """Properties of this kind of device."""
        return BACKENDS[self.device.type]

    @property
    def precision_name(self) -> str:
        """`fp32` or `bf16`."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.precision)

    def autocast(self, *, cache_weights: bool = True) -> torch.autocast:
        """Return a context in which convolutions and matrix products are computed in `precision`."""
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled, cache_enabled=cache_weights)

    def record(self) -> dict[str, Any]:
        """Return what is written to study.json."""
        return {
            "device": self.device.type,
            "why": self.device_reason,
            "precision": self.precision_name,
            "precision_why": self.precision_reason,
            "name": self.backend.name(),
            "convolutions": self.convolutions,
            "threads": self.threads,
        }


def resolve_compute(
    device: str = "auto",
    precision: str = "auto",
    convolutions: str = "auto",
    *,
    world: World = SINGLE_PROCESS,
    earlier: Mapping[str, Any] | None = None,
) -> Compute:
    """Choose device, precision and convolutions, and limit PyTorch's threads to the usable cores.

    Parameters
    ----------
    device
        `auto`, or a key of BACKENDS.
    precision
        `auto`, `fp32` or `bf16`; `auto` is bf16 if the device has bf16 instructions.
    convolutions
        `auto` or `direct`; `auto` is Winograd's algorithm on the CPU.
    earlier
        `Compute.record()` of the run to resume: `auto` keeps its precision if the device is of the same kind.

    Raises
    ------
    ConfigError
        The requested device is not available.
    """
    chosen, device_reason = choose_device(device)
    earlier = earlier or {}
    begun = str(earlier.get("precision", "")) if earlier.get("device") == chosen.type else ""
    dtype, precision_reason = choose_precision(precision, chosen, begun)
    winograd = convolutions == "auto" and chosen.type == "cpu"
    return Compute(
        chosen, dtype, "winograd" if winograd else "direct", device_reason, precision_reason, limit_threads(), world
    )  # fmt: skip


def choose_device(requested: str) -> tuple[torch.device, str]:
    """Return the device and the reason for it, given `auto` or a key of BACKENDS.

    Raises
    ------
    ConfigError
        The requested device is not available.
    """
    if requested != "auto":
        backend = BACKENDS[requested]
        if not backend.is_available():
            raise ConfigError(
                f"--device {requested}: PyTorch does not find {backend.title}.",
                cure="Use --device cpu, or check the driver and how PyTorch was built.",
            )
        reason = f"requested with --device {requested}"
        return torch.device(requested), reason if requested == "cpu" else f"{reason}: {backend.name()}"
    for kind in _AUTO:
        if BACKENDS[kind].is_available():
            return torch.device(kind), f"{BACKENDS[kind].title} is available: {BACKENDS[kind].name()}"
    return torch.device("cpu"), "no CUDA device is available"


def choose_precision(requested: str, device: torch.device, begun: str = "") -> tuple[torch.dtype, str]:
    """Return the precision of convolutions and the reason for it, given `auto`, `fp32` or `bf16`.

    `begun` is the precision of the run to resume, if any; `auto` keeps it.
    """
    native = BACKENDS[device.type].has_bf16()
    if requested == "auto" and not begun:
        if native:
            return torch.bfloat16, f"{BACKENDS[device.type].title} has bf16 instructions"
        return torch.float32, "there are no bf16 instructions"
    name, reason = (begun, "the run began in it") if requested == "auto" else (
        requested, f"requested with --precision {requested}"
    )  # fmt: skip
    slow = "; SLOW: this device emulates bf16" if name == "bf16" and not native else ""
    return PRECISIONS[name], reason + slow


def limit_threads() -> int:
    """Limit PyTorch's threads to the usable cores, unless OMP_NUM_THREADS is set; return the number of threads.

    By default PyTorch uses all cores of the machine. Threads beyond a container's CPU quota are throttled in the middle
    of a layer, and all others wait for them.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


@contextmanager
def deterministic() -> Iterator[None]:
    """Make cuDNN choose the same deterministic kernels every time, in full float32 rather than TensorFloat-32.

    A `torch.backends.fp32_precision` set by the user takes precedence. Devices without cuDNN are not affected.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False):
        yield
