"""What the figures of the pages show; `figures.html.j2` draws them as SVG.

Series differ by colour and by dashes. Coordinates are in CSS pixels inside the plotting area.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from tumorlens.core.files import Json
from tumorlens.core.text import bound
from tumorlens.evaluation.statistics import wilson
from tumorlens.report import text
from tumorlens.report.data import ConfigurationResult

WIDTH, HEIGHT = 330, 218  # of the plotting area
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


@dataclass(frozen=True)
class Mark:
    """A line, or a dot if it has a radius."""

    css: str
    points: Sequence[tuple[float, float]]
    """Pixels from the left and from the top."""
    radius: float = 0

    @property
    def path(self) -> str:
        """SVG path of the line; points on the same pixel as their predecessor are left out."""
        return "M" + "L".join(point for point, _ in groupby(f"{a:.1f} {b:.1f}" for a, b in self.points))


@dataclass(frozen=True)
class Figure:
    """A figure with two axes."""

    label: str
    """What it shows, for readers who cannot see it."""
    x: Axis
    y: Axis
    marks: Sequence[Mark]
    best: tuple[int, int] | None = None
    """Value on the x axis that a vertical line marks, and height of its label in pixels."""
    bleed: int = 7
    """Pixels around the plotting area in which marks are still drawn."""


def series(i: int) -> str:
    """CSS classes of the i-th series; the first twelve have distinct pairs of colour and dashes."""
    return f"c{i % COLOURS} d{i % DASHES}"


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


def learning_curves(results: Sequence[ConfigurationResult]) -> list[tuple[Figure, Figure]]:
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


def _learning(one: ConfigurationResult, key: str, y: Axis) -> Figure:
    epochs = [float(e["epoch"]) for e in one.history]
    lbfgs = one.training["solver"] == "lbfgs"
    x = _epoch_axis(int(max(epochs)), "Regularisation strength tried" if lbfgs else "Epoch")
    best, step = one.training["best_epoch"], "strength" if lbfgs else "epoch"
    show = text.percent if key == "accuracy" else text.number
    marks, ranges = [], []
    for i, (split, name) in enumerate((("train", "training"), ("validation", "validation"))):
        values = [e[f"{split}_{key}"] for e in one.history]
        ranges.append(f"{name} from {show(values[0])} to {show(values[-1])}")
        points = {a: _xy(x, y, a, b) for a, b in zip(epochs, values, strict=True) if math.isfinite(b)}
        if points:  # a single one is a dot: a line would not be seen
            marks.append(Mark(f"c{i} d{i}" if len(points) > 1 else f"c{i}", [*points.values()], 3 * (len(points) == 1)))
        if split == "validation" and best in points:
            marks.append(_dot(points[best], "c1", 4))
    label = f"{one.name}, {key} by {step}: {', '.join(ranges)}; best {step} {best}."
    # The label of the best epoch stands where the curves are not: losses fall from the top, accuracies rise to it.
    return Figure(label, x, y, marks, (best, 10 if key == "loss" else HEIGHT - 8))


def roc_curves(results: Sequence[ConfigurationResult]) -> list[tuple[Figure, Figure | None]]:
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


def _roc(one: ConfigurationResult, side: float) -> Figure:
    x = nice_axis(0.0, side, "False positive rate", most=5)
    y = nice_axis(1.0 - side, 1.0, "True positive rate", most=5)
    classes, curves = one.metrics["classes"], one.test["roc"]
    marks = [_diagonal(x, y)] + [
        _line(x, y, zip(curves[name]["fpr"], curves[name]["tpr"], strict=True), series(i))
        for i, name in enumerate(classes)
        if name in curves
    ]
    areas = ", ".join(f"{name} {text.number(one.test['per_class'][name]['roc_auc'])}" for name in classes)
    which = "one-vs-rest ROC curves" if side == 1 else f"the same curves up to a false positive rate of {side}"
    return Figure(f"{one.name}, {which}. Areas: {areas}.", x, y, marks, bleed=7 if side == 1 else 1)


def reliability_diagram(one: ConfigurationResult) -> Figure:
    """Accuracy against confidence in each bin, with Wilson's 95 % intervals."""
    x = nice_axis(0.0, 1.0, "Mean probability of the predicted class", most=5)
    y = nice_axis(0.0, 1.0, "Accuracy", most=5)
    whiskers, dots = [], []
    largest = max((b["n"] for b in one.test["reliability"]), default=1)
    for b in one.test["reliability"]:
        ends = wilson(round(b["accuracy"] * b["n"]), b["n"])
        whiskers.append(_line(x, y, [(b["confidence"], value) for value in ends], "c0 whisker"))
        dots.append(_dot(_xy(x, y, b["confidence"], b["accuracy"]), "c0", 2.5 + 5 * math.sqrt(b["n"] / largest)))
    label = f"{one.name}, reliability diagram: expected calibration error {text.number(one.test['ece'])}."
    return Figure(label, x, y, [_diagonal(x, y), *whiskers, *dots])


def accuracy_axis(results: Sequence[ConfigurationResult], published: dict[str, float]) -> Axis:
    """The scale on which test accuracies, their intervals and the published ones are drawn."""
    values = [v for one in results for v in one.test["accuracy_interval"]] + list(published.values())
    return nice_axis(min(values), max(values), "", percent=True, most=4)


def leak_curve(leakage: Json) -> Figure | None:
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
        _line(x, y, [(last - j, values[i]) for j, i in enumerate(drawn) if values[i] is not None], series(k))
        for k, values in enumerate(curve["accuracy"].values())
    ]
    return Figure("Accuracy by largest similarity to any training image", x, y, lines)


def _epoch_axis(last: int, label: str) -> Axis:
    """Whole numbers from 1; wider than one epoch even if there is only one."""
    step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if last / s <= 8)
    ticks = sorted({1, *range(step, last + 1, step)} - ({2} if step > 2 else set()))
    return Axis(1 - 0.02 * max(last - 1, 1), max(last, 2), [(float(t), str(t)) for t in ticks], label)


def _xy(x: Axis, y: Axis, a: float, b: float) -> tuple[float, float]:
    return WIDTH * x.at(a), HEIGHT * (1 - y.at(b))


def _line(x: Axis, y: Axis, points: Iterable[tuple[float, float]], css: str) -> Mark:
    return Mark(css, [_xy(x, y, *point) for point in points])


def _diagonal(x: Axis, y: Axis) -> Mark:
    return _line(x, y, [(0, 0), (1, 1)], "reference")


def _dot(at: tuple[float, float], css: str, radius: float = 3) -> Mark:
    return Mark(css, [at], radius)
