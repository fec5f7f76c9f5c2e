"""Numbers as a reader wants them, with spaces that do not break before a unit."""

from __future__ import annotations

from datetime import datetime

from tumorlens.core import text as wording
from tumorlens.core.text import NBSP, bound


def number(value: float | None, digits: int = 4) -> str:
    """A fraction or loss; a dash where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(fraction: float, digits: int = 2) -> str:
    """In per cent; never rounded to 0 or 100 unless it is exactly that."""
    return bound(wording.percent(fraction, digits))


def interval(low: float, high: float, digits: int = 1) -> str:
    """Two fractions as a range in per cent."""
    return bound(wording.span(low, high, digits))


def points(difference: float, digits: int = 2) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return wording.points(difference, digits, sign=True)


def p_value(p: float) -> str:
    """As it stands in prose: `p = 0.34`, `p = 0.012`, `p < 0.001`."""
    return bound(wording.p_value_text(p))


def count(n: float) -> str:
    """A whole number with separators."""
    return f"{n:,.0f}"


def plural(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,}{NBSP}{noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """`0.84 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    return bound(wording.duration(seconds))


def moment(iso: str) -> str:
    """`24 November 2026, 18:21 UTC`; what is no ISO time stays as it is."""
    try:
        at = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    zone = f" {at.tzname()}" if at.tzinfo else ""
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]  # not strftime: its names follow the locale
    return f"{at.day} {months[at.month - 1]} {at.year}, {at:%H:%M}{zone}"


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
