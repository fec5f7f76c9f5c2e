"""Memory of `tumorlens predict` over very many files, with an interruption half-way. Linux only.

    python benchmarks/stream.py --model FILE [--files FOLDER] [--n 100000]

The files are links to those of FOLDER, or to generated slices. At half the rows the process is interrupted (SIGINT) and
resumed with --resume. Any exported model will do: memory per batch does not depend on it. Updates
benchmarks/results/stream.json.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clients import memory
from measuring import keep
from PIL import Image

from tumorlens.data.phantom.generator import LABELS, make_slice
from tumorlens.inference.classifier import load_classifier

EVERY = 0.5  # seconds between two measurements


def fill(folder: Path, n: int, source: Path | None) -> None:
    """Create `n` links in subfolders of a thousand each."""
    found = sorted(p for p in source.rglob("*") if p.is_file()) if source else []
    if not found:
        for i in range(64):
            content = io.BytesIO()
            Image.fromarray(make_slice(1, LABELS[i % 4], i // 4, 0).pixels).save(content, "JPEG", quality=90)
            found.append(folder / f"source-{i:02d}.jpg")
            found[-1].write_bytes(content.getvalue())
    for i in range(n):
        if i % 1000 == 0:
            (folder / "files" / f"{i // 1000:05d}").mkdir(parents=True)
        place = folder / "files" / f"{i // 1000:05d}" / f"{i:07d}{found[i % len(found)].suffix}"
        place.symlink_to(found[i % len(found)].resolve())


def resident(pid: int) -> float:
    """Resident memory in MB; 0 if the process has ended."""
    try:
        return memory(pid)
    except (OSError, StopIteration):
        return 0.0


def rows(path: Path) -> int:
    """Complete lines after the header."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return max(0, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1)


def run(model: Path, folder: Path, out: Path, stop_at: int | None, *more: str) -> tuple[list[tuple[int, float]], int]:
    """Measurements (rows, MB) and the exit code; the process is interrupted at `stop_at` rows."""
    command = [sys.executable, "-m", "tumorlens", "predict", str(folder / "files"), "--model", str(model),
               "--format", "csv", "--out", str(out), *more]  # fmt: skip
    taken = []
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(EVERY)
            if mb := resident(process.pid):
                taken.append((rows(out), round(mb, 1)))
            if stop_at and taken[-1][0] >= stop_at:
                process.send_signal(signal.SIGINT)
                stop_at = None
    return taken, process.returncode


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--n", type=int, default=100_000)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in a background process
    model = asked.model.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder, asked.n, asked.files)
        out = folder / "rows.csv"
        began = time.perf_counter()
        first, code_first = run(model, folder, out, asked.n // 2)
        kept = rows(out)
        second, code = run(model, folder, out, None, "--resume")
        seconds = time.perf_counter() - began
        with out.open(newline="") as file:
            names = [row["file"] for row in csv.DictReader(file)]
    whole = len(names) == asked.n and len(set(names)) == asked.n
    if code != 0 or not whole or not 0 < kept < asked.n:
        sys.exit(f"predict ended with {code_first} and {code}; {len(set(names))} of {asked.n} files have a row.")
    early, half, late = (
        max((mb for n, mb in taken if low * asked.n <= n <= high * asked.n), default=0.0)
        for taken, low, high in ((first, 0.02, 0.1), (first, 0.4, 0.5), (second, 0.9, 1.0))
    )
    if not early:
        sys.exit("Too few files: memory was not measured in the first tenth.")
    detail: dict[str, Any] = {
        "files": asked.n, "interrupted_after": kept, "exit_code_interrupted": code_first, "seconds": seconds,
        "configuration": load_classifier(model, 1).card["configuration"], "cores": os.cpu_count(),
        "memory_mb": {"early": early, "half": half, "late": late},
        "curve": (first + second)[:: max(1, (len(first) + len(second)) // 100)],
    }  # fmt: skip
    full = asked.n >= 100_000
    print(keep("stream" if full else "stream-small", f"python benchmarks/stream.py --model MODEL --n {asked.n}",
               {"predict.memory_growth_100k": max(half, late) / early - 1} if full else {},
               {"stream": detail}))  # fmt: skip
    print({key: value for key, value in detail.items() if key != "curve"})


if __name__ == "__main__":
    main()
