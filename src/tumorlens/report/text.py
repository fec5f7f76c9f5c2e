"""The template filters: numbers as the pages show them, with no-break spaces before units."""

from __future__ import annotations

from datetime import datetime

from tumorlens.core import text as core_text
from tumorlens.core.text import NBSP, bound


def number(value: float | None, digits: int = 4) -> str:
    """A fraction or loss; a dash if it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(fraction: float, digits: int = 2) -> str:
    """In per cent; never rounded to 0 or 100 unless it is exactly that."""
    return bound(core_text.percent(fraction, digits))


def interval(low: float, high: float, digits: int = 1) -> str:
    """Two fractions as a range in per cent."""
    return bound(core_text.span(low, high, digits))


def points(difference: float, digits: int = 2) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return core_text.points(difference, digits, sign=True)


def p_value(p: float) -> str:
    """`p = 0.34`, `p = 0.012`, `p < 0.001`."""
    return bound(core_text.p_value_text(p))


def count(n: float) -> str:
    """An integer with thousands separators."""
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,}{NBSP}{noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """`0.84 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    return bound(core_text.duration(seconds))


def moment(iso: str) -> str:
    """`2026-11-24 18:21 UTC`; text that is not an ISO time is returned as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{at:%Y-%m-%d %H:%M} {at.tzname() or ''}".rstrip()


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
