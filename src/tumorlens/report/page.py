"""Common parts of the three pages: templates with their filters, and writing."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tumorlens.core.files import Json, writing
from tumorlens.core.text import bound, listed
from tumorlens.core.version import __version__
from tumorlens.evaluation.leakage import same_mix
from tumorlens.report import figures, text


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
    environment.filters |= {
        "bound": bound, "number": text.number, "percent": text.percent, "interval": text.interval,
        "points": text.points, "p_value": text.p_value, "count": text.count, "plural": text.plural,
        "duration": text.duration, "moment": text.moment, "listed": listed,
    }  # fmt: skip
    environment.globals |= {"same_mix": same_mix, "series": figures.series, "version": __version__}
    page = environment.get_template(template).render(view)
    with writing(path) as file:
        # A lone surrogate stands for a byte of a file name that is not UTF-8.
        file.write(page.encode("utf-8", errors="replace"))
