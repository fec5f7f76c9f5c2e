"""All folds of a cross-validation as one offline page: every fold, their mean, and the pooled answers."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.files import Json, writing
from tumorlens.core.version import __version__
from tumorlens.report.html import environment, matrix_rows, weights_warning


def write_folds_page(root: Path, cv: Json, studies: dict[int, Json]) -> Path:
    """Write report.html of a cross-validation.

    Parameters
    ----------
    root
        The cross-validation's folder, which holds the folds' folders.
    cv
        From `sum_up_folds`.
    studies
        study.json of each finished fold, by its number.

    Returns
    -------
    Path
        Of report.html.

    Raises
    ------
    RunError
        It cannot be written.
    """
    first = studies[cv["done"][0]]
    confusions = {name: one["pooled"]["confusion"] for name, one in cv["configurations"].items()}
    page = environment().get_template("folds.html.j2").render(
        cv=cv, study=first, studies=studies, classes=first["classes"], version=__version__,
        warnings=weights_warning(first["weights"]),
        matrices={
            name: (matrix_rows(found, first["classes"], {}), sum(row[i] for i, row in enumerate(found)))
            for name, found in confusions.items()
        },
    )  # fmt: skip
    path = root / "report.html"
    with writing(path) as file:
        file.write(page.encode("utf-8", errors="replace"))
    return path
