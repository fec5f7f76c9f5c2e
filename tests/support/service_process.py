"""`tumorlens serve` as a process, for tests."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx


def until(condition, seconds=8.0):
    """Wait for something that must come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(model, *options, temporary=None, group=False, command=None):
    """`tumorlens serve`, or `command`, with `--port` and a free port; gives the process and a client of it."""
    port = free_port()
    command = command or [sys.executable, "-m", "tumorlens", "serve", "--model", str(model), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"TMPDIR": str(temporary)} if temporary else {})
    running = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=environment, start_new_session=group)  # fmt: skip
    try:
        until(lambda: listens(port) or running.poll() is not None, 60)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield running, client
    finally:
        running.terminate()  # its workers too, which SIGKILL would leave behind
        try:
            running.wait(12)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        running.stdout.close()
        running.stderr.close()
