"""The package's log, and progress: a live bar on a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

_QUIET_SECONDS = 2.0  # steps shorter than this show nothing
_LOG_EVERY = 15.0  # seconds between lines if stderr is not a terminal

#: The package's logger. As a library, tumorlens prints nothing; `log_to_stderr` shows progress as the commands do.
log = logging.getLogger("tumorlens")
log.addHandler(logging.NullHandler())


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, which may have been redirected since the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:  # None if the parent process closed it
            print(record.getMessage(), file=sys.stderr, flush=True)


_handler = _Stderr()


def log_to_stderr() -> None:
    """Print log lines and progress bars on stderr; stdout stays free for results. May be called repeatedly."""
    log.addHandler(_handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class Bar:
    """A progress bar with rate and time left, used as a context manager.

    After `log_to_stderr`, a terminal shows a live bar. Otherwise a line is logged every 15 s, and one at the end of a
    step that took over 2 s.

    Parameters
    ----------
    title
        What is being done, such as ``"Reading images"``.
    total
        Number of units to do.
    unit
        The plural noun of one unit, shown with the rate.
    """

    def __init__(self, title: str, total: int, unit: str = "images") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._start = self._last = time.monotonic()
        shown = log.isEnabledFor(logging.INFO) and _handler in log.handlers
        self._live = _live_bar(title, total) if shown and sys.stderr is not None and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        now = time.monotonic()
        rate = self.done / max(now - self._start, 1e-9)
        if self._live:
            self._live.update(self._live.task_ids[0], advance=n, rate=f"{rate:,.0f} {self.unit}/s")
        elif now - self._last >= _LOG_EVERY and self.done < self.total:
            self._last = now
            left = (self.total - self.done) / rate if rate else float("inf")
            log.info(f"{self.title}: {self.done:,}/{self.total:,}, {rate:,.0f} {self.unit}/s, {left:,.0f} s left")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            self._live.stop()
        took = time.monotonic() - self._start
        if kind is None and took >= _QUIET_SECONDS:
            rate = self.done / took
            log.info(f"{self.title}: {self.done:,} {self.unit} in {took:,.1f} s, {rate:,.0f} {self.unit}/s")


def _live_bar(title: str, total: int) -> Progress:
    """A bar on stderr with title, count, rate and time left; removed at its end."""
    from rich.console import Console  # a tenth of the time that a first prediction takes
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(title, total=total, rate="")
    return bar


class Clock:
    """Seconds per step of this invocation."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of a block to the step `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = round(self.steps.get(name, 0.0) + time.perf_counter() - began, 2)

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return round(time.perf_counter() - self._began, 2)
