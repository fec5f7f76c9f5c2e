"""Stages of a study that need only its run folder: evaluate, compare, report, and a summary over several runs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from tumorlens.core.environment import peak_memory_gb
from tumorlens.core.errors import DataError, RunError
from tumorlens.core.files import Json, read_json, write_json
from tumorlens.core.progress import Clock
from tumorlens.core.run_folder import Run
from tumorlens.data.index import ImageRecord, read_index
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.study.options import Study
from tumorlens.training.configurations import BUILT_IN, Configuration


def write_timing(run: Run, clock: Clock) -> None:
    """Write the seconds of each step and the peak memory of this process to study.json."""
    timing = {**clock.steps, "total_s": clock.total}
    write_json(run.study, run.read_study() | {"timing": timing, "peak_memory_gb": peak_memory_gb()})


def evaluate_run(root: Path, data: str | None = None) -> Json:
    """Predict with all trained configurations of a run; writes predictions.csv and metrics.json.

    Parameters
    ----------
    root
        Folder of the run.
    data
        The data set if it was moved since the run: a folder, a zip, phantom or kaggle. It must be the same.

    Returns
    -------
    dict
        Content of metrics.json by configuration.

    Raises
    ------
    RunError
        The folder holds no study or no trained configuration, or a checkpoint is not the one that was trained.
    DataError
        The data set is missing, or is another one.
    """
    from tumorlens.data.fetch import named_path
    from tumorlens.study.prepare import prepare

    run = Run(root.absolute())
    record = run.read_study()
    trained = [c for c in map(Configuration.from_record, record["configurations"]) if run.training(c.name).exists()]
    if not trained:
        raise RunError(
            f"{root} holds no trained configuration.", cure="Run `tumorlens train` with the same --out first."
        )
    for configuration in trained:
        run.checkpoint(configuration.name)
    study = Study.from_record(record["config"], run.root)
    places = [data] if data else [str(study.data), record["dataset"]["root"]]
    there = [place for place in places if place in ("kaggle", "phantom") or Path(place).expanduser().exists()]
    if not there and not data:
        raise DataError(
            f"The run's images are neither in {' nor in '.join(dict.fromkeys(places))}.",
            cure=f"Name the data set: tumorlens evaluate {shlex.quote(str(root))} --data FOLDER",
        )
    study = dataclasses.replace(study, data=there[0] if there else str(named_path(str(data))))
    experiment = prepare(study, command=record["command"], expected=record["dataset"]["fingerprint"])
    found = {c.name: experiment.evaluate(c, again=True) for c in trained}
    experiment.doubt_labels()
    return found


def compare_run(root: Path) -> Json:
    """Compare the evaluated configurations of a run; writes comparison.json and returns its content.

    Raises
    ------
    RunError
        The folder holds no study or no evaluated configuration, or a checkpoint is not the one that was trained, or not
        the one that was evaluated.
    """
    from tumorlens.data.baselines import read_baselines
    from tumorlens.data.patients import parted
    from tumorlens.evaluation.compare import compare
    from tumorlens.evaluation.leakage import leakage, patients_opening, sentence
    from tumorlens.evaluation.summary import baseline_opening

    run = Run(root)
    record, names = run.read_study(), _evaluated(run)
    if not names:
        raise RunError(f"{root} holds no evaluated configuration.", cure=f"Run `tumorlens evaluate {root}` first.")
    rows = read_index(run.index)
    if record["config"].get("final_model"):
        raise RunError(
            f"{root} is the final model of a cross-validation, which is tested in the folds.",
            cure=f"Open {root.absolute().parent / 'report.html'}, or use the model: tumorlens export "
            f"{shlex.quote(str(root.absolute().parent))}",
        )
    for name in names:
        _check_measured(run, name)
    predictions = {name: read_predictions(run.predictions(name)) for name in names}
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
    comparison["patients"] = parted(rows)
    comparison["openings"] = [
        *patients_opening(comparison["leakage"], comparison["patients"], names),
        *baseline_opening(comparison["leakage"]["as_good"]),
    ]
    sentences = [*comparison["openings"], comparison["verdict"], sentence(comparison["leakage"], names, whole)]
    comparison["verdict"] = " ".join(sentences)
    write_json(run.comparison, comparison)
    return comparison


def _check_measured(run: Run, name: str) -> None:
    """RunError unless a configuration's metrics are those of its checkpoint; a deleted checkpoint is no error."""
    summary, metrics = read_json(run.training(name)), read_json(run.metrics(name))
    if (run.folder(name) / summary["checkpoint"]).exists():
        run.checkpoint(name)
    measured = metrics.get("checkpoint_sha256")  # runs of older versions have none
    if measured and measured != summary["checkpoint_sha256"]:
        raise RunError(
            f"{run.metrics(name)} was measured with a checkpoint of SHA-256 {measured}, "
            f"{run.training(name)} records {summary['checkpoint_sha256']}.",
            cure=f"Measure it again: tumorlens evaluate {shlex.quote(str(run.root))}",
        )


