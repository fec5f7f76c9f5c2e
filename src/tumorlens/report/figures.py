"""Curves as SVG for the page: their colours and fonts are the page's, so they follow light, dark and paper.

Series are told apart by colour and by dashes. Coordinates are in CSS pixels at the figure's own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from tumorlens.core.files import Json
from tumorlens.core.text import bound
from tumorlens.evaluation.statistics import wilson
from tumorlens.report import text
from tumorlens.report.material import Measured

WIDTH, HEIGHT = 400, 272
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 42
_W, _H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
COLOURS, DASHES = 6, 4  # of the style sheet: .c0 … .c5, .d0 … .d3
CORNERS = (0.05, 0.1, 0.2, 0.4)  # sides of the ROC corner that may be shown larger


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks and a label."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str

    def at(self, value: float) -> float:
        """Place along the axis, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def series(i: int) -> str:
    """CSS classes of the i-th series; the first twelve differ in colour and dashes both."""
    return f"c{i % COLOURS} d{i % DASHES}"


def nice_axis(low: float, high: float, label: str, *, percent: bool = False, most: int = 6) -> Axis:
    """An axis with round ticks that holds `low` to `high`."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = next(d for d in range(12) if abs(round(step, d) - step) < step * 1e-6)
    values = [round(i * step, digits) for i in range(first, last + 1)]
    shown = [f"{100 * v:.{max(0, digits - 2)}f} %" if percent else f"{v:.{digits}f}" for v in values]
    return Axis(values[0], values[-1], list(zip(values, map(bound, shown), strict=True)), label)


def learning_curves(measured: Sequence[Measured]) -> list[tuple[Markup, Markup]]:
    """Loss and accuracy by epoch, a pair of figures a configuration; accuracies share their axis."""
    lowest = min((value for one in measured for value in _finite(one, "accuracy")), default=0.0)
    accuracy_axis = nice_axis(lowest, 1.0, "Accuracy", percent=True)
    return [(_learning(one, "loss", _loss_axis(one)), _learning(one, "accuracy", accuracy_axis)) for one in measured]


def _loss_axis(one: Measured) -> Axis:
    # Of each configuration its own: a frozen head's losses would flatten the curves of one that learns more.
    return nice_axis(0.0, max(_finite(one, "loss"), default=1.0), "Loss")


def _finite(one: Measured, key: str) -> list[float]:
    """All values that can be drawn: a training that diverges has losses that are no numbers."""
    values = [e[f"{part}_{key}"] for e in one.history for part in ("train", "validation")]
    return [value for value in values if math.isfinite(value)]


def _learning(one: Measured, key: str, y: Axis) -> Markup:
    epochs = [float(e["epoch"]) for e in one.history]
    solved = one.training["solver"] == "lbfgs"
    x = _epoch_axis(int(max(epochs)), "Regularisation strength tried" if solved else "Epoch")
    train, validation = ([e[f"{part}_{key}"] for e in one.history] for part in ("train", "validation"))
    best = one.training["best_epoch"]
    # Where the curves are not: losses fall from the top, accuracies rise towards it.
    parts = [_vertical(x, best, f"best: {best}", 10 if key == "loss" else _H - 8)]
    for i, values in enumerate((train, validation)):
        points = [_xy(x, y, a, b) for a, b in zip(epochs, values, strict=True) if math.isfinite(b)]
        if len(points) == 1:
            parts.append(_dot(*points[0], f"c{i}", 3))
        elif points:
            parts.append(_line(points, f"c{i} d{i}"))
    if best in epochs and math.isfinite(validation[epochs.index(best)]):
        parts.append(_dot(*_xy(x, y, best, validation[epochs.index(best)]), "c1", 4))

    def told(values: Sequence[float]) -> str:
        show = text.percent if key == "accuracy" else text.number
        return f"from {show(values[0])} to {show(values[-1])}"

    step = "strength" if solved else "epoch"
    label = f"{one.name}, {key} by {step}: training {told(train)}, validation {told(validation)}; best {step} {best}."
    return _figure(label, x, y, parts)


def roc_curves(measured: Sequence[Measured]) -> list[tuple[Markup, Markup | None]]:
    """Receiver operating characteristics one-vs-rest: whole, and the corner at the upper left.

    The corner is as small as all curves of all configurations allow, and None where they do not come near it.
    """
    curves = [curve for one in measured for curve in one.test["roc"].values()]

    def reached(side: float) -> bool:
        return all(
            any(f <= 0.8 * side and t >= 1 - 0.8 * side for f, t in zip(c["fpr"], c["tpr"], strict=True))
            for c in curves
        )

    side = next((side for side in CORNERS if reached(side)), None)
    return [(_roc(one, 1.0), None if side is None else _roc(one, side)) for one in measured]


def _roc(one: Measured, side: float) -> Markup:
    x = nice_axis(0.0, side, "False positive rate", most=5)
    y = nice_axis(1.0 - side, 1.0, "True positive rate", most=5)
    parts = [_line([_xy(x, y, 0, 0), _xy(x, y, 1, 1)], "reference")]
    for i, name in enumerate(one.metrics["classes"]):
        if curve := one.test["roc"].get(name):
            points = [_xy(x, y, a, b) for a, b in zip(curve["fpr"], curve["tpr"], strict=True)]
            parts.append(_line(points, series(i)))
    areas = ", ".join(
        f"{name} {text.number(one.test['per_class'][name]['roc_auc'])}" for name in one.metrics["classes"]
    )
    which = "ROC curves one against the rest" if side == 1 else f"the same curves up to a false positive rate of {side}"
    return _figure(f"{one.name}, {which}. Areas: {areas}.", x, y, parts, bleed=7 if side == 1 else 1)


def reliability_diagrams(measured: Sequence[Measured]) -> list[Markup]:
    """Accuracy against confidence in each bin, with Wilson's 95 % intervals."""
    return [_reliability(one) for one in measured]


