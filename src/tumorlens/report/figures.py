"""Figures of the pages as SVG: colours and fonts are the page's, so that they follow light, dark and print styles.

Series differ by colour and by dashes. Coordinates are in CSS pixels at the figure's own size.
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
from tumorlens.report.data import ConfigurationResult

WIDTH, HEIGHT = 400, 272
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 42
_W, _H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
COLOURS, DASHES = 6, 4  # of the style sheet: .c0 … .c5, .d0 … .d3
CORNERS = (0.05, 0.1, 0.2, 0.4)  # sides of the ROC corner that may be enlarged


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks and a label."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str

    def at(self, value: float) -> float:
        """Position along the axis, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def series(i: int) -> str:
    """CSS classes of the i-th series; the first twelve have distinct pairs of colour and dashes."""
    return f"c{i % COLOURS} d{i % DASHES}"


def swatch(i: int) -> Markup:
    """A line of the i-th series, for legends."""
    return Markup('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path class="line {}" d="M0 4H28"/></svg>'
                  ).format(series(i))  # fmt: skip


def nice_axis(low: float, high: float, label: str, *, percent: bool = False, most: int = 6) -> Axis:
    """An axis with round ticks, about `most` of them, that contains `low` to `high`."""
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


def learning_curves(results: Sequence[ConfigurationResult]) -> list[tuple[Markup, Markup]]:
    """Loss and accuracy by epoch for each configuration.

    Accuracies share their axis. Losses have their own: those of a frozen network would flatten the curves of others.
    """
    lowest = min((value for one in results for value in _finite(one, "accuracy")), default=0.0)
    accuracy = nice_axis(lowest, 1.0, "Accuracy", percent=True)
    return [
        (
            _learning(one, "loss", nice_axis(0.0, max(_finite(one, "loss"), default=1.0), "Loss")),
            _learning(one, "accuracy", accuracy),
        )
        for one in results
    ]


def _finite(one: ConfigurationResult, key: str) -> list[float]:
    """All values that can be drawn: the losses of a training that diverges are NaN or infinite."""
    values = [e[f"{split}_{key}"] for e in one.history for split in ("train", "validation")]
    return [value for value in values if math.isfinite(value)]


def _learning(one: ConfigurationResult, key: str, y: Axis) -> Markup:
    epochs = [float(e["epoch"]) for e in one.history]
    lbfgs = one.training["solver"] == "lbfgs"
    x = _epoch_axis(int(max(epochs)), "Regularisation strength tried" if lbfgs else "Epoch")
    best, step = one.training["best_epoch"], "strength" if lbfgs else "epoch"
    # The label stands where the curves are not: losses fall from the top, accuracies rise towards it.
    elements = [_vertical(x, best, f"best: {best}", 10 if key == "loss" else _H - 8)]
    show = text.percent if key == "accuracy" else text.number
    ranges = []
    for i, (split, name) in enumerate((("train", "training"), ("validation", "validation"))):
        values = [e[f"{split}_{key}"] for e in one.history]
        ranges.append(f"{name} from {show(values[0])} to {show(values[-1])}")
        points = {a: _xy(x, y, a, b) for a, b in zip(epochs, values, strict=True) if math.isfinite(b)}
        if len(points) == 1:
            elements += [_dot(*point, f"c{i}", 3) for point in points.values()]
        elif points:
            elements.append(_line(points.values(), f"c{i} d{i}"))
        if split == "validation" and best in points:
            elements.append(_dot(*points[best], "c1", 4))
    return _figure(f"{one.name}, {key} by {step}: {', '.join(ranges)}; best {step} {best}.", x, y, elements)


def roc_curves(results: Sequence[ConfigurationResult]) -> list[tuple[Markup, Markup | None]]:
    """One-vs-rest ROC curves of each configuration: whole, and the upper left corner.

    The corner is the smallest that all curves of all configurations reach, and None if they do not come near it.
    """
    curves = [curve for one in results for curve in one.test["roc"].values()]

    def reached(side: float) -> bool:
        return all(
            any(f <= 0.8 * side and t >= 1 - 0.8 * side for f, t in zip(c["fpr"], c["tpr"], strict=True))
            for c in curves
        )

    side = next((side for side in CORNERS if reached(side)), None)
    return [(_roc(one, 1.0), None if side is None else _roc(one, side)) for one in results]


