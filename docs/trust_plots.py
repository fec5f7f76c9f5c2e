"""Plots of docs/results.md on trust, from what benchmarks/trust.py left: SVG, light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:#1f2933}.q{fill:#52606d}.grid{stroke:#cbd2d9}"
    "polyline{fill:none;stroke-width:2}.a{stroke:#9aa5b1}.b{stroke:#2b6cb0}circle.a{fill:#9aa5b1}circle.b{fill:#2b6cb0}"
    ".even{stroke:#52606d;stroke-dasharray:4 4}@media(prefers-color-scheme:dark){text{fill:#e4e7eb}.q{fill:#9aa5b1}}"
    "</style>"
)
_LEFT, _TOP, _SIDE = 58, 34, 260
Points = Sequence[tuple[float, float]]


def plots(found: dict[str, Any]) -> dict[str, str]:
    """SVG by file name; empty without trust.json."""
    if "trust" not in found:
        return {}
    parts = found["trust"]["trust"]["parts"]
    official, free = parts["official"], parts.get("twin_free", parts["official"])

    def bins(part: dict[str, Any], when: str) -> Points:
        return [(one["confidence"], one["accuracy"]) for one in part[when]["reliability"]]

    def risk(part: dict[str, Any]) -> Points:
        return list(zip(part["selective"]["coverage"], part["selective"]["risk"], strict=True))

    lowest = min(min(point) for part in (official, free) for when in ("before", "after") for point in bins(part, when))
    low = max(0.0, int(lowest * 10) / 10)
    most = math.ceil(100 * max(y for part in (official, free) for _, y in risk(part))) / 100
    after = "after temperature scaling"
    return {
        "reliability.svg": _figure(
            "Right answers against calibrated probability, bins of equal size",
            [("official test, before", "a", bins(official, "before")), (after, "b", bins(official, "after"))],
            [("without a twin, before", "a", bins(free, "before")), (after, "b", bins(free, "after"))],
            (low, 1.0), (low, 1.0), even=True, marked=True,
        ),
        "risk-coverage.svg": _figure(
            "Errors among the answers kept, against the share kept, most certain first",
            [("official test", "b", risk(official))], [("without a twin", "b", risk(free))],
            (0.0, 1.0), (0.0, most), even=False, marked=False,
        ),
    }  # fmt: skip


Lines = Sequence[tuple[str, str, Points]]


def _figure(
    title: str, one: Lines, two: Lines, x: tuple[float, float], y: tuple[float, float], *, even: bool, marked: bool
) -> str:
    width = 2 * (_LEFT + _SIDE) + 30
    panels = "".join(_panel(i * (_LEFT + _SIDE + 10), lines, x, y, even, marked) for i, lines in enumerate((one, two)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_TOP + _SIDE + 70}" role="img" '
        f'aria-label="{title}">{_STYLE}<text x="0" y="16" font-weight="600">{title}</text>{panels}</svg>\n'
    )


def _panel(at: int, lines: Lines, x: tuple[float, float], y: tuple[float, float], even: bool, marked: bool) -> str:
    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = ((v - low) / (high - low) for v, (low, high) in zip(point, (x, y), strict=True))
        return at + _LEFT + across * _SIDE, _TOP + _SIDE * (1 - up)

    parts = []
    for k in range(5):
        value = y[0] + k / 4 * (y[1] - y[0])
        _, down = place((x[0], value))
        left, right = at + _LEFT, at + _LEFT + _SIDE
        parts.append(f'<line class="grid" x1="{left}" y1="{down:.1f}" x2="{right}" y2="{down:.1f}"/>')
        parts.append(f'<text class="q" x="{left - 6}" y="{down + 4:.1f}" text-anchor="end">{100 * value:.3g} %</text>')
        value = x[0] + k / 4 * (x[1] - x[0])
        across, _ = place((value, y[0]))
        below = _TOP + _SIDE + 16
        parts.append(f'<text class="q" x="{across:.1f}" y="{below}" text-anchor="middle">{100 * value:.3g} %</text>')
    if even:
        (x1, y1), (x2, y2) = place((x[0], y[0])), place((x[1], y[1]))
        parts.append(f'<line class="even" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for row, (name, kind, points) in enumerate(lines):
        placed = [place(point) for point in points]
        drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(f'<polyline class="{kind}" points="{drawn}"/>')
        if marked:
            parts += [f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in placed]
        key = _TOP + _SIDE + 38 + 18 * row
        parts.append(f'<polyline class="{kind}" points="{at + _LEFT},{key - 4} {at + _LEFT + 24},{key - 4}"/>')
        parts.append(f'<text x="{at + _LEFT + 32}" y="{key}">{name}</text>')
    return "".join(parts)