def published_for(record: Json, rows: Sequence[ImageRecord]) -> dict[str, float] | None:
    """Published accuracy by configuration, if data set, split and training are those of the published study."""
    from tumorlens.data.datasheets import TESTING, published

    figures = published(record["dataset"]["sheet"])
    named = record["split"].get("patients") is not None  # which bind the validation split
    official = (
        not named
        and record["split"].get("protocol", "official") == "official"
        and all((row.split == "test") == (row.part == TESTING) for row in rows)
    )
    if not (figures and official and record["dataset"]["comparable_to_published"]):
        return None
    as_published = {"imagenet"}
    for one in record["configurations"]:  # listed after the one that it starts from
        c = Configuration.from_record(one)
        if c.start in as_published and dataclasses.replace(c, seed=None) == BUILT_IN.get(c.name):
            as_published.add(c.name)
    return {name: figure for name, figure in figures.items() if name in as_published}


def sum_up(roots: Sequence[Path]) -> Json:
    """Summarise test accuracy over several evaluated runs that differ in the seed.

    Returns
    -------
    dict
        For each configuration that all runs have, n, mean, sd, min, max and values (`summarise_seeds`); all but the
        first also have `against_first`, the paired test over runs (`paired_seeds`).

    Raises
    ------
    RunError
        A run is given twice, the runs have different test images or no configuration in common, or they differ in more
        than the seed, or not in the seed.
    """
    from tumorlens.evaluation.seeds import paired_seeds, summarise_seeds
    from tumorlens.study.cross_validation import check_alike

    if len({root.resolve() for root in roots}) < len(roots):
        raise RunError("A run is given twice.", cure="Give each run once.")
    runs = [Run(root) for root in roots]
    tested = [{(row.path, row.sha256) for row in read_index(run.index) if row.split == "test"} for run in runs]
    for run, images in zip(runs, tested, strict=True):
        if images != tested[0]:
            raise RunError(f"{run.root} tests on other images than {roots[0]}.", cure="Give runs of one data set.")
    accuracies = [
        {name: read_json(run.metrics(name))["parts"]["test"]["accuracy"] for name in _evaluated(run)} for run in runs
    ]
    common = [name for name in accuracies[0] if all(name in found for found in accuracies)]
    if not common:
        raise RunError("The runs have no evaluated configuration in common.", cure="Run `tumorlens evaluate` on each.")
    check_alike(runs, common, ("protocol", "folds", "fold", "group_similarity", "groups"), seeds=True)
    for name in common:
        seen: dict[tuple[int, str | None], Path] = {}
        for run in runs:
            config, own = run.read_study()["config"], read_json(run.training(name))["configuration"].get("seed")
            key = (config["seed"] if own is None else own, config.get("split"))
            if (other := seen.setdefault(key, run.root)) != run.root:
                raise RunError(
                    f"{other} and {run.root} trained {name} with the same seed {key[0]}.",
                    cure="Give runs with different seeds.",
                )
    first, values = common[0], {name: [found[name] for found in accuracies] for name in common}
    return {
        name: summarise_seeds(found)
        | ({} if name == first else {"against_first": {"first": first, **paired_seeds(values[first], found)}})
        for name, found in values.items()
    }


def _evaluated(run: Run) -> list[str]:
    """Names of the evaluated configurations."""
    return [c["name"] for c in run.read_study()["configurations"] if run.metrics(c["name"]).exists()]


def report_run(root: Path, images: Path | None = None) -> Path:
    """Write report.html of a compared run and return its path; `images` is the data set's folder if it has moved."""
    from tumorlens.report import write_report

    return write_report(Run(root), images=images)