def _reliability(one: Measured) -> Markup:
    x = nice_axis(0.0, 1.0, "Mean probability of the predicted class", most=5)
    y = nice_axis(0.0, 1.0, "Share that is right", most=5)
    parts = [_line([_xy(x, y, 0, 0), _xy(x, y, 1, 1)], "reference")]
    for b in one.test["reliability"]:
        low, high = wilson(round(b["accuracy"] * b["n"]), b["n"])
        parts.append(_line([_xy(x, y, b["confidence"], low), _xy(x, y, b["confidence"], high)], "c0 whisker"))
    largest = max((b["n"] for b in one.test["reliability"]), default=1)
    for b in one.test["reliability"]:
        parts.append(_dot(*_xy(x, y, b["confidence"], b["accuracy"]), "c0", 2.5 + 5 * math.sqrt(b["n"] / largest)))
    label = f"{one.name}, reliability: expected calibration error {text.number(one.test['ece'])}."
    return _figure(label, x, y, parts)


def accuracy_strips(measured: Sequence[Measured], published: dict[str, float]) -> tuple[list[Markup], Markup]:
    """Test accuracy with its interval, a strip a configuration, and the axis below; all of one scale."""
    values = [v for one in measured for v in one.test["accuracy_interval"]] + list(published.values())
    axis = nice_axis(min(values), max(values), "", percent=True, most=4)
    width, height, margin = 280, 26, 22

    def at(value: float) -> float:
        return margin + axis.at(value) * (width - 2 * margin)

    strips = []
    for one in measured:
        low, high = one.test["accuracy_interval"]
        y = height / 2
        parts = [Markup('<path class="grid" d="M{:.1f} 0V{}"/>').format(at(v), height) for v, _ in axis.ticks]
        parts.append(Markup('<path class="c0 bar" d="M{:.1f} {}H{:.1f}"/>').format(at(low), y, at(high)))
        parts.append(_dot(at(one.test["accuracy"]), y, "c0", 5))
        if one.name in published:
            c = at(published[one.name])
            parts.append(Markup('<path class="diamond" d="M{:.1f} {}l6 6l-6 6l-6 -6z"/>').format(c, y - 6))
        strips.append(_svg(width, height, "", parts))
    labels = [
        Markup('<text x="{:.1f}" y="14" text-anchor="middle">{}</text>').format(at(v), shown) for v, shown in axis.ticks
    ]
    return strips, _svg(width, 18, "", labels)


# ---- pieces ----------------------------------------------------------------------------------


