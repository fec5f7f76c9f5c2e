"""The service under load and under faults, compared with a plain torch + FastAPI service. Linux only.

python benchmarks/load.py --model runs/mine/classifier-int8.onnx --weights runs/mine/finetuned/*.pth
    [--files FOLDER] [--requests 10000] [--connections 64] [--parts speed faults windows]

Every response is compared with the prediction of `predict` for the same file. Both services run throughout and get
requests in turns, so that other load affects both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import json
import os
import shlex
import signal
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clients import Address, Check, Result, forget_peak, half_sent, load, memory, ours, plain, slow, workers
from measuring import keep, kept
from PIL import Image

from tumorlens.data.phantom.generator import LABELS, make_slice
from tumorlens.inference.classifier import load_classifier
from tumorlens.inference.predict import predict
from tumorlens.inference.records import Record

FILES, WARM, ROUNDS = 64, 200, 5
PLAIN_SHARE = 8  # the plain service gets so many times fewer requests, as it would otherwise take most of the time


def bodies_of(folder: Path | None) -> list[bytes]:
    """Files to send: of a folder, or generated slices as JPEG."""
    if folder:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        return [path.read_bytes() for path in paths[:: max(1, len(paths) // FILES)][:FILES]]
    made = []
    for i in range(FILES):
        content = io.BytesIO()
        Image.fromarray(make_slice(1, LABELS[i % 4], i // 4, 0).pixels).save(content, "JPEG", quality=95)
        made.append(content.getvalue())
    return made


def expected(model: Path, bodies: list[bytes]) -> list[Record]:
    """The prediction of `predict` for each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:04d}" for i in range(len(bodies))]
        for path, body in zip(paths, bodies, strict=True):
            path.write_bytes(body)
        rows = list(predict([str(path) for path in paths], load_classifier(model)))
    if len(rows) != len(bodies):
        raise SystemExit("Use files of one picture each.")
    return rows


def compare(rows: list[Record]) -> Check:
    """right, wrong, or refused (503 with problem details)."""

    def check(at: int, status: int, content: bytes) -> str:
        row, found = rows[at], json.loads(content)
        if status == 503:
            return "refused" if found["type"].startswith("urn:tumorlens:problem:") else "wrong"
        if row.failed:  # damaged on purpose
            return "right" if status in (400, 413, 415, 422) and found["cure"] else "wrong"
        if status != 200:
            return "wrong"
        one = found["rows"][0]
        same = one["class"] == (row.label or None) and one["verdict"] == row.verdict and one["set"] == list(row.set)
        probabilities = list((one["probabilities"] or {}).values())
        close = len(probabilities) == len(row.probabilities) and all(
            abs(p - q) < 1e-3 for p, q in zip(probabilities, row.probabilities.values(), strict=True)
        )
        return "right" if same and close else "wrong"

    return check


def outcomes(results: list[Result]) -> Counter[str]:
    """Of several loads together."""
    return sum((r.outcomes for r in results), Counter())


def answered(_at: int, status: int, _content: bytes) -> str:
    """The check for the plain service: that it responds."""
    return "right" if status == 200 else "wrong"


