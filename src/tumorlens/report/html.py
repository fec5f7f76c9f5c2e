"""report.html: a run's files drawn as one page that opens offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, writing
from tumorlens.core.progress import log
from tumorlens.core.run_folder import Run
from tumorlens.core.text import bound
from tumorlens.evaluation.leakage import same_mix
from tumorlens.report import figures, text
from tumorlens.report.galleries import Galleries, Gallery, make_galleries
from tumorlens.report.material import Material, read_material

_ERROR_STEPS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # row shares from which an error's cell is darker
_FILES_LISTED = 200  # of unreadable and of same-content files


@dataclass(frozen=True)
class Warn:
    """Something to know before the numbers are believed."""

    level: str
    """`loud`, `caution` or `note`."""
    title: str
    said: str


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix."""

    n: int
    share: str
    """Of its row, in per cent; a dash where the row is empty."""
    shade: str
    """CSS class."""
    gallery: Gallery | None


def write_report(run: Run, images: Path | None = None) -> Path:
    """Write a run's report.html.

    Parameters
    ----------
    run
        The folder of an evaluated and compared run.
    images
        The data set's folder, where it is no longer at the place recorded in study.json. Images that
        cannot be read are shown as empty frames with their names.

    Returns
    -------
    Path
        Of report.html, which depends on the run's files and images alone: the same ones give the same bytes.

    Raises
    ------
    RunError
        A file is missing, damaged or belongs to another run, or the report cannot be written.
    """
    material = read_material(run)
    root = Path(material.study["dataset"]["root"]) if images is None else images
    galleries = make_galleries(material, root)
    if lost := sum(not thumbnail.uri for thumbnail in galleries.thumbnails):
        log.info(
            f"{lost:,} of {len(galleries.thumbnails):,} images for the report cannot be read from {root}. "
            f"Name the data set's folder: tumorlens report {run.root} --images FOLDER"
        )
    try:
        page = environment().get_template("report.html.j2").render(_view(material, galleries, lost))
    except (KeyError, UndefinedError) as error:
        raise RunError(
            f"The files of {run.root} lack something that the report needs ({error}).",
            cure="They were edited or written by another version: run the study anew, in another folder.",
        ) from error
    with writing(run.report) as file:
        # A lone surrogate stands for a byte of a file name that is not UTF-8.
        file.write(page.encode("utf-8", errors="replace"))
    return run.report


def environment() -> Environment:
    """Templates of this folder, with the filters that they use."""
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (
        bound, text.number, text.percent, text.interval, text.points, text.p_value, text.count, text.plural,
        text.duration, text.moment, text.listed,
    )  # fmt: skip
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals["same_mix"] = same_mix
    return environment


def _view(material: Material, galleries: Galleries, lost: int) -> Json:
    """All that the template shows."""
    measured, classes = material.measured, material.classes
    published = material.comparison["published"] or {}
    published = {one.name: published[one.name] for one in measured if one.name in published}
    strips, strip_axis = figures.accuracy_strips(measured, published)
    return {
        "study": material.study,
        "audit": material.audit,
        "comparison": material.comparison,
        "measured": measured,
        "classes": classes,
        "published": published,
        "warnings": warnings_of(material),
        "strips": strips,
        "strip_axis": strip_axis,
        "matrices": [
            matrix_rows(
                one.test["confusion"],
                classes,
                {(i, j): found for (place, i, j), found in galleries.cells.items() if place == at},
            )
            for at, one in enumerate(measured)
        ],
        "cells": galleries.cells,
        "pairs": list(zip(material.comparison["pairs"], galleries.pairs, strict=False)),
        "alone": galleries.pairs[0].get("errors") if galleries.pairs else None,
        "thumbnails": galleries.thumbnails,
        "cap": galleries.cap,
        "lost": lost,
        "learning": figures.learning_curves(measured),
        "roc": figures.roc_curves(measured),
        "reliability": figures.reliability_diagrams(measured),
        "leak_curve": figures.leak_curve(leak) if (leak := material.comparison.get("leakage")) else None,
        "curve_swatches": [_swatch(figures.series(i)) for i in range(len(leak["curve"]["accuracy"]) if leak else 0)],
        "swatches": [_swatch(figures.series(i)) for i in range(len(classes))],
        "parts": [part for part in ("train", "validation", "test") if part in measured[0].metrics["parts"]],
        "counts": _counts(material),
        "files": _files(material),
        "files_listed": _FILES_LISTED,
        "timing": _timing(material.study),
        "root": material.root,
    }


