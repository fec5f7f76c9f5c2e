"""Where to compute and in which precision, with reasons for the record."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import ConfigError


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device and why, from `auto`, `cpu` or `cuda`.

    Raises
    ------
    ConfigError
        `cuda` is wanted and there is none.
    """
    if wanted == "cpu":
        return torch.device("cpu"), "asked for with --device cpu"
    if torch.cuda.is_available():
        why = "asked for with --device cuda" if wanted == "cuda" else "a CUDA device is there"
        return torch.device("cuda"), f"{why}: {torch.cuda.get_device_name()}"
    if wanted == "cuda":
        raise ConfigError("--device cuda: PyTorch sees no CUDA device.", cure="Say --device cpu, or check the driver.")
    return torch.device("cpu"), "no CUDA device is there"


def choose_precision(wanted: str, device: torch.device, begun: str = "") -> tuple[torch.dtype, str]:
    """The precision of convolutions and why, from `auto`, `fp32` or `bf16`; `begun` is that of a run to be gone on
    with, which `auto` keeps."""
    why = f"asked for with --precision {wanted}"
    if wanted == "auto" and begun:
        wanted, why = begun, "the run began in it"
    if wanted == "fp32":
        return torch.float32, why
    native = bf16_is_native(device)
    if wanted == "bf16":
        slow = "" if native else "; SLOW: this processor has no bf16 instructions and imitates them"
        return torch.bfloat16, why + slow
    if native:
        where = "the CUDA device" if device.type == "cuda" else "this processor"
        return torch.bfloat16, f"{where} has instructions for it"
    return torch.float32, "there are no bf16 instructions"


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions; without them it takes many times as long as fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN also says yes to AVX-512 alone, where it imitates them.
    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_avx512_bf16_supported())


def device_name(device: torch.device) -> str:
    """A name for people: the GPU's, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"CPU, {os.cpu_count()} cores"


def keep_to_cores() -> int:
    """Let PyTorch compute with no more threads than there are cores to use, and return how many.

    PyTorch counts the machine's. Those beyond a container's share are stopped in the middle of a layer, and all others
    wait for them. What OMP_NUM_THREADS says stays.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()
