"""What every benchmark shares: alternating repeats, medians with their spread, and the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("numpy", "pillow", "torch", "torchvision", "numba", "onnxruntime")


def alternate(work: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True) -> dict[str, list[float]]:
    """Wall-clock seconds of each piece of work, taken in turns so that other load hits all alike."""
    if warm:
        for piece in work.values():
            piece()
    found: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats):
        order = list(work.items()) if repeat % 2 == 0 else list(work.items())[::-1]
        for name, piece in order:
            began = time.perf_counter()
            piece()
            found[name].append(time.perf_counter() - began)
    return found


def command() -> str:
    """The command line that runs, without the folders of this machine."""
    return "python benchmarks/" + " ".join(Path(word).name or word for word in sys.argv)


def spread(values: list[float]) -> dict[str, Any]:
    """Median, least and greatest, with the values themselves."""
    return {
        "median": statistics.median(values), "min": min(values), "max": max(values),
        "values": [round(v, 6) for v in values],
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """Processor, its vector instructions that matter here, cores, system, and a GPU where there is one."""
    import torch  # some benchmarks measure memory, and need none of it

    found: dict[str, Any] = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    lines = dict(line.split(":", 1) for line in reversed(text.splitlines()) if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(lines.get("flags", "").split())
    found["processor"] = lines.get("model name") or platform.processor() or platform.machine()
    found["instructions"] = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in flags]
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Of Python and of those packages that compute here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def kept(name: str) -> dict[str, Any]:
    """What earlier commands left in benchmarks/results/NAME.json; empty where they left none."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def keep(name: str, command: str, figures: Mapping[str, float], detail: Mapping[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json; parts that were not run this time stay, with their machine and versions."""
    path, before = RESULTS / f"{name}.json", kept(name)
    commands = {**before.get("commands", {}), **dict.fromkeys(detail, command)}
    here = {"machine": machine(), "versions": versions()}
    where = {**before.get("where", {}), **dict.fromkeys(detail, here)}
    content = {
        **before, "name": name, "command": command, "commands": commands, "where": where, **detail,
        "figures": {**before.get("figures", {}), **figures}, **here,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
