"""Numbers as the pages show them."""

from __future__ import annotations

from tumorlens.core.text import listed
from tumorlens.report import text


def test_numbers_read_well():
    nbsp = "\N{NO-BREAK SPACE}"
    assert text.percent(0.9868) == f"98.68{nbsp}%"
    assert text.percent(0.99999) == f"99.999{nbsp}%"
    assert text.percent(1.0) == f"100.00{nbsp}%"
    assert text.interval(0.978, 0.9912) == f"97.8–99.1{nbsp}%"
    assert [text.points(d) for d in (0.0602, -0.001, 0.0)] == ["+6.02", "−0.10", "0.00"]
    assert [text.p_value(p).replace(nbsp, " ") for p in (1e-9, 0.0123, 0.34)] == ["p < 0.001", "p = 0.012", "p = 0.34"]
    assert [text.duration(s).replace(nbsp, " ") for s in (0.5, 12, 125, 7300)] == [
        "0.50 s", "12 s", "2 min 5 s", "2 h 1 min",
    ]  # fmt: skip
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert text.moment("2026-03-04T05:06:07+00:00") == "2026-03-04 05:06 UTC"
    assert text.moment("yesterday") == "yesterday"
    assert text.bound("98.7 % of p < 0.001") == f"98.7{nbsp}% of p{nbsp}<{nbsp}0.001"
    assert text.plural(1, "image") == f"1{nbsp}image"
    assert text.number(None) == "–"
