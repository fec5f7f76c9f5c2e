"""How a worker is ended, and several of them watched: uvicorn's server and supervisor, with their waits bounded."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import NoReturn

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from tumorlens.core.progress import log


def cut_off() -> NoReturn:
    """End this process now, whatever is in work; a thread that decodes a file cannot be stopped otherwise."""
    try:
        log.info("What is still in work is cut off.")
    finally:  # a signal may come while something else is being said, and then nothing more can be
        os._exit(1)


class Server(uvicorn.Server):
    """uvicorn's, but where a thread still holds the process after the end, the same signal again cuts it off; several
    workers leave that to their supervisor."""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal; on the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it once more at its end, which must not kill
            signal.signal(number, self.handle_exit)
        try:
            super().run(sockets)
        finally:
            for caught in self._captured_signals if self.config.workers == 1 else ():
                signal.signal(caught, lambda _number, _frame: cut_off())


class Worker(Process):
    """A process with a server of ours."""

    @property
    def server(self) -> uvicorn.Server:
        """Made in the process itself."""
        if self._server is None:
            self._server = Server(self.config)
        return self._server


class Supervisor(Multiprocess):
    """Replaces workers that died or hang, and ends all of them within a time.

    uvicorn's own waits for each worker's sign of life in turn, and not even the worker's death ends that wait: while
    one of them imports, it sees neither that it dies, nor that another one does, nor a signal.

    Parameters
    ----------
    sockets
        What all workers listen on.
    end
        Seconds from the signal until workers that are still there are killed.
    """

    def __init__(self, config: Config, sockets: list[socket.socket], end: float) -> None:
        super().__init__(config, sockets)
        self._end = end
        self._asked: dict[Process, float] = {}  # workers that owe a sign of life, and since when

    @property
    def failed(self) -> bool:
        """Whether a worker could not start, or did not end by itself; one that a signal met at its imports did."""
        return any(worker.exitcode not in (0, -signal.SIGTERM, -signal.SIGINT) for worker in self.processes)

    def init_processes(self) -> None:
        """Start all workers."""
        self.processes = [self._started() for _ in range(self.processes_num)]

    def keep_subprocess_alive(self) -> None:
        """Look at each worker once, without waiting."""
        for at, worker in enumerate(self.processes):
            if worker.process.is_alive() and self._answers(worker):
                continue
            worker.kill()
            worker.join()
            self._asked.pop(worker, None)
            mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # its gauges; its counts stay
            if worker.exitcode == STARTUP_FAILURE:  # so would the next one
                self.should_exit.set()
                return
            log.info(f"A worker ended with code {worker.exitcode}; another one takes its place.")
            self.processes[at] = self._started()

    def _started(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        return worker

    def _answers(self, worker: Process) -> bool:
        """Whether it gave a sign of life within the time for it; asks for the next one."""
        now = time.monotonic()
        try:
            if worker not in self._asked:
                worker.parent_conn.send(b"ping")
                self._asked[worker] = now
            elif worker.parent_conn.poll():
                worker.parent_conn.recv()
                del self._asked[worker]
        except (OSError, EOFError):
            return False
        return now - self._asked.get(worker, now) < self.config.timeout_worker_healthcheck

    def join_all(self) -> None:
        """Wait until all have ended; those that have not in time, or at a second signal, are killed."""
        end = time.monotonic() + self._end
        for worker in self.processes:
            while worker.process.is_alive():
                if time.monotonic() > end or {signal.SIGINT, signal.SIGTERM} & {*self.signal_queue}:
                    worker.process.kill()
                worker.process.join(0.1)
