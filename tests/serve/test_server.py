"""The service under uvicorn: slow, broken and impatient clients, signals, workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import clients
import httpx
import pytest
import uvicorn
from serve_model import png, problem_of
from service_process import process, until

from tumorlens.cli.app import main
from tumorlens.core.errors import RunError
from tumorlens.inference.classifier import load_classifier
from tumorlens.serve import admission
from tumorlens.serve import server as running
from tumorlens.serve.app import create_app
from tumorlens.serve.server import serve
from tumorlens.serve.settings import Settings

workers = clients.workers

NAME = "Mueller_Anna_1970"


def read_all(client):
    """What comes until the other side closes."""
    found = b""
    while part := client.recv(65536):
        found += part
    return found


@contextmanager
def on_a_thread(app):
    """An application under uvicorn; gives the server and its address."""
    config = uvicorn.Config(app, port=0, http=running.Connection, ws="none", log_config=None, lifespan="on")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started)
    yield server, listener.getsockname()
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(model):
    """The service on a thread of this process, with little patience; gives its admission and its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "HEADER_SECONDS", 0.4)
        patch.setattr(admission, "GRACE", 0.4)
        app = create_app(load_classifier(model, 1), Settings(model=model, quiet=True, window=0.3))
        with on_a_thread(app) as (_, address):
            yield app.state.admission, address


class TestConnections:
    @contextmanager
    def client(self, server):
        with socket.create_connection(server[1], timeout=5) as client:
            yield client

    def test_a_slow_header_is_cut(self, server):
        with self.client(server) as client:
            began = time.monotonic()
            client.sendall(b"GET /healthz HT")
            assert read_all(client) == b""
            assert time.monotonic() - began < 3

    def test_a_slow_body_is_answered_and_cut(self, server):
        with self.client(server) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nab")
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"urn:tumorlens:problem:too-slow" in answer
        until(lambda: server[0].open_requests == server[0].body_bytes == server[0].active == 0)

    def test_slow_bodies_take_no_places(self, server):
        with self.client(server) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nab")
            until(lambda: server[0].body_bytes == 2)
            assert server[0].active == 0

    def test_a_half_sent_body_frees_what_it_held(self, server):
        with self.client(server) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
            until(lambda: server[0].body_bytes == 500)
        until(lambda: server[0].open_requests == server[0].body_bytes == 0)

    def test_who_hangs_up_frees_the_place(self, server):
        body = png()
        with self.client(server) as client:
            header = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(header.encode() + body)
            until(lambda: server[0].active == 1)
        began = time.monotonic()
        until(lambda: server[0].active == 0)
        assert time.monotonic() - began < 0.25  # before the batch's window is over

    def test_what_is_sent_after_the_answer_does_not_hold_the_line(self, server):
        with self.client(server) as client:
            client.sendall(b"PUT /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nab")
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 405 ")


def test_a_service_from_start_to_end(model, tmp_path):
    with process(model, "--window", "0.8", temporary=tmp_path) as (running, client):
        parts = [("file", (f"{NAME}.png", png())), ("file", ("big.png", bytes(2_000_000)))]
        rows = [
            json.loads(line) for line in client.post("/v1/batch", files=parts, params={"plane": "axial"}).iter_lines()
        ]
        assert [row["file"] for row in rows] == [f"{NAME}.png", "big.png"]
        assert client.post(f"/v1/predict?name={NAME}", content=b"x" + NAME.encode()).status_code == 415
        assert list(tmp_path.iterdir()) == []

        answers = {}
        waiting = threading.Thread(target=lambda: answers.update(first=client.post("/v1/predict", content=png())))
        with httpx.Client(base_url=client.base_url, timeout=30) as other:
            assert other.get("/readyz").status_code == 200
            waiting.start()
            time.sleep(0.3)
            began = time.monotonic()
            running.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            late = other.post("/v1/predict", content=png())
            new = httpx.get(client.base_url.join("/readyz"))
        waiting.join()
        assert answers["first"].status_code == 200
        assert problem_of(late) == problem_of(new) == (503, "stopping")
        assert running.wait(10) == 0
        assert time.monotonic() - began < 10
        log = running.stderr.read()
    assert NAME not in log
    assert f"at {client.base_url}/ (Ctrl-C stops it)" in log
    assert "POST /v1/batch 200" in log
    assert "127.0.0.1" not in log.replace(str(client.base_url), "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for workers in /proc")