def _roc(one: ConfigurationResult, side: float) -> Markup:
    x = nice_axis(0.0, side, "False positive rate", most=5)
    y = nice_axis(1.0 - side, 1.0, "True positive rate", most=5)
    elements = [_diagonal(x, y)]
    areas = []
    for i, name in enumerate(one.metrics["classes"]):
        areas.append(f"{name} {text.number(one.test['per_class'][name]['roc_auc'])}")
        if curve := one.test["roc"].get(name):
            elements.append(_line([_xy(x, y, *point) for point in zip(curve["fpr"], curve["tpr"], strict=True)],
                                  series(i)))  # fmt: skip
    which = "one-vs-rest ROC curves" if side == 1 else f"the same curves up to a false positive rate of {side}"
    label = f"{one.name}, {which}. Areas: {', '.join(areas)}."
    return _figure(label, x, y, elements, bleed=7 if side == 1 else 1)


def reliability_diagram(one: ConfigurationResult) -> Markup:
    """Accuracy against confidence in each bin, with Wilson's 95 % intervals."""
    x = nice_axis(0.0, 1.0, "Mean probability of the predicted class", most=5)
    y = nice_axis(0.0, 1.0, "Accuracy", most=5)
    whiskers, dots = [], []
    largest = max((b["n"] for b in one.test["reliability"]), default=1)
    for b in one.test["reliability"]:
        low, high = wilson(round(b["accuracy"] * b["n"]), b["n"])
        whiskers.append(_line([_xy(x, y, b["confidence"], v) for v in (low, high)], "c0 whisker"))
        dots.append(_dot(*_xy(x, y, b["confidence"], b["accuracy"]), "c0", 2.5 + 5 * math.sqrt(b["n"] / largest)))
    label = f"{one.name}, reliability diagram: expected calibration error {text.number(one.test['ece'])}."
    return _figure(label, x, y, [_diagonal(x, y), *whiskers, *dots])


def accuracy_strips(results: Sequence[ConfigurationResult], published: dict[str, float]) -> tuple[list[Markup], Markup]:
    """Test accuracy with its interval, one strip per configuration, and the axis below, all on one scale."""
    values = [v for one in results for v in one.test["accuracy_interval"]] + list(published.values())
    axis = nice_axis(min(values), max(values), "", percent=True, most=4)
    width, height, margin = 280, 26, 22
    y = height / 2

    def at(value: float) -> float:
        return margin + axis.at(value) * (width - 2 * margin)

    strips = []
    for one in results:
        low, high = one.test["accuracy_interval"]
        elements = [Markup('<path class="grid" d="M{:.1f} 0V{}"/>').format(at(v), height) for v, _ in axis.ticks]
        elements.append(Markup('<path class="c0 bar" d="M{:.1f} {}H{:.1f}"/>').format(at(low), y, at(high)))
        elements.append(_dot(at(one.test["accuracy"]), y, "c0", 5))
        if one.name in published:
            diamond = Markup('<path class="diamond" d="M{:.1f} {}l6 6l-6 6l-6 -6z"/>')
            elements.append(diamond.format(at(published[one.name]), y - 6))
        strips.append(_svg(width, height, "", elements))
    return strips, _svg(width, 18, "", [_text(at(v), 14, shown) for v, shown in axis.ticks])


def leak_curve(leakage: Json) -> Markup | None:
    """Accuracy by the largest similarity to any training image; None if no test image has a twin."""
    curve = leakage["curve"]
    drawn = [i for i, n in enumerate(curve["n"]) if any(v[i] is not None for v in curve["accuracy"].values())]
    if len(drawn) < 3 or not leakage["parts"]["with_twin"]["n"]:
        return None
    lowest = min(v for values in curve["accuracy"].values() for v in values if v is not None)
    y = nice_axis(lowest, 1.0, "Accuracy", percent=True)
    # Steps of equal width: most changes lie between 0.99 and 1.
    last = len(drawn) - 1
    ticks = [
        (float(last - k), "all" if curve["similarity"][i] == 1 else f"{curve['similarity'][i]:g}")
        for k, i in enumerate(drawn)
        if k % 2 == 0 or k == last
    ]
    x = Axis(0.0, float(last), ticks[::-1], "Largest similarity below")
    lines = [
        _line([_xy(x, y, last - j, values[i]) for j, i in enumerate(drawn) if values[i] is not None], series(k))
        for k, values in enumerate(curve["accuracy"].values())
    ]
    return _figure("Accuracy by largest similarity to any training image", x, y, lines)


