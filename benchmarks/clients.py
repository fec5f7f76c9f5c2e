"""Servers as processes, and clients on plain sockets, which cost little of the CPU that they share."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
Address = tuple[str, int]
#: Number of the file, status and content → name of the outcome.
Check = Callable[[int, int, bytes], str]


@dataclass
class Result:
    """Outcomes of a number of requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Seconds of each request with a response."""
    resets: int = 0
    """Connections that broke; their requests were sent again."""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Responses per second."""
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        """Latency in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class BrokenError(ConnectionError):
    """No complete response: "not connected", "closed" before its start, or "cut off" within it."""


class Connection:
    """A connection that is kept open, and opened again if the server closed it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and content; BrokenError without a complete response."""
        how = "not connected"
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self.address)
            reader, writer = self._streams
            how = "closed"
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            header = await reader.readexactly(1)
            how = "cut off"
            header = (header + await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", header)
            content = await reader.readexactly(int(length.group(1)) if length else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise BrokenError(how) from error
        if b"connection: close" in header:
            self.close()
        return int(header[9:12]), content

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


async def load(
    address: Address, path: str, bodies: Sequence[bytes], requests: int, connections: int, check: Check, tries: int = 1
) -> Result:
    """Send the bodies in turn, `requests` in all, over so many connections at once."""
    result, numbers = Result(), iter(range(requests))

    async def client() -> None:
        connection = Connection(address)
        for number in numbers:
            at = number % len(bodies)
            for _ in range(tries):
                began = time.perf_counter()
                try:
                    status, content = await connection.post(path, bodies[at])
                except BrokenError as error:
                    outcome = str(error)
                    result.resets += 1
                    await asyncio.sleep(0.05)
                    continue
                result.latencies.append(time.perf_counter() - began)
                outcome = check(at, status, content)
                break
            result.outcomes[outcome] += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    result.seconds = time.perf_counter() - began
    return result


async def slow(address: Address, seconds: float) -> str:
    """Send a body at 1 byte/s; how the server ended it."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            writer.write(b"x")
            try:
                answer = await asyncio.wait_for(reader.read(65536), 1)
            except TimeoutError:
                continue
            return f"answered {answer[9:12].decode()}" if answer else "closed"
        return "still open"
    except OSError:
        return "closed"
    finally:
        writer.close()


def half_sent(address: Address, body: bytes, n: int) -> None:
    """Send half a body and close the connection, n times."""
    for _ in range(n):
        with socket.create_connection(address) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            client.sendall(body[: len(body) // 2])


@contextmanager
def ours(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """`tumorlens serve` on a free port."""
    port = _free_port()
    command = [sys.executable, "-m", "tumorlens", "serve", "--model", str(model), "--port", str(port), "--quiet",
               *options]  # fmt: skip
    with _process(command) as process:
        _ready(("127.0.0.1", port), process)
        yield process, ("127.0.0.1", port)


@contextmanager
def plain(weights: Path | None) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """`plain_service.py` under uvicorn on a free port."""
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "plain_service:app", "--port", str(port), "--log-level", "error",
               "--no-access-log"]  # fmt: skip
    with _process(command, **({"WEIGHTS": str(weights.resolve())} if weights else {})) as process:
        _ready(("127.0.0.1", port), process)
        yield process, ("127.0.0.1", port)


@contextmanager
def _process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=HERE, env=os.environ | environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _ready(address: Address, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Wait until the process responds at this address."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(address, timeout=seconds) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if client.recv(4096):
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"No service responded on port {address[1]} within {seconds:.0f} s.")


def workers(pid: int) -> list[int]:
    """The server's worker processes; Linux only."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def memory(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process and its workers, MB; with `VmHWM` the most since `forget_peak`."""
    total = 0
    for one in (pid, *workers(pid)):
        lines = Path(f"/proc/{one}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith(what))
    return total / 1024


def forget_peak(pid: int) -> None:
    """Reset the peaks of a process and its workers to what they hold now; Linux only."""
    for one in (pid, *workers(pid)):
        Path(f"/proc/{one}/clear_refs").write_text("5")
