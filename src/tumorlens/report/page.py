"""Common parts of the three pages: templates and their filters, confusion matrices, notices, and writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tumorlens.core.files import Json, writing
from tumorlens.core.text import bound
from tumorlens.core.version import __version__
from tumorlens.evaluation.leakage import same_mix
from tumorlens.report import figures, text
from tumorlens.report.galleries import Gallery

_ERROR_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of a row from which an error's cell is darker


class Notice(NamedTuple):
    """Something to know before the numbers are trusted."""

    level: str
    """`loud`, `caution` or `note`."""
    title: str
    text: str


class Cell(NamedTuple):
    """One cell of a confusion matrix."""

    n: int
    share: str
    """Of its row, in per cent; a dash if the row is empty."""
    shade: str
    """CSS class."""
    gallery: Gallery | None


def write_page(path: Path, template: str, view: Json) -> None:
    """Render a template of this folder and write it.

    Parameters
    ----------
    path
        The file to write.
    template
        Name of the template.
    view
        The template's variables.

    Raises
    ------
    RunError
        The file cannot be written.
    jinja2.UndefinedError
        The template uses a variable or key that is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = (
        bound, text.number, text.percent, text.interval, text.points, text.p_value, text.count, text.plural,
        text.duration, text.moment, text.listed,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"same_mix": same_mix, "swatch": figures.swatch, "version": __version__}
    page = environment.get_template(template).render(view)
    with writing(path) as file:
        # A lone surrogate stands for a byte of a file name that is not UTF-8.
        file.write(page.encode("utf-8", errors="replace"))


def matrix_rows(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], linked: Mapping[tuple[int, int], Gallery]
) -> list[tuple[str, int, list[Cell]]]:
    """Rows of a confusion matrix: true class, its number of images, its cells; some link to galleries."""
    rows = []
    for i, counts in enumerate(confusion):
        total = sum(counts)
        cells = []
        for j, n in enumerate(counts):
            share = n / total if total else 0.0
            shade = f"wrong{sum(share >= step for step in _ERROR_STEPS)}" if n else "none"
            if i == j:
                shade = f"right{min(5, int(6 * share))}"
            cells.append(Cell(n, text.percent(share, 1) if total else "–", shade, linked.get((i, j))))
        rows.append((classes[i], total, cells))
    return rows


def weights_notices(weights: Json) -> list[Notice]:
    """What to know about the initial weights, if they are not the official ImageNet ones."""
    if weights["kind"] == "none":
        return [Notice("loud", "Random weights", (
            "The network did not start from ImageNet: its initial weights are random, and the frozen layers keep "
            "them. These accuracies say nothing about transfer learning or about the published study."
        ))]  # fmt: skip
    if not weights["official"]:
        about = str(weights.get("note") or "") or f"The network started from {weights['name']}."
        return [Notice("caution", "Not the official ImageNet weights", about)]
    return []