# ---- elements --------------------------------------------------------------------------------


def _epoch_axis(last: int, label: str) -> Axis:
    """Whole numbers from 1; wider than one epoch even if there is only one."""
    step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if last / s <= 8)
    ticks = sorted({1, *range(step, last + 1, step)} - ({2} if step > 2 else set()))
    return Axis(1 - 0.02 * max(last - 1, 1), max(last, 2), [(float(t), str(t)) for t in ticks], label)


def _xy(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    """Pixels inside the plotting area."""
    return _W * x.at(a), _H * (1 - y.at(b))


def _line(points: Iterable[tuple[float, float]], css: str) -> Markup:
    """A line; points on the same pixel as their predecessor are left out."""
    rounded = [(f"{a:.1f}", f"{b:.1f}") for a, b in points]
    kept = rounded[:1] + [now for before, now in pairwise(rounded) if now != before]
    return Markup('<path class="line {}" d="M{}"/>').format(css, "L".join(f"{a} {b}" for a, b in kept))


def _diagonal(x: Axis, y: Axis) -> Markup:
    return _line([_xy(x, y, 0, 0), _xy(x, y, 1, 1)], "reference")


def _dot(x: float, y: float, css: str, radius: float) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(css, x, y, radius)


def _text(x: float, y: float, content: str, anchor: str = "middle", css: str = "") -> Markup:
    template = Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return template.format(Markup(' class="{}"').format(css) if css else "", x, y, anchor, content)


def _vertical(x: Axis, value: float, label: str, y: float) -> Markup:
    at = _W * x.at(value)
    late = at > 0.8 * _W
    line = Markup('<path class="mark" d="M{:.1f} 0V{}"/>').format(at, _H)
    return line + _text(at + (-5 if late else 5), y, label, "end" if late else "start")


def _figure(label: str, x: Axis, y: Axis, elements: Iterable[Markup], *, bleed: int = 7) -> Markup:
    """Axes with grid, and `elements` clipped to the plotting area and `bleed` pixels around it."""
    frame: list[Markup] = []
    for value, shown in y.ticks:
        at = _TOP + _H * (1 - y.at(value))
        frame.append(Markup('<path class="grid" d="M{} {:.1f}h{}"/>').format(_LEFT, at, _W))
        frame.append(_text(_LEFT - 7, at + 4, shown, "end"))
    for value, shown in x.ticks:
        at = _LEFT + _W * x.at(value)
        frame.append(Markup('<path class="axis" d="M{:.1f} {}v4"/>').format(at, _TOP + _H))
        frame.append(_text(at, _TOP + _H + 17, shown))
    frame += [
        Markup('<path class="axis" d="M{} {}h{}"/>').format(_LEFT, _TOP + _H, _W),
        _text(_LEFT + _W / 2, HEIGHT - 5, x.label, css="label"),
        Markup('<g transform="translate(12 {:.1f}) rotate(-90)">{}</g>').format(
            _TOP + _H / 2, _text(0, 0, y.label, css="label")
        ),
    ]
    # A nested <svg> clips what lies outside of it, without an id.
    box = (_W + 2 * bleed, _H + 2 * bleed)
    inner = Markup('<svg x="{}" y="{}" width="{}" height="{}" viewBox="-{} -{} {} {}">{}</svg>').format(
        _LEFT - bleed, _TOP - bleed, *box, bleed, bleed, *box, Markup("").join(elements)
    )
    return _svg(WIDTH, HEIGHT, label, [*frame, inner])


def _svg(width: int, height: int, label: str, elements: Iterable[Markup]) -> Markup:
    """Without a label it is decoration: its content stands in the text beside it."""
    role = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup('<svg viewBox="0 0 {} {}" {}>{}</svg>').format(
        width, height, role, Markup("").join(map(escape, elements))
    )
