"""report.html of a cross-validation: every fold, their mean, and the pooled predictions on one offline page."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.files import Json
from tumorlens.report.page import matrix_rows, weights_notices, write_page


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
        The path of report.html.

    Raises
    ------
    RunError
        It cannot be written.
    """
    first = studies[cv["done"][0]]
    confusions = {name: one["pooled"]["confusion"] for name, one in cv["configurations"].items()}
    view = {
        "cv": cv,
        "study": first,
        "studies": studies,
        "classes": first["classes"],
        "notices": weights_notices(first["weights"]),
        "matrices": {
            name: (matrix_rows(found, first["classes"], {}), sum(row[i] for i, row in enumerate(found)))
            for name, found in confusions.items()
        },
    }
    write_page(root / "report.html", "folds.html.j2", view)
    return root / "report.html"
