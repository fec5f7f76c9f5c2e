"""Several folds as one result: every fold is a run of its own, and their answers are pooled."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json, write_json
from tumorlens.core.run_folder import Run
from tumorlens.data.baselines import BASELINES, read_baselines
from tumorlens.data.index import read_index
from tumorlens.evaluation.bootstrap import bootstrap_accuracy
from tumorlens.evaluation.metrics import measure
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.seeds import summarise_seeds
from tumorlens.training.configurations import Configuration


def fold_folder(root: Path, fold: int) -> Path:
    """Where one fold's run lies, from 1 on."""
    return root / f"fold-{fold}"


def sum_up_folds(root: Path, folds: int, repeats: int = 1) -> Json:
    """Pool the folds that are finished and write cv.json, which is returned.

    Returns
    -------
    dict
        `done` and `of` folds; `group_similarity`; `groups`, their number, `largest_group`, how many had `outgrown`
        the cap and were cut, and the `cut_pairs` that this parted; configurations that are `unfinished`, as some of
        these folds lack them; and under `configurations` and `baselines` for
        each every fold's test accuracy, `folds` (mean, sd, min, max), and `pooled`: n, accuracy and macro-F1 over
        all out-of-fold answers, with an interval that resamples whole groups. Images that several repeats tested
        count once each time, in the same group.

    Raises
    ------
    RunError
        No fold is finished, or a fold's files are missing.
    """
    done = [k for k in range(1, folds * repeats + 1) if Run(fold_folder(root, k)).comparison.exists()]
    if not done:
        raise RunError(f"{root} has no finished fold.", cure="Run the same command again: it goes on from here.")
    runs = [Run(fold_folder(root, k)) for k in done]
    tested = [read_json(run.comparison)["configurations"] for run in runs]
    names = [name for name in tested[0] if all(name in one for one in tested)]  # of others some folds are still to come
    check_alike(runs, names, ("seed", "folds", "group_similarity", "groups"))
    used = [row.group for row in read_index(runs[0].index) if row.split]  # dropped copies are in no part
    sizes = np.unique(used, return_counts=True)[1]
    study, grouped = runs[0].read_study(), read_json(runs[0].audit)["groups"]
    result: Json = {
        "done": done,
        "of": folds * repeats,
        "folds": folds,
        "group_similarity": study["config"]["group_similarity"],
        "groups_from": "file" if study["config"]["groups"] else "twins",
        "groups": len(sizes),
        "largest_group": int(sizes.max()),
        "outgrown": grouped["outgrown"],
        "cut_pairs": grouped["cut_pairs"],
        "copies_dropped": study["split"]["left_out"],
        "unfinished": sorted({name for one in tested for name in one} - set(names)),
        "configurations": {},
        "baselines": {},
    }
    classes = study["classes"]
    for name in names:
        result["configurations"][name] = pool_folds([fold_answers(run, name) for run in runs], classes)
    by_fold = [fold_baselines(run, classes) for run in runs]
    for name in by_fold[0] if all(by_fold) else ():
        result["baselines"][name] = pool_folds([one[name] for one in by_fold], classes)
    write_json(root / "cv.json", result)
    return result


def check_alike(runs: Sequence[Run], names: Sequence[str], keys: Sequence[str], *, seeds: bool = False) -> None:
    """RunError where runs are of different studies, whose answers must not be pooled; device and precision may be
    others.

    Parameters
    ----------
    names
        Configurations, whose values must agree.
    keys
        Of the study's own configuration, likewise.
    seeds
        Whether the configurations' seeds may differ.
    """
    first: Json = {}
    for run in runs:
        study = run.read_study()
        about = {key: study["config"].get(key) for key in keys}
        about["data fingerprint"] = study["dataset"]["fingerprint"]
        about["weights"] = study["weights"]["sha256"] or study["weights"]["name"]
        for name in names:
            trained = Configuration.from_record(read_json(run.training(name))["configuration"])
            about |= {f"{name}'s {k}": v for k, v in dataclasses.asdict(trained).items() if not (seeds and k == "seed")}
        first = first or about
        for key, value in about.items():
            if value != first[key]:
                raise RunError(
                    f"{run.root} is of another study than {runs[0].root}: its {key} is {value}, not {first[key]}.",
                    cure="Name runs of one study, which differ in the seed alone."
                    if seeds
                    else "Name another folder with --out, or delete the folds that do not belong.",
                )


@dataclass(frozen=True, eq=False)
class FoldAnswers:
    """What one fold's test images are, and what one configuration said of them."""

    labels: npt.NDArray[np.integer]
    """int [n], class numbers."""
    predicted: npt.NDArray[np.integer]
    """int [n]."""
    groups: npt.NDArray[np.str_]
    """str [n]; a name means the same group in every fold."""


def fold_answers(run: Run, configuration: str) -> FoldAnswers:
    """Of a finished fold; RunError where a file of it is missing or damaged."""
    group_of = {row.path: row.group for row in read_index(run.index)}
    part = read_predictions(run.predictions(configuration)).for_split("test")
    return FoldAnswers(part.labels, part.predicted, np.array([group_of[path] for path in part.paths]))


def fold_baselines(run: Run, classes: Sequence[str]) -> dict[str, FoldAnswers]:
    """The same of each baseline that learns nothing about brains, by its name; none in a run of an older version."""
    group_of = {row.path: (row.label, row.group) for row in read_index(run.index)}
    said = read_baselines(run.baselines)
    if not said:
        return {}
    labels = np.array([classes.index(group_of[path][0]) for path in said])
    groups = np.array([group_of[path][1] for path in said])
    return {
        name: FoldAnswers(labels, np.array([classes.index(answers[i]) for answers in said.values()]), groups)
        for i, name in enumerate(BASELINES)
    }


def pool_folds(folds: Sequence[FoldAnswers], classes: Sequence[str]) -> Json:
    """Several folds of one configuration, or baseline, as one result: its part of cv.json."""
    labels, predicted, groups = (
        np.concatenate([getattr(fold, name) for fold in folds]) for name in ("labels", "predicted", "groups")
    )
    found = measure(labels, np.eye(len(classes))[predicted], classes)
    accuracies = [float(np.mean(fold.predicted == fold.labels)) for fold in folds]
    return {
        "accuracies": accuracies,
        "n": [len(fold.labels) for fold in folds],
        "folds": summarise_seeds(accuracies),
        "pooled": {
            "n": found["n"],
            "accuracy": found["accuracy"],
            "interval": list(bootstrap_accuracy(predicted == labels, groups)),
            "macro_f1": found["macro"]["f1"],
            "recall": {c: row["recall"] for c, row in found["per_class"].items()},
            "confusion": found["confusion"],
        },
    }


def folds_text(cv: Json) -> str:
    """cv.json as lines for the terminal."""
    what = "groups that the user named" if cv["groups_from"] == "file" else (
        f"groups of near-duplicates (similarity {cv['group_similarity']:g} or more)"
    )  # fmt: skip
    lines = [f"{len(cv['done'])} of {cv['of']} folds over {cv['groups']:,} {what}; no group in two parts."]
    for name, found in cv["configurations"].items():
        pooled = found["pooled"]
        low, high = pooled["interval"]
        each = ", ".join(f"{value:.2%}" for value in found["accuracies"])
        lines.append(
            f"{name}: {pooled['accuracy']:.2%} of {pooled['n']:,} images "
            f"(95 % interval {low:.2%} to {high:.2%}, whole groups resampled); folds {each}"
        )
    return "\n".join(lines)
