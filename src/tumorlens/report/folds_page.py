"""report.html of a cross-validation: every fold, their mean, and the pooled predictions on one offline page."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.files import Json
from tumorlens.report.page import write_page


def write_folds_page(root: Path, cv: Json, study: Json) -> Path:
    """Write report.html of a cross-validation.

    Parameters
    ----------
    root
        The cross-validation's folder, which holds the folds' folders.
    cv
        From `sum_up_folds`.
    study
        study.json of one of the folds.

    Returns
    -------
    Path
        The path of report.html.

    Raises
    ------
    RunError
        It cannot be written.
    """
    write_page(root / "report.html", "folds.html.j2", {"cv": cv, "study": study})
    return root / "report.html"