def weights_warning(weights: Json) -> list[Warn]:
    """What to know of the network's start, where it is not ImageNet's official weights."""
    if weights["kind"] == "none":
        said = (
            "The network did not start from ImageNet: its first weights are random, and the layers that stay "
            "frozen keep them. These accuracies say nothing about transfer learning or about the published study."
        )
        return [Warn("loud", "Random weights", said)]
    if not weights["official"]:
        said = str(weights.get("note") or "") or f"The network started from {weights['name']}."
        return [Warn("caution", "Not the official ImageNet weights", said)]
    return []


def warnings_of(material: Material) -> list[Warn]:
    """What stands beside the verdict, the most important first."""
    study = material.study
    data, split = study["dataset"], study["split"]
    found = weights_warning(study["weights"])
    if data["notes"] or not data["comparable_to_published"]:
        said = " ".join(data["notes"]) or "The published results are on other images."
        if data["comparable_to_published"]:
            found.append(Warn("note", "About the data set", said))
        else:
            found.append(Warn("caution", "Does not compare with the published study", said))
    if split["test_source"] == "split off":
        said = (
            f"The data set has no test folder: {text.plural(split['test'], 'image')} were split off by seed "
            f"{split['seed']}. Near-copies and other slices of one patient may lie on both sides."
        )
        found.append(Warn("caution", "The test part is split off", said))
    if data["excluded"]:
        were = "file was" if data["excluded"] == 1 else "files were"
        said = f"{data['excluded']:,} {were} left out as unreadable; the reasons stand under “The data set”."
        found.append(Warn("caution", "Excluded files", said))
    measured = {one.name for one in material.measured}
    if absent := [c["name"] for c in study["configurations"] if c["name"] not in measured]:
        said = (
            f"{text.listed(absent)} belong{'s' if len(absent) == 1 else ''} to the study, but not to this comparison."
        )
        found.append(Warn("caution", "Not all configurations are here", said))
    git = study.get("git")
    if git and not git.get("clean", True):
        said = "The source tree had uncommitted changes: its commit alone does not tell what ran."
        found.append(Warn("note", "Changed source", said))
    return found


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
            if i == j:
                shade = f"right{min(5, int(6 * share))}"
            else:
                shade = f"wrong{sum(share >= step for step in _ERROR_STEPS[1:])}" if n else "none"
            shown = text.percent(share, 1) if total else "–"
            cells.append(Cell(n, shown, shade, linked.get((i, j))))
        rows.append((classes[i], total, cells))
    return rows


def _swatch(css: str) -> Markup:
    """A line as in a figure, for its legend."""
    return Markup('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path class="line {}" d="M0 4H28"/></svg>'
                  ).format(css)  # fmt: skip


def _counts(material: Material) -> Json:
    """Images of each class by folder and by split, and their sums."""
    folders = list(material.study["dataset"]["counts"])
    by_folder = material.study["dataset"]["counts"]
    by_split = Counter((row["label"], row["split"]) for row in material.index)
    splits = ["train", "validation", "test"]
    classes = list(material.study["classes"])
    rows = [
        (label, [by_folder[f].get(label, 0) for f in folders], [by_split[label, s] for s in splits])
        for label in classes
    ]
    sums = (
        [sum(row[1][i] for row in rows) for i in range(len(folders))],
        [sum(row[2][i] for row in rows) for i in range(len(splits))],
    )
    return {"folders": folders, "splits": splits, "rows": rows, "sums": sums}


def _files(material: Material) -> Json:
    """Sizes and modes of the files, most frequent first."""
    n = len(material.index)
    sizes = Counter(f"{row['width']}×{row['height']}" for row in material.index)
    modes = Counter(row["mode"] for row in material.index)
    size, most = min(sizes.items(), key=lambda item: (-item[1], item[0])) if n else ("–", 0)
    return {
        "n": n,
        "megabytes": sum(int(row["bytes"]) for row in material.index if row["bytes"].isdigit()) / 1e6,
        "sizes": len(sizes),
        "most_common_size": size,
        "most_common_share": most / n if n else 0.0,
        "modes": sorted(modes.items(), key=lambda item: (-item[1], item[0])),
    }


def _timing(study: Json) -> list[tuple[str, float]]:
    """Steps and their seconds, the total last."""
    steps = {
        key.removesuffix("_s").replace("_", " "): float(value)
        for key, value in (study.get("timing") or {}).items()
        if key.endswith("_s") and isinstance(value, int | float)
    }
    total = steps.pop("total", None)
    return [*steps.items(), *([("total", total)] if total is not None else [])]
