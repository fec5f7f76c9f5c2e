"""uvicorn around the application: workers, signals, and clients who dawdle over their headers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

import h11
import numpy as np
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import RunError
from tumorlens.core.memory import give_back_blocks
from tumorlens.core.progress import log
from tumorlens.inference.classifier import BATCH, load_classifier
from tumorlens.readers.pixels import SIZE
from tumorlens.serve.admission import Admission
from tumorlens.serve.app import create_app
from tumorlens.serve.metrics import MULTIPROCESS
from tumorlens.serve.settings import Settings
from tumorlens.serve.supervising import Server, Supervisor, cut_off

HEADER_SECONDS = 10.0  # for a header, and for the rest of a body after its answer
# Seconds after the signal: 503 is answered at least so long; long work is told to stop; all are waited for so long.
_LINGER, _HURRY, _DRAIN = 0.5, 3.0, 5.0
_GRACE = 1  # seconds more that uvicorn gives open connections; all in all under 10
_ON_THE_WAY = 0.3  # seconds that a connection without a request stays open then: one may be on its way
_END = 9.0  # seconds until what is still there is cut off


class Connection(H11Protocol):
    """uvicorn's, but it hangs up on clients who send their header, or what follows their answer, too slowly; and at the
    service's end a request that was on its way is answered 503, where uvicorn's would break the connection."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_ON_THE_WAY, self._shut_down)
        else:
            super().shutdown()

    def _shut_down(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _watch(self) -> None:
        """Have a timer run while no request is in work."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._relax()
        elif self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(HEADER_SECONDS, self._hang_up)

    def _relax(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _hang_up(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            with suppress(h11.LocalProtocolError):
                self.conn.send(h11.ConnectionClosed())
            self.transport.close()


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; then finish what is in work, answer 503 to new files, and return within 10 s.

    Returns
    -------
    The exit code: 1 where one of several workers could not start, or did not end by itself. A single one does not
    return then, but ends the process with that code.

    Raises
    ------
    ConfigError, RunError, WeightsError
        Before anything listens: a setting, the tokens, the port or the model is unusable.
    """
    settings.tokens()
    card = load_classifier(settings.model, 1).card  # each worker opens its own: this tells in time what is wrong
    listener = _listen(settings)
    port = listener.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info(f"{card['configuration']} ({card['precision']}) answers on http://{shown}:{port}/ (Ctrl-C stops it).")
    config = uvicorn.Config(
        partial(make_app, settings), factory=True, host=settings.host, port=settings.port, http=Connection, ws="none",
        workers=settings.workers, access_log=False, server_header=False, proxy_headers=False, log_config=None,
        timeout_graceful_shutdown=_GRACE, lifespan="on",
        timeout_worker_healthcheck=60,  # a worker imports before it answers, which takes long on busy cores
    )  # fmt: skip
    with suppress(KeyboardInterrupt):
        if settings.workers == 1:
            Server(config).run([listener])
            return 0
        with tempfile.TemporaryDirectory(prefix="tumorlens-metrics-") as folder:  # counters alone
            os.environ[MULTIPROCESS] = folder
            supervisor = Supervisor(config, [listener], _END)
            supervisor.run()
            return int(supervisor.failed)
    return 0


def make_app(settings: Settings) -> FastAPI:
    """The application of one worker, with its own model."""
    give_back_blocks(arenas=2)  # else it looks leaky
    # Readers quiet the warnings of damaged files one by one; with several threads that holds only if no other
    # state than silence is ever put back. Such warnings quote what they found.
    warnings.simplefilter("ignore")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("tumorlens.serve").setLevel(logging.INFO)
    for name in ("pydicom", "PIL", "nibabel"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threads = max(1, usable_cores() // settings.workers)
    classifier = load_classifier(settings.model, threads)
    # What the largest batch and the readers of volumes need is taken now: load cannot ask for more later.
    classifier.run(np.zeros((BATCH, SIZE, SIZE, 3), np.uint8))
    for reader in ("pydicom", "nibabel.nifti2", "nibabel.orientations"):
        import_module(reader)
    return create_app(classifier, settings, _ending_softly)


@contextmanager
def _ending_softly(admission: Admission, give_up: Callable[[], None]) -> Iterator[None]:
    """On the first SIGTERM or SIGINT drain, and only then let uvicorn close; on the same one again end at once.

    Several workers leave that to their supervisor. A signal reaches them twice anyway, from a terminal or service
    manager that tells the whole group, and from the supervisor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}
    tasks = set()
    seen: set[int] = set()

    def stop(number: int, _frame: FrameType | None) -> None:
        if number in seen and admission.settings.workers == 1:
            cut_off()
        seen.add(number)
        if admission.draining:
            return
        admission.draining = True
        timer = threading.Timer(_END, cut_off)  # a file that is still being decoded would hold the exit
        timer.daemon = True
        timer.start()
        loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(drain(number))))

    async def drain(number: int) -> None:
        began = time.monotonic()
        while (took := time.monotonic() - began) < _LINGER or (admission.present and took < _DRAIN):
            if took > _HURRY:
                admission.hurried = True
                give_up()
            await asyncio.sleep(0.05)
        before[number](number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)


def _listen(settings: Settings) -> socket.socket:
    """The socket that all workers share."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise RunError(
            f"Nothing can listen on {settings.host} port {settings.port} ({error.strerror}).",
            cure="Name a free port with --port, or 0 for any; or an address of this machine with --host.",
        ) from None
