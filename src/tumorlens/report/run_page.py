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
from tumorlens.report import figures, text
from tumorlens.report.data import ReportData, read_report_data
from tumorlens.report.galleries import Galleries, make_galleries
from tumorlens.report.page import Notice, matrix_rows, weights_notices, write_page

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
    strips, strip_axis = figures.accuracy_strips(results, published)
    return {
        "study": data.study,
        "audit": data.audit,
        "comparison": comparison,
        "results": results,
        "classes": classes,
        "labels": data.labels,
        "published": published,
        "notices": _notices(data),
        "strips": strips,
        "strip_axis": strip_axis,
        "matrices": [
            matrix_rows(one.test["confusion"], classes,
                        {(i, j): found for (place, i, j), found in galleries.cells.items() if place == at})
            for at, one in enumerate(results)
        ],
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


def _notices(data: ReportData) -> list[Notice]:
    """What to know before the numbers are trusted, the most important first."""
    dataset, split = data.study["dataset"], data.study["split"]
    found = weights_notices(data.study["weights"])
    notes = " ".join(dataset["notes"])
    if not dataset["comparable_to_published"]:
        about = notes or "The published results are on other images."
        found.append(Notice("caution", "Not comparable with the published study", about))
    elif notes:
        found.append(Notice("note", "About the data set", notes))
    if split["test_source"] == "split off":
        found.append(Notice("caution", "The test images are split off at random", (
            f"The data set has no test folder: {text.plural(split['test'], 'image')} were split off with seed "
            f"{split['seed']}. Near-duplicates and other slices of one patient may be in training and test."
        )))  # fmt: skip
    if n := dataset["excluded"]:
        about = (
            f"{text.plural(n, 'file')} could not be read and {'was' if n == 1 else 'were'} left out; see “Data set”."
        )
        found.append(Notice("caution", "Excluded files", about))
    shown = {one.name for one in data.results}
    if absent := [c["name"] for c in data.study["configurations"] if c["name"] not in shown]:
        verb = "belongs" if len(absent) == 1 else "belong"
        about = f"{text.listed(absent)} {verb} to the study, but not to this comparison."
        found.append(Notice("caution", "Some configurations are missing", about))
    if not (data.study.get("git") or {}).get("clean", True):
        about = "The source tree had uncommitted changes: its commit alone does not identify the code that ran."
        found.append(Notice("note", "Uncommitted changes", about))
    return found


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