@pytest.mark.parametrize("ready", [True, False])
def test_a_worker_that_is_killed_is_replaced(model, tmp_path, ready):
    with process(model, "--workers", "2", "--quiet", temporary=tmp_path) as (running, client):
        until(lambda: len(workers(running.pid)) == 2, 120)
        if ready:
            assert client.post("/v1/predict", content=png()).status_code == 200
        before = workers(running.pid)
        os.kill(before[1], signal.SIGKILL)  # where they are not ready, it is still importing
        until(lambda: before[1] not in (now := workers(running.pid)) and len(now) == 2, 120)
        with httpx.Client(base_url=client.base_url, timeout=120) as fresh:
            assert fresh.post("/v1/predict", content=png()).status_code == 200
            text = fresh.get("/metrics").text
        assert f'route="/v1/predict",status="200"}} {1 + ready}.0' in text  # of all workers, the dead one too
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def patched(folder, model, lines, workers=1):
    """The command for a service whose modules `service` or `server` are changed by lines of Python.

    They are in a file, which the workers run too.
    """
    (folder / "service.py").write_text(
        "import pathlib, sys, time\nfrom tumorlens.core.progress import log_to_stderr\n"
        "from tumorlens.serve import service, server\nfrom tumorlens.serve.settings import Settings\n"
        f"read = service.read_stream\n{lines}\n"
        f"model, port = pathlib.Path({str(model)!r}), int(sys.argv[-1])\n"
        f"settings = Settings(model=model, port=port, quiet=True, workers={workers})\n"
        "if __name__ == '__main__':\n    log_to_stderr()\n    sys.exit(server.serve(settings))\n"
    )
    return [sys.executable, str(folder / "service.py")]


SLOW = """
def slow(*words):
    print("reading", flush=True)
    time.sleep(SECONDS)
    yield from read(*words)
service.read_stream = slow
"""
ENDLESS = SLOW.replace("SECONDS", "300")


@contextmanager
def asking(running, client):
    """A file that is being decoded; gives the list that its answer comes to, if one comes."""
    answers = []

    def ask():
        with suppress(httpx.HTTPError):
            answers.append(client.post("/v1/predict", content=png()))

    thread = threading.Thread(target=ask)
    thread.start()
    assert running.stdout.readline() == "reading\n"
    yield answers
    thread.join(60)
    assert not thread.is_alive()


def test_ctrl_c_finishes_what_is_in_work(model, tmp_path):
    """Also where something else, which heard it too, sends SIGTERM after it."""
    command = patched(tmp_path, model, SLOW.replace("SECONDS", "1.8"))
    with process(model, command=command) as (running, client):
        with asking(running, client) as answers:
            running.send_signal(signal.SIGINT)
            time.sleep(0.1)
            running.send_signal(signal.SIGTERM)
        assert answers[0].status_code == 200
        assert running.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_finishes_what_is_in_work(model, tmp_path, number):
    """From a terminal or a service manager: a worker hears of it twice, the second time from its supervisor."""
    command = patched(tmp_path, model, SLOW.replace("SECONDS", "1.8"), workers=2)
    with process(model, temporary=tmp_path, group=True, command=command) as (running, client):
        until(lambda: len([*tmp_path.glob("*/histogram_*.db")]) == 2, 120)  # both are beyond their imports
        with asking(running, client) as answers:
            os.killpg(running.pid, number)
        assert answers[0].status_code == 200
        assert running.wait(30) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["service.py"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_does_not_end_is_answered_and_does_not_hold_the_exit(model, tmp_path, workers):
    command = patched(tmp_path, model, ENDLESS + "server._DRAIN, server._END = 0.6, 3.0", workers)
    with process(model, command=command) as (running, client):
        with asking(running, client) as answers:
            running.send_signal(signal.SIGTERM)
        assert problem_of(answers[0]) == (503, "stopping")
        assert running.wait(60) == 1
        log = running.stderr.read()
    assert "Traceback" not in log
    assert "Cut off" in log


@pytest.mark.parametrize("late", [False, True], ids=["in work", "answered"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_signal_again_ends_it_at_once(model, tmp_path, number, late):
    with process(model, command=patched(tmp_path, model, ENDLESS + f"server._DRAIN = {0.6 if late else 5.0}")) as (
        running,
        client,
    ):
        with asking(running, client) as answers:
            running.send_signal(number)
            time.sleep(0.3)
            if late:
                until(lambda: answers)  # the thread that decodes is still at it
                time.sleep(0.5)
            running.send_signal(number)
            began = time.monotonic()
            assert running.wait(30) == 1
            assert time.monotonic() - began < 3
        assert "Cut off" in running.stderr.read()


def test_workers_that_cannot_start_show_in_the_exit_code(model, tmp_path):
    command = patched(tmp_path, model, "server._HEALTHCHECK = 3; server._drain_on_signal = lambda *_: 1 / 0", workers=2)
    with process(model, command=command) as (running, _):
        assert running.wait(120) == 1


def test_without_the_extra_the_cure_is_one_for_the_source(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tumorlens.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 1
    err = capsys.readouterr().err
    assert "'uvicorn'" in err
    assert "pip install '.[serve]'" in err  # there is no such package to be had elsewhere


def test_what_cannot_be_served_is_an_error_before_anything_listens(model, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        serve(Settings(model=tmp_path / "none.onnx"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RunError, match="port"):
        serve(Settings(model=model, port=taken.getsockname()[1]))


def test_no_torch_and_nothing_of_the_study_is_imported():
    code = (
        "import sys, tumorlens.serve.server, tumorlens.data.phantom.generator\n"
        "print([m for m in ('torch', 'torchvision', 'scipy', 'sklearn', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
