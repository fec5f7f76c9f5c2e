"""uvicorn around the application: workers, signals, graceful shutdown, and a time limit for request headers.

uvicorn itself supervises the workers, replaces one that died or hangs, and closes connections. Two things are written
by hand, as uvicorn has no setting for them: `Connection` and `_drain_on_signal` say why.

Heavy imports stand inside the functions: a worker process imports this module before it can answer uvicorn's health
check.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from tumorlens.core.errors import RunError
from tumorlens.core.progress import log
from tumorlens.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tumorlens.serve.admission import Admission

HEADER_SECONDS = 10.0  # until a request's header must be complete, counted from connecting or the previous response
# Seconds after a signal: 503 is sent at least so long; long work must stop; requests are waited for so long.
_LINGER, _HURRY, _DRAIN = 0.5, 3.0, 5.0
_GRACE = 1  # further seconds that uvicorn gives open requests before it cancels them
_END = 9.0  # seconds until the process ends, whatever is still running; the promise is 10
_HEALTHCHECK = 10  # seconds; uvicorn's supervisor waits so long for a worker that does not respond
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"timed": {"format": "%(asctime)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "timed"}},
    "root": {"handlers": ["stderr"]},
    # Not propagated, as the command's handler writes no times.
    "loggers": {"tumorlens.serve": {"handlers": ["stderr"], "level": "INFO", "propagate": False}}
    | {name: {"level": "CRITICAL"} for name in ("pydicom", "PIL", "nibabel")},
}


class Connection(H11Protocol):
    """Closes a connection on which no request header arrives in time.

    uvicorn times only the pause after a response, and any byte ends that timer, so a client that never completes a
    header would hold its connection for ever. `limit_concurrency` counts such connections, so a few of them would lock
    out everybody else. A reverse proxy guards against this, but the service must be safe without one.

    Overrides only the methods of `asyncio.Protocol`; the middleware, which finds this object in the ASGI scope's
    `state`, reports when a request starts and ends.
    """

    def __init__(self, *, app_state: dict[str, Any], **others: Any) -> None:
        super().__init__(app_state=app_state | {"connection": self}, **others)
        self._requests = 0
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Suspend the deadline while a request is handled; the next one may start before the first has ended."""
        self._requests += 1
        self._deadline.cancel()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._await_header()

    def _await_header(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEADER_SECONDS, lambda: self.transport.close())


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; then finish the open requests, answer new ones with 503, and return within 10 s.

    Returns
    -------
    The exit code: 1 if one of several workers could not start or had to be cut off. A single worker that is cut off
    ends the process with that code instead of returning.

    Raises
    ------
    ConfigError, RunError, WeightsError
        Before anything listens: a setting, the token file, the port or the model cannot be used.
    """
    from tumorlens.inference.classifier import load_classifier

    settings.tokens()
    card = load_classifier(settings.model, 1).card  # each worker loads its own; this one reports errors early
    listener = _listen(settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listener.getsockname()[1]}/"
    log.info(f"Serving {card['configuration']} ({card['precision']}) at {address} (Ctrl-C stops it).")
    config = uvicorn.Config(
        partial(make_app, settings), factory=True, host=settings.host, port=settings.port, http=Connection, ws="none",
        workers=settings.workers, access_log=False, server_header=False, proxy_headers=False, log_config=_LOGGING,
        timeout_graceful_shutdown=_GRACE, timeout_worker_healthcheck=_HEALTHCHECK, lifespan="on",
    )  # fmt: skip
    if settings.workers == 1:
        for number in _SIGNALS:  # at its end uvicorn raises again what it caught, which would kill the process
            signal.signal(number, signal.SIG_IGN)
        uvicorn.Server(config).run([listener])
        return 0
    with tempfile.TemporaryDirectory(prefix="tumorlens-metrics-") as folder:  # holds only counters
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        supervisor = Multiprocess(config, [listener])
        supervisor.run()
    return int(any(w.exitcode not in (0, -signal.SIGTERM, -signal.SIGINT) for w in supervisor.processes))


def make_app(settings: Settings) -> FastAPI:
    """The application of one worker, with its own classifier."""
    import numpy as np

    from tumorlens.core.cpu import usable_cores
    from tumorlens.inference.classifier import load_classifier
    from tumorlens.inference.network import BATCH
    from tumorlens.readers.pixels import SIZE
    from tumorlens.serve.app import create_app

    # Readers silence the warnings of damaged files one by one, which is safe on several threads only if the state
    # they put back is silence too. Such warnings quote the file's content.
    warnings.simplefilter("ignore")
    classifier = load_classifier(settings.model, max(1, usable_cores() // settings.workers))
    # Allocate what the largest batch and the readers of volumes need now, so that load cannot add it later.
    classifier.run(np.zeros((BATCH, SIZE, SIZE, 3), np.uint8))
    for reader in ("pydicom", "nibabel.nifti2", "nibabel.orientations"):
        import_module(reader)
    return create_app(classifier, settings, _drain_on_signal)


@contextmanager
def _drain_on_signal(admission: Admission, reject_waiting: Callable[[], None]) -> Iterator[None]:
    """On SIGTERM or SIGINT finish the open requests while new ones get 503, and only then let uvicorn close.

    uvicorn alone closes the listener at once: load balancers would see refused connections before /readyz tells them,
    and a batch that takes too long would break off instead of ending with a line that says why.

    With one worker, the same signal again ends the process at once. With several, a worker hears of every signal
    twice: from the terminal or service manager that signals the whole group, and from the supervisor.
    """
    loop = asyncio.get_running_loop()
    seen: set[int] = set()

    def stop(number: int, _frame: FrameType | None) -> None:
        if number in seen and admission.settings.workers == 1:
            _cut_off()
        seen.add(number)
        if not admission.draining:
            admission.draining = True
            timer = threading.Timer(_END, _cut_off)  # a file that is still being decoded would hold the exit
            timer.daemon = True
            timer.start()
            asyncio.run_coroutine_threadsafe(drain(number), loop)

    async def drain(number: int) -> None:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < _LINGER or (admission.open_requests and elapsed < _DRAIN):
            if elapsed > _HURRY:
                admission.must_stop = True
                reject_waiting()
            await asyncio.sleep(0.05)
        uvicorns[number](number, None)

    uvicorns: dict[int, Any] = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in uvicorns.items():
            signal.signal(number, handler)


def _cut_off() -> NoReturn:
    """End this process now, whatever it is doing: a thread that decodes a file cannot be stopped otherwise."""
    try:
        logging.getLogger("tumorlens.serve").warning("Cut off what was still running.")
    finally:  # logging fails if the signal interrupted it
        os._exit(1)


def _listen(settings: Settings) -> socket.socket:
    """The socket that all workers share."""
    try:
        return socket.create_server(
            (settings.host, settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        )
    except OSError as error:
        raise RunError(
            f"Cannot listen on {settings.host} port {settings.port} ({error.strerror}).",
            cure="Use a free port with --port, or 0 for any; or an address of this machine with --host.",
        ) from None
