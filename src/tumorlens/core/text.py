"""Text that several rooms share: measured numbers in prose, and what a classifier cannot answer."""

import re
import unicodedata
from collections.abc import Sequence

SIGNIFICANT = 0.05  # significance level
#: A limit of every classifier, for the card, the service, the report and the documents.
OTHER_TUMOURS = (
    "The classifier can only answer one of its classes. A tumour that is none of them is called one of them or held "
    "back; for the four classes of the published data set these are metastases, lymphomas, schwannomas and others."
)
NBSP = "\N{NO-BREAK SPACE}"
_BOUND = re.compile(r"(?<=\d) (?=%|s\b|min\b|h\b|GB\b|points\b)|(?<=\bp) (?=[<=])|(?<=\bp [<=]) (?=\d)")


def bound(text: object) -> str:
    """The text, with a no-break space between each number and its unit."""
    return _BOUND.sub(NBSP, str(text))


def p_value_text(p: float) -> str:
    """A p-value for prose: `p = 0.34`, `p = 0.012`, `p < 0.001`."""
    if p < 0.001:
        return "p < 0.001"
    digits = 2 if p >= 0.1 else 3
    while digits < 9 and p != SIGNIFICANT and float(f"{p:.{digits}f}") == SIGNIFICANT:
        digits += 1  # 0.0499 and 0.0501 must not read alike
    return f"p = {p:.{digits}f}"


def number(fraction: float, digits: int) -> str:
    """A fraction in per cent, without the % sign; rounded to 100 or 0 only if it is exactly that."""
    text = f"{100 * fraction:.{digits}f}"
    while digits < 6 and ((fraction < 1 and float(text) == 100) or (fraction > 0 and float(text) == 0)):
        digits += 1
        text = f"{100 * fraction:.{digits}f}"
    return text


def percent(fraction: float, digits: int = 2) -> str:
    """As `number`, with the % sign."""
    return f"{number(fraction, digits)} %"


def span(low: float, high: float, digits: int = 1) -> str:
    """Two fractions as a range in per cent."""
    return f"{number(low, digits)}–{percent(high, digits)}"


def points(difference: float, digits: int = 1, *, sign: bool = False) -> str:
    """A difference of fractions in percentage points, with a true minus sign."""
    text = f"{abs(100 * difference):.{digits}f}"
    if not float(text):
        return text
    return f"{'−' if difference < 0 else '+' if sign else ''}{text}"


def duration(seconds: float) -> str:
    """`0.84 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 9.95 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shown(name: str) -> str:
    """A file name that is safe to print: control, format and undecodable characters become escapes."""
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
        for c in name
    )


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)