def leak_curve(leakage: Json) -> Markup | None:
    """Accuracy by the largest similarity to any image learned from; None where nothing leaks."""
    curve = leakage["curve"]
    drawn = [i for i, n in enumerate(curve["n"]) if any(v[i] is not None for v in curve["accuracy"].values())]
    if len(drawn) < 3 or not leakage["parts"]["with_twin"]["n"]:
        return None
    lowest = min(v for values in curve["accuracy"].values() for v in values if v is not None)
    y = nice_axis(lowest, 1.0, "Accuracy", percent=True)
    # Steps of equal width: most of what happens lies between 0.99 and 1.
    last = len(drawn) - 1
    ticks = [
        (float(last - k), f"{'all' if curve['similarity'][i] == 1 else format(curve['similarity'][i], 'g')}")
        for k, i in enumerate(drawn)
        if k % 2 == 0 or k == last
    ]
    x = Axis(0.0, float(last), ticks[::-1], "Similarity under")
    parts = []
    for k, values in enumerate(curve["accuracy"].values()):
        points = [(float(last - j), values[i]) for j, i in enumerate(drawn) if values[i] is not None]
        parts.append(_line([_xy(x, y, a, b) for a, b in points], f"line {series(k)}"))
    return _figure("Accuracy by largest similarity to any image learned from", x, y, parts)


def _epoch_axis(last: int, label: str) -> Axis:
    """Whole numbers from 1; wider than one epoch even where there is only one."""
    step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if last / s <= 8)
    ticks = sorted({1, *range(step, last + 1, step)} - ({2} if step > 2 else set()))
    return Axis(1 - 0.02 * max(last - 1, 1), max(last, 2), [(float(t), str(t)) for t in ticks], label)


def _xy(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    """Pixels inside the plotting area."""
    return _W * x.at(a), _H * (1 - y.at(b))


def _line(points: Iterable[tuple[float, float]], css: str) -> Markup:
    """A line; points that would draw on the same pixel as the one before are left out."""
    rounded = [(f"{a:.1f}", f"{b:.1f}") for a, b in points]
    kept = rounded[:1] + [now for before, now in pairwise(rounded) if now != before]
    return Markup('<path class="line {}" d="M{}"/>').format(css, "L".join(f"{a} {b}" for a, b in kept))


def _dot(x: float, y: float, css: str, radius: float) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(css, x, y, radius)


def _vertical(x: Axis, value: float, label: str, y: float) -> Markup:
    at = _W * x.at(value)
    late = at > 0.8 * _W
    return Markup(
        '<path class="mark" d="M{:.1f} 0V{}"/><text x="{:.1f}" y="{}"{}>{}</text>'
    ).format(at, _H, at + (-5 if late else 5), y, Markup(' text-anchor="end"') if late else "", label)  # fmt: skip


def _figure(label: str, x: Axis, y: Axis, parts: Iterable[Markup], *, bleed: int = 7) -> Markup:
    """Axes with grid, and `parts` clipped to the plotting area and `bleed` pixels around it."""
    frame: list[Markup] = []
    for value, shown in y.ticks:
        at = _TOP + _H * (1 - y.at(value))
        frame.append(
            Markup('<path class="grid" d="M{} {:.1f}h{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                _LEFT, at, _W, _LEFT - 7, at + 4, shown
            )
        )
    for value, shown in x.ticks:
        at = _LEFT + _W * x.at(value)
        frame.append(
            Markup(
                '<path class="axis" d="M{:.1f} {}v4"/><text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
            ).format(at, _TOP + _H, at, _TOP + _H + 17, shown)
        )
    frame.append(Markup('<path class="axis" d="M{} {}h{}"/>').format(_LEFT, _TOP + _H, _W))
    frame.append(
        Markup('<text class="label" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            _LEFT + _W / 2, HEIGHT - 5, x.label
        )
    )
    frame.append(
        Markup(
            '<text class="label" transform="translate(12 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(_TOP + _H / 2, y.label)
    )
    # A nested <svg> clips what lies outside of it, without an id.
    box = (_W + 2 * bleed, _H + 2 * bleed)
    inner = Markup('<svg x="{}" y="{}" width="{}" height="{}" viewBox="-{} -{} {} {}">{}</svg>').format(
        _LEFT - bleed, _TOP - bleed, *box, bleed, bleed, *box, Markup("").join(parts)
    )
    return _svg(WIDTH, HEIGHT, label, [*frame, inner])


def _svg(width: int, height: int, label: str, parts: Iterable[Markup]) -> Markup:
    """Without a label it is decoration: what it shows stands in the text beside it."""
    said = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup('<svg viewBox="0 0 {} {}" {}>{}</svg>').format(
        width, height, said, Markup("").join(map(escape, parts))
    )
