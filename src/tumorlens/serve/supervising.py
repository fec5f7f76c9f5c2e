"""Several workers: uvicorn's supervisor, which here never waits for one of them while it watches."""

from __future__ import annotations

import signal
import socket
import time

from prometheus_client.multiprocess import mark_process_dead
from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from tumorlens.progress import say


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
            say(f"A worker ended with code {worker.exitcode}; another one takes its place.")
            self.processes[at] = Process(self.config, self.sockets)
            self.processes[at].start()

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
