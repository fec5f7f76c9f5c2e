"""The template filters: numbers as the pages show them, with no-break spaces before units."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from tumorlens.core import text
from tumorlens.core.text import NBSP, bound


def _bound(shown: Callable[..., str]) -> Callable[..., str]:
    return lambda *values: bound(shown(*values))


percent, interval = _bound(text.percent), _bound(text.span)
p_value, duration = _bound(text.p_value_text), _bound(text.duration)


def number(value: float | None, digits: int = 4) -> str:
    """A fraction or loss; a dash if it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def points(difference: float, digits: int = 2) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return text.points(difference, digits, sign=True)


def count(n: float) -> str:
    """An integer with thousands separators."""
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,}{NBSP}{noun}{'' if n == 1 else 's'}"


def moment(iso: str) -> str:
    """`2026-11-24 18:21 UTC`; text that is not an ISO time is returned as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{at:%Y-%m-%d %H:%M} {at.tzname() or ''}".rstrip()
