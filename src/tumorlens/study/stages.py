"""Stages of a study that work on a run's folder alone: evaluate, compare, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.core.environment import peak_memory_gb
from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json, write_json
from tumorlens.core.progress import Clock
from tumorlens.core.run_folder import Run
from tumorlens.study.options import Study
from tumorlens.study.prepare import prepare
from tumorlens.training.configurations import BUILT_IN, Configuration

if TYPE_CHECKING:
    from tumorlens.data.index import ImageRecord


def note_timing(run: Run, clock: Clock) -> None:
    """Write this invocation's seconds and peak memory into study.json."""
    record = run.read_study()
    record["timing"] = {**clock.steps, "total_s": clock.total}
    record["peak_memory_gb"] = peak_memory_gb()
    write_json(run.study, record)


def evaluate_run(root: Path) -> Json:
    """Predict with every trained configuration of a run and write predictions.csv and metrics.json.

    Returns the metrics per configuration.
    """
    record = Run(root).read_study()
    bench = prepare(Study.from_record(record["config"], root), command=record["command"])
    listed = [Configuration.from_record(record) for record in bench.run.read_study()["configurations"]]
    trained = [c for c in listed if bench.run.training(c.name).exists()]
    if not trained:
        raise RunError(
            f"{root} holds no trained configuration.", cure="Run `tumorlens train` with the same --out first."
        )
    found = {c.name: bench.evaluate(c, again=True) for c in trained}
    bench.doubt_labels()
    return found


def compare_run(root: Path) -> Json:
    """Compare the evaluated configurations of a run and write comparison.json, which is returned."""
    from tumorlens.data.baselines import read_baselines
    from tumorlens.data.index import read_index
    from tumorlens.evaluation.compare import compare
    from tumorlens.evaluation.leakage import leakage, sentence
    from tumorlens.evaluation.predictions import read_predictions

    run = Run(root)
    record = run.read_study()
    names = [c["name"] for c in record["configurations"] if run.metrics(c["name"]).exists()]
    if not names:
        raise RunError(f"{root} holds no evaluated configuration.", cure=f"Run `tumorlens evaluate {root}` first.")
    predictions = {name: read_predictions(run.predictions(name)) for name in names}
    rows = read_index(run.index)
    comparison = compare(
        names,
        {name: read_json(run.training(name)) for name in names},
        {name: read_json(run.metrics(name)) for name in names},
        predictions,
        published_for(record, rows),
        {row.path: row.group for row in rows},
    )
    comparison["leakage"] = leakage(rows, predictions, read_baselines(run.baselines))
    whole = "the official test" if record["split"]["test_source"] == "folder" else "all test images"
    comparison["verdict"] += " " + sentence(comparison["leakage"], names, whole)
    write_json(run.comparison, comparison)
    return comparison


def published_for(record: Json, rows: Sequence[ImageRecord]) -> dict[str, float] | None:
    """Published figures of the configurations that were trained and tested in that way on that data set."""
    from tumorlens.data.datasheets import published
    from tumorlens.data.index import TESTING

    official = record["split"].get("protocol", "official") == "official"
    tested = all((row.split == "test") == (row.part == TESTING) for row in rows)
    figures = published(record["dataset"]["sheet"])
    if not (figures and official and tested and record["dataset"]["comparable_to_published"]):
        return None
    as_published = {"imagenet"}
    for one in record["configurations"]:  # a start stands before what starts from it
        c = Configuration.from_record(one)
        if c.start in as_published and dataclasses.replace(c, seed=None) == BUILT_IN.get(c.name):
            as_published.add(c.name)
    return {name: figure for name, figure in figures.items() if name in as_published}


def sum_up(roots: Sequence[Path]) -> Json:
    """Test accuracy of each configuration over several evaluated runs: n, mean, sd, min, max, values.

    Each but the first also has `against_first`, the paired test over runs (`seeds.paired_seeds`).

    Raises
    ------
    RunError
        The runs are on different test images or have no configuration in common, one is named twice, or they differ in
        more than the seed or not in it.
    """
    from tumorlens.data.index import read_index
    from tumorlens.evaluation.predictions import read_predictions
    from tumorlens.evaluation.seeds import paired_seeds, summarise_seeds
    from tumorlens.study.cross_validation import check_alike

    if len({root.resolve() for root in roots}) < len(roots):
        raise RunError("A run is named twice.", cure="Name each once: what is averaged are different runs.")
    tested: dict[str, frozenset[tuple[str, str]]] = {}
    values: dict[str, list[float]] = {}
    for root in roots:
        run = Run(root)
        names = [c["name"] for c in run.read_study()["configurations"] if run.metrics(c["name"]).exists()]
        content = {row.path: row.sha256 for row in read_index(run.index)}  # other images may have the same names
        for name in names:
            predictions = read_predictions(run.predictions(name))
            paths = (p for p, s in zip(predictions.paths, predictions.splits, strict=True) if s == "test")
            test = frozenset((path, content.get(path, "")) for path in paths)
            if tested.setdefault(name, test) != test:
                raise RunError(
                    f"{root} tests {name} on other images than {roots[0]}.", cure="Compare runs of one data set."
                )
            values.setdefault(name, []).append(read_json(run.metrics(name))["parts"]["test"]["accuracy"])
    common = {name: found for name, found in values.items() if len(found) == len(roots)}
    if not common:
        raise RunError("The runs have no evaluated configuration in common.", cure="Run `tumorlens evaluate` on each.")
    runs = [Run(root) for root in roots]
    check_alike(runs, list(common), ("protocol", "folds", "fold", "group_similarity", "groups"), seeds=True)
    for name in common:
        drawn: dict[tuple[int, str | None], Path] = {}
        for run in runs:
            config, own = run.read_study()["config"], read_json(run.training(name))["configuration"].get("seed")
            key = (config["seed"] if own is None else own, config.get("split"))
            if key in drawn:
                raise RunError(
                    f"{drawn[key]} and {run.root} trained {name} with the same seed {key[0]}.",
                    cure="Name runs of different seeds: the same training twice says nothing about chance.",
                )
            drawn[key] = run.root
    first = next(iter(common))
    return {
        name: summarise_seeds(found)
        | ({} if name == first else {"against_first": {"first": first, **paired_seeds(common[first], found)}})
        for name, found in common.items()
    }


def report_run(root: Path, images: Path | None = None) -> Path:
    """Write report.html of a compared run; returns its path."""
    from tumorlens.report import write_report

    return write_report(Run(root), images=images)
