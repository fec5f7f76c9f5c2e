"""report.html of a run: its files as one page that opens offline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jinja2 import UndefinedError

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json
from tumorlens.core.progress import log
from tumorlens.core.run_folder import Run
from tumorlens.evaluation.predictions import SPLITS
from tumorlens.report import figures
from tumorlens.report.data import ReportData, read_report_data
from tumorlens.report.galleries import Galleries, make_galleries
from tumorlens.report.page import write_page

_FILES_LISTED = 200  # files that could not be read, and groups of identical files


def write_report(run: Run, images: Path | None = None) -> Path:
    """Write a run's report.html.

    Parameters
    ----------
    run
        The folder of an evaluated and compared run.
    images
        The data set's folder if it is no longer at the place recorded in study.json. Images that cannot be read are
        shown as empty frames with their names.

    Returns
    -------
    Path
        The path of report.html, which depends on the run's files and images alone: equal ones give equal bytes.

    Raises
    ------
    RunError
        A file is missing, damaged or belongs to another run, or the report cannot be written.
    """
    data = read_report_data(run)
    root = Path(data.study["dataset"]["root"]) if images is None else images
    galleries = make_galleries(data, root)
    if lost := sum(not thumbnail.uri for thumbnail in galleries.thumbnails):
        log.info(
            f"{lost:,} of {len(galleries.thumbnails):,} images for the report cannot be read from {root}. "
            f"Name the data set's folder: tumorlens report {run.root} --images FOLDER"
        )
    try:
        write_page(run.report, "report.html.j2", _view(data, galleries, lost))
    except (KeyError, UndefinedError) as error:
        raise RunError(
            f"The files of {run.root} lack something that the report needs ({error}).",
            cure="They were edited or written by another version: run the study again, in another folder.",
        ) from error
    return run.report


def _view(data: ReportData, galleries: Galleries, lost: int) -> Json:
    """The template's variables."""
    results, classes, comparison = data.results, data.classes, data.comparison
    published = comparison["published"] or {}
    published = {one.name: published[one.name] for one in results if one.name in published}
    return {
        "study": data.study,
        "audit": data.audit,
        "comparison": comparison,
        "results": results,
        "classes": classes,
        "labels": data.labels,
        "published": published,
        "accuracy_axis": figures.accuracy_axis(results, published),
        "cells": galleries.cells,
        "pairs": list(zip(comparison["pairs"], galleries.pairs, strict=False)),
        "single": galleries.pairs[0].get("errors"),
        "thumbnails": galleries.thumbnails,
        "cap": galleries.cap,
        "lost": lost,
        "learning": figures.learning_curves(results),
        "roc": figures.roc_curves(results),
        "reliability": [figures.reliability_diagram(one) for one in results],
        "leak_curve": figures.leak_curve(comparison["leakage"]) if comparison.get("leakage") else None,
        "splits": [split for split in SPLITS if split in results[0].metrics["parts"]],
        "counts": _counts(data),
        "files": _files(data),
        "files_listed": _FILES_LISTED,
        "timing": _timing(data.study),
        "root": data.root,
    }  # fmt: skip


def _counts(data: ReportData) -> Json:
    """Images of each class by folder and by split, and their sums."""
    by_folder = data.study["dataset"]["counts"]
    by_split = Counter((row.label, row.split) for row in data.index)
    rows = [
        (label, [by_folder[f].get(label, 0) for f in by_folder] + [by_split[label, s] for s in SPLITS])
        for label in data.study["classes"]
    ]
    sums = [sum(column) for column in zip(*(counts for _, counts in rows), strict=True)]
    return {"folders": list(by_folder), "splits": SPLITS, "rows": rows, "sums": sums}


def _files(data: ReportData) -> Json:
    """Sizes and modes of the files, the most frequent first."""
    sizes, modes = (
        sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
        for values in ((f"{row.width}×{row.height}" for row in data.index), (row.mode for row in data.index))
    )
    size, n = sizes[0] if sizes else ("–", 0)
    return {
        "megabytes": sum(row.bytes for row in data.index) / 1e6,
        "sizes": len(sizes),
        "most_common_size": size,
        "most_common_share": n / max(len(data.index), 1),
        "modes": modes,
    }


def _timing(study: Json) -> list[tuple[str, float]]:
    """Steps and their seconds, the total last."""
    steps = [
        (key.removesuffix("_s").replace("_", " "), float(value))
        for key, value in (study.get("timing") or {}).items()
        if key.endswith("_s") and isinstance(value, int | float)
    ]
    return sorted(steps, key=lambda step: step[0] == "total")
