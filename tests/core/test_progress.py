"""Progress: a live bar on a terminal, lines elsewhere, and nothing unless it is asked for."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from tumorlens.core import progress
from tumorlens.core.progress import Bar, Clock, log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Bar("Reading images", 2000) as bar:
        bar.advance(500)
        assert bar._live is not None
        bar._live.refresh()
    assert "Reading images" in terminal.getvalue()
    assert "500/2,000" in terminal.getvalue()
    assert " images/s" in terminal.getvalue()


def test_a_library_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    with Bar("Reading images", 2) as bar:
        bar.advance()
    assert terminal.getvalue() == ""


def test_elsewhere_lines_are_logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Bar("Hashing files", 400, "files") as bar:
        for _ in range(3):
            bar.advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "Hashing files: 200/400, 10 files/s, 20 s left",  # 15 s after the start at the earliest
        "Hashing files: 300 files in 40.0 s, 8 files/s",
    ]


def test_a_clock_adds_up_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 2.5, 3.0, 4.0, 9.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    clock = Clock()
    for _ in range(2):
        with clock.step("read_s"):
            pass
    assert clock.steps == {"read_s": 2.5}
    assert clock.total == 9.0
