"""Damaged files through every reader: counts crashes, hangs and excessive memory. Linux and macOS only.

    python benchmarks/fuzz.py [--files 10000] [--seed 0] [--out FILE] [--formats NAME ...] [--keep DIR]

Mutates small valid files of each format and reads each one in a worker process, which is kept from file to file. A
crash is a dead worker, any exception, any warning, or a result that is neither slice nor reason; a hang takes more than
5 s of processor time (wall-clock time would blame the reader for a busy machine) or never ends; memory is the worker's
peak resident set size, at most 1 GB. Writes JSON to FILE or stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import multiprocessing
import os
import platform
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_seeds import seeds, with_checksums

CPU_SECONDS, WALL_SECONDS = 5.0, 900.0
MAX_BYTES = 1_000_000_000
PACKAGES = ("numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "pyjpegls", "nibabel")
_EDGES = (0, 1, 2, 7, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)

# Little-endian tags of DICOM elements whose values mislead decoders, and offsets of NIfTI-1 header fields.
_TAGS = tuple(
    struct.pack("<HH", group, element)
    for group, element in (
        (0x28, 0x02), (0x28, 0x04), (0x28, 0x06), (0x28, 0x08), (0x28, 0x10), (0x28, 0x11), (0x28, 0x100),
        (0x28, 0x101), (0x28, 0x102), (0x28, 0x103), (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052),
        (0x28, 0x1053), (0x28, 0x30), (0x02, 0x10), (0x02, 0x00), (0x20, 0x13), (0x7FE0, 0x10), (0xFFFE, 0xE000),
    )
)  # fmt: skip
_NIFTI_FIELDS = (0, 40, 42, 44, 46, 48, 50, 70, 72, 76, 80, 84, 108, 112, 116, 252, 254, 256, 280, 296, 312, 344)


def mutate(random: np.random.Generator, files: list[bytes], name: str) -> bytes:
    """A damaged copy of one of `files`, or one whose damaged content is compressed again without errors."""
    original = files[int(random.integers(len(files)))]
    if name == "NIfTI gz" and random.random() < 0.6:
        return gzip.compress(_damage(random, gzip.decompress(original), [], name), 1, mtime=0)
    if name == "DICOM deflated" and random.random() < 0.6:
        start = 144 + struct.unpack("<I", original[140:144])[0]
        inner = _damage(random, zlib.decompress(original[start:], -zlib.MAX_WBITS), [], name)
        pack = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        return original[:start] + pack.compress(inner) + pack.flush()
    damaged = _damage(random, original, files, name)
    return with_checksums(damaged) if name == "PNG" and random.random() < 0.7 else damaged


def _damage(random: np.random.Generator, original: bytes, others: list[bytes], name: str) -> bytes:
    data = bytearray(original)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        at = int(random.integers(len(data)))
        if random.random() < 0.4:
            at = int(random.integers(min(len(data), 512)))  # errors in headers have more effect than in pixels
        kind = int(random.integers(8))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at : at + 4] = random.bytes(min(4, len(data) - at))
        elif kind == 2 and random.random() < 0.5:
            del data[at:]
        elif kind == 3:
            other = others[int(random.integers(len(others)))] if others else original
            start, length = int(random.integers(len(other))), int(random.integers(1, 200))
            data[at : at + length * int(random.integers(2))] = other[start : start + length]
        elif kind == 4:
            del data[at : at + int(random.integers(1, 50))]
        elif kind == 5:
            data += random.bytes(int(random.integers(1, 300)))
        else:
            _set_number(random, data, _place(random, data, at, name))
    return bytes(data)


def _place(random: np.random.Generator, data: bytearray, at: int, name: str) -> int:
    """The position of a number that decoders use, if the format is known; else `at`."""
    if name.startswith("NIfTI") and random.random() < 0.7:
        return _NIFTI_FIELDS[int(random.integers(len(_NIFTI_FIELDS)))]
    if name.startswith("DICOM") and random.random() < 0.7:
        found = data.find(_TAGS[int(random.integers(len(_TAGS)))])
        return found + int(random.choice([4, 6, 8, 8, 8])) if found >= 0 else at
    return at


def _set_number(random: np.random.Generator, data: bytearray, at: int) -> None:
    value, size = _EDGES[int(random.integers(len(_EDGES)))], int(random.choice([1, 2, 4]))
    number = (value % 256**size).to_bytes(size, "little" if random.random() < 0.6 else "big")
    data[at : at + size] = number[: max(0, len(data) - at)]


def worker(pipe: Connection, stderr: str) -> None:
    """Read files from the pipe; reply with slices, reasons, error, peak bytes and processor seconds of each."""
    import warnings

    from tumorlens.readers import Slice, Unreadable, read_bytes

    with Path(stderr).open("ab") as screen:
        os.dup2(screen.fileno(), 2)
    unit = 1 if sys.platform == "darwin" else 1024
    warnings.simplefilter("error")
    while (data := pipe.recv_bytes()) != b"":
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        began = time.process_time()
        read = unreadable = 0
        try:
            for found in read_bytes(data, "file"):
                if isinstance(found, Slice) and found.pixels.shape == (224, 224, 3) and found.pixels.dtype == np.uint8:
                    read += 1
                elif isinstance(found, Unreadable) and found.reason and found.cure:
                    unreadable += 1
                else:
                    raise TypeError(f"neither a slice nor a reason: {found!r}")
            failed = "" if read + unreadable else "neither a slice nor a reason"
        except Exception:
            failed = traceback.format_exc()
        signal.setitimer(signal.ITIMER_PROF, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        pipe.send((read, unreadable, failed, peak, time.process_time() - began))


@dataclass
class Counts:
    """Results of the mutants of one format."""

    files: int = 0
    crashes: int = 0
    hangs: int = 0
    over_memory: int = 0
    unreadable: int = 0
    """Files without a readable slice."""
    read: int = 0
    """Files with at least one readable slice."""
    peak_bytes: int = 0
    slowest_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Reader:
    """A worker process and the pipe to it; restarted when it dies."""

    def __init__(self, stderr: str) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stderr = stderr
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=worker, args=(theirs, self._stderr), daemon=True)
        self._process.start()
        theirs.close()

    def read(self, data: bytes, counts: Counts) -> bool:
        """Read one file and count it; false if it crashed, hung or took too much memory."""
        counts.files += 1
        try:
            self._pipe.send_bytes(data)
            if not self._pipe.poll(WALL_SECONDS):
                return self._ended(counts, hang=True, why=f"took over {WALL_SECONDS:g} s in all")
            read, unreadable, failed, peak, seconds = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            return self._ended(counts, hang=code == -signal.SIGPROF, why=f"the worker ended with {code}")
        counts.read += read > 0
        counts.unreadable += read == 0 and unreadable > 0
        counts.peak_bytes = max(counts.peak_bytes, peak)
        counts.slowest_seconds = max(counts.slowest_seconds, seconds)
        if failed:
            counts.crashes += 1
            counts.failures.append(failed)
        if peak > MAX_BYTES:  # a peak never falls: a new process is needed
            counts.over_memory += 1
            self.close()
            self._start()
        return not failed and peak <= MAX_BYTES

    def _ended(self, counts: Counts, *, hang: bool, why: str) -> bool:
        counts.hangs += hang
        counts.crashes += not hang
        counts.failures.append(why)
        self.close()
        self._start()
        return False

    def close(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def fuzz(files: int, seed: int, formats: list[str] | None = None, keep: Path | None = None) -> dict[str, Any]:
    """Read `files` mutants of each format; the same seed gives the same mutants. Failed ones are written to `keep`."""
    began = time.perf_counter()
    results: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory() as folder:
        screen = Path(folder) / "stderr"
        for number, (name, originals) in enumerate(seeds().items()):
            if formats and name not in formats:
                continue
            random = np.random.default_rng([seed, number])
            counts = results[name] = Counts()
            with contextlib.closing(Reader(str(screen))) as reader:
                for i in range(files):
                    data = mutate(random, originals, name) or b"\0"
                    if not reader.read(data, counts) and keep:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{name.replace(' ', '-')}-{seed}-{i}").write_bytes(data)
            print(name, counts, file=sys.stderr, flush=True)
        stderr = screen.read_text(errors="replace") if screen.exists() else ""
    return {
        "name": "fuzz",
        "command": "python benchmarks/fuzz.py",
        "seed": seed,
        "files": sum(c.files for c in results.values()),
        "crashes": sum(c.crashes for c in results.values()),
        "hangs": sum(c.hangs for c in results.values()),
        "over_memory": sum(c.over_memory for c in results.values()),
        "formats": {
            name: {k: v for k, v in vars(counts).items() if k != "failures"} | {"failures": counts.failures[:3]}
            for name, counts in results.items()
        },
        "stderr_characters": len(stderr),
        "stderr": stderr[:500],
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
    }


def main() -> None:
    """Run the fuzzer and write its counts."""
    parser = argparse.ArgumentParser(description="Damaged files through every reader.")
    parser.add_argument("--files", type=int, default=10_000, help="mutants per format (default: 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=list(seeds()), metavar="NAME")
    parser.add_argument("--out", type=Path, help="JSON file (default: stdout)")
    parser.add_argument("--keep", type=Path, help="folder to which failed files are written")
    options = parser.parse_args()
    found = fuzz(options.files, options.seed, options.formats, options.keep)
    if not options.out:
        print(json.dumps(found, indent=1))
        return
    if options.formats and options.out.exists():  # keep the counts of the other formats
        found["formats"] = json.loads(options.out.read_text())["formats"] | found["formats"]
        for key in ("files", "crashes", "hangs", "over_memory"):
            found[key] = sum(one[key] for one in found["formats"].values())
    found["figures"] = {"fuzz.files": found["files"], "fuzz.crashes": found["crashes"]}
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