def measure_speed(arguments: argparse.Namespace, bodies: list[bytes], check: Check) -> dict[str, Any]:
    """Both services in turns."""
    with ours(arguments.model) as (process, here), plain(arguments.weights) as (_, there):

        def ask(address: Address, path: str, n: int, how: Check) -> Result:
            return asyncio.run(load(address, path, bodies, n, arguments.connections, how))

        ask(here, "/v1/predict", WARM, check)
        ask(there, "/predict", 64, answered)
        start = memory(process.pid)
        a_round = -(-arguments.requests // ROUNDS)
        mine: list[Result] = []
        theirs: list[Result] = []
        for _ in range(ROUNDS):
            mine.append(ask(here, "/v1/predict", a_round, check))
            theirs.append(ask(there, "/predict", max(arguments.connections, a_round // PLAIN_SHARE), answered))
        end = memory(process.pid)
    whole = Result(outcomes(mine), [s for r in mine for s in r.latencies])
    return {
        "requests": sum(whole.outcomes.values()), "connections": arguments.connections, "outcomes": whole.outcomes,
        "p50_ms": whole.quantile(0.5), "p99_ms": whole.quantile(0.99),
        "requests_per_s": [r.rate for r in mine], "plain_requests_per_s": [r.rate for r in theirs],
        "plain_p50_ms": statistics.median(r.quantile(0.5) for r in theirs),
        "over_plain": statistics.median(a.rate / b.rate for a, b in zip(mine, theirs, strict=True)),
        "memory_mb": [start, end],
    }  # fmt: skip


def measure_windows(arguments: argparse.Namespace, bodies: list[bytes], check: Check) -> list[dict[str, float]]:
    """Throughput at full load and latency of a lone client, by the batching window; all of them in turns."""
    windows = ("0", "0.001", "0.002", "0.005", "0.01")
    n = max(200, arguments.requests // 20)
    rates: dict[str, list[tuple[float, float, float]]] = {window: [] for window in windows}
    with ExitStack() as stack:
        servers = {w: stack.enter_context(ours(arguments.model, "--window", w))[1] for w in windows}
        for repeat in range(4):
            for window, here in servers.items():
                many, few, one = (
                    asyncio.run(load(here, "/v1/predict", bodies, requests, connections, check))
                    for requests, connections in ((n, arguments.connections), (n // 4, 4), (n // 8, 1))
                )
                for result in (many, few, one):  # a refusal is quick, and would raise the rate
                    if wrong := result.outcomes.keys() - {"right"}:
                        raise SystemExit(f"window {window}: not all answers were right: {sorted(wrong)}")
                if repeat:  # the first is to warm up
                    rates[window].append((many.rate, few.rate, one.quantile(0.5)))
    found = []
    for window, values in rates.items():
        many_rate, few_rate, alone = (statistics.median(column) for column in zip(*values, strict=True))
        found.append({"window_s": float(window), "requests_per_s": many_rate, "requests_per_s_of_4": few_rate,
                      "p50_ms_alone": alone})  # fmt: skip
    return found


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(4_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def nifti_bomb() -> bytes:
    """A gzip whose header promises a volume of 100 MB, all of it zeros."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 500, 500, 400, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # uint8
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(100_000_000), mtime=0)


def measure_faults(arguments: argparse.Namespace, good: list[bytes]) -> dict[str, Any]:
    """Two workers; one is killed, clients misbehave, and at the end SIGTERM comes into full load."""
    # 4 damaged ones beside all others: cut off, flipped, or no picture at all. Bombs are asked for by themselves.
    damaged = [body[: len(body) // 2] for body in good[:2]] + [b"no picture", b"\xff\xd8\xff" + bytes(500)]
    bodies = good + damaged
    check = compare(expected(arguments.model, bodies))
    bombs = [bomb(), nifti_bomb()]
    n = -(-arguments.requests // ROUNDS)
    with ours(arguments.model, "--workers", "2") as (process, here):

        def ask(requests: int, tries: int = 5) -> Any:
            return load(here, "/v1/predict", bodies, requests, arguments.connections, check, tries)

        async def all_at_once() -> tuple[Result, list[str], Result]:
            work = asyncio.create_task(ask(n))
            slows = [asyncio.create_task(slow(here, 30)) for _ in range(16)]
            blown = asyncio.create_task(load(here, "/v1/predict", bombs, -(-arguments.bombs // ROUNDS), 4, bombed, 5))
            await asyncio.to_thread(half_sent, here, good[0], 200 // ROUNDS)
            return await work, await asyncio.gather(*slows), await blown

        def bombed(at: int, status: int, _content: bytes) -> str:
            clear = status == 413 or (at == 1 and status in (200, 413, 422)) or status == 503
            return f"{'clear' if clear else 'wrong'} {status}"

        # Once before the start, as readers of further formats are imported when the first such file comes.
        asyncio.run(ask(WARM))
        asyncio.run(load(here, "/v1/predict", bombs, 32, 4, bombed, 5))
        peaks = {}
        for name, sent, judge in (("requests", bodies, check), ("bombs", bombs, bombed)):
            forget_peak(process.pid)
            asyncio.run(load(here, "/v1/predict", sent, 200, 4, judge, 5))
            peaks[name] = memory(process.pid, "VmHWM")
        taken = [memory(process.pid)]
        mixed: list[Result] = []
        slows: list[str] = []
        blown: list[Result] = []
        for _ in range(ROUNDS):
            asked, dawdled, burst = asyncio.run(all_at_once())
            asyncio.run(ask(WARM))
            taken.append(memory(process.pid))
            mixed.append(asked)
            slows += dawdled
            blown.append(burst)

        async def killed() -> Result:
            work = asyncio.create_task(ask(arguments.requests // 2, 20))
            await asyncio.sleep(0.5)
            os.kill(workers(process.pid)[0], signal.SIGKILL)
            return await work

        after_kill = asyncio.run(killed())
        replaced = len(workers(process.pid)) == 2

        async def terminated() -> tuple[Result, float]:
            work = asyncio.create_task(ask(arguments.requests // 2, 1))
            await asyncio.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 20)
            seconds = time.monotonic() - began
            return await work, seconds

        ended, seconds = asyncio.run(terminated())
    return {
        "mixed": {"outcomes": outcomes(mixed), "resets": sum(r.resets for r in mixed),
                  "damaged_share": len(damaged) / len(bodies)},
        "slow_clients": Counter(slows), "bombs": outcomes(blown),
        "worker_killed": {"outcomes": after_kill.outcomes, "resets": after_kill.resets, "replaced": replaced},
        "sigterm": {"outcomes": ended.outcomes, "seconds": seconds}, "memory_mb": taken,
        "peak_mb": peaks,
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for, and keep it in benchmarks/results/serve.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an .onnx file, or a run's folder")
    parser.add_argument("--weights", type=Path, help="the plain service's .pth; random weights are as fast")
    parser.add_argument("--files", type=Path, help="folder of images; default: generated slices")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--bombs", type=int, default=1_000)
    parser.add_argument("--parts", nargs="+", choices=("speed", "faults", "windows"), default=["speed", "faults"])
    parser.add_argument("--name", default="serve", help="of the file of results")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are ended too
    arguments.model = arguments.model.resolve()
    bodies = bodies_of(arguments.files)
    check = compare(expected(arguments.model, bodies))
    figures: dict[str, float] = {}
    detail: dict[str, Any] = {"precision": load_classifier(arguments.model, 1).card["precision"]}
    if "windows" in arguments.parts:
        detail["windows"] = measure_windows(arguments, bodies, check)
    if "speed" in arguments.parts:
        speed = detail["speed"] = measure_speed(arguments, bodies, check)
        lost = speed["requests"] - speed["outcomes"]["right"] - speed["outcomes"]["wrong"]
        figures |= {
            "serve.requests": speed["requests"], "serve.lost": lost,
            "serve.wrong": speed["outcomes"]["wrong"], "serve.p50_ms": speed["p50_ms"],
            "serve.p99_ms": speed["p99_ms"], "serve.throughput_over_plain": speed["over_plain"],
        }  # fmt: skip
    if "faults" in arguments.parts:
        detail["faults"] = measure_faults(arguments, bodies)
    known = kept(arguments.name) | detail  # an earlier command may have measured the other part
    if runs := [known[part]["memory_mb"] for part in ("speed", "faults") if part in known]:
        figures["serve.memory_growth"] = max(taken[-1] / taken[0] - 1 for taken in runs)
    command = shlex.join(["benchmarks/load.py", *(Path(a).name if "/" in a else a for a in sys.argv[1:])])
    print(keep(arguments.name, command, figures, detail))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
