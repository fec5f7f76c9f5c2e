"""Cross-validation: every fold is a run of its own, and their test predictions are pooled."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import RunError
from tumorlens.core.files import Json, read_json, write_json
from tumorlens.core.run_folder import Run
from tumorlens.data.baselines import BASELINES, read_baselines
from tumorlens.data.index import read_index
from tumorlens.evaluation.bootstrap import bootstrap_accuracy
from tumorlens.evaluation.leakage import as_good_as
from tumorlens.evaluation.metrics import measure
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.seeds import summarise_seeds
from tumorlens.evaluation.summary import baseline_opening
from tumorlens.training.configurations import Configuration

#: Options of a study that must agree between the folds that are pooled.
SHARED_OPTIONS = ("seed", "folds", "group_similarity", "group_pattern", "no_group_folders")


def fold_folder(root: Path, fold: int) -> Path:
    """Run folder of one fold, from 1."""
    return root / f"fold-{fold}"


def sum_up_folds(root: Path, folds: int, repeats: int = 1) -> Json:
    """Pool the finished folds; writes cv.json and returns its content.

    Returns
    -------
    dict
        `done`, the finished folds, and `of`, their total; `group_similarity`; `groups`, their number,
        `largest_group` in images, `outgrown`, the number of groups cut because they exceeded the maximum size, and
        `cut_pairs`, the near-duplicates that this separated; `unfinished`, configurations that some of these folds
        lack; under `configurations` and `baselines`, for each one, the test `accuracies` of the folds, their summary
        `folds` (mean, sd, min, max), and `pooled`: n, accuracy and macro F1 over all out-of-fold predictions, with an
        interval from resampling whole groups; `as_good`, as `leakage.as_good_as` returns it, and `openings`, the
        sentences that open the verdict. With several repeats, an image counts once per repeat, always in the
        same group.

    Raises
    ------
    RunError
        No fold is finished, the folds belong to different studies, or files are missing.
    """
    done = [k for k in range(1, folds * repeats + 1) if Run(fold_folder(root, k)).comparison.exists()]
    if not done:
        raise RunError(f"{root} has no finished fold.", cure="Run the same command again: it resumes.")
    runs = [Run(fold_folder(root, k)) for k in done]
    compared = [read_json(run.comparison)["configurations"] for run in runs]
    names = [name for name in compared[0] if all(name in one for one in compared)]
    check_alike(runs, names, SHARED_OPTIONS)
    used = Counter(row.group for row in read_index(runs[0].index) if row.split)  # dropped copies are in no split
    study, grouped = runs[0].read_study(), read_json(runs[0].audit)["groups"]
    classes = study["classes"]
    by_fold = [fold_predictions(run, names, classes) for run in runs]
    networks = {name: [found[name] for found, _ in by_fold] for name in names}
    known = BASELINES if all(found for _, found in by_fold) else ()
    baselines = {name: [found[name] for _, found in by_fold] for name in known}
    as_good = _as_good(networks, baselines) if names else []
    result: Json = {
        "done": done,
        "of": folds * repeats,
        "folds": folds,
        "group_similarity": study["config"]["group_similarity"],
        "groups_from": grouped["from"],
        "groups": len(used),
        "largest_group": max(used.values()),
        "outgrown": grouped["outgrown"],
        "cut_pairs": grouped["cut_pairs"],
        "copies_dropped": study["split"]["left_out"],
        "frozen_lists": study["split"].get("frozen_lists"),
        "unfinished": sorted({name for one in compared for name in one} - set(names)),
        "configurations": {name: pool_folds(found, classes) for name, found in networks.items()},
        "baselines": {name: pool_folds(found, classes) for name, found in baselines.items()},
        "as_good": as_good,
        "openings": baseline_opening(as_good, "held-out images"),
    }
    write_json(root / "cv.json", result)
    return result


def check_alike(runs: Sequence[Run], names: Sequence[str], keys: Sequence[str], *, seeds: bool = False) -> None:
    """Check that runs belong to one study, so that their predictions can be pooled. Device and precision may differ.

    Parameters
    ----------
    names
        Configurations whose values must agree.
    keys
        Options of the study that must agree.
    seeds
        Whether the configurations' seeds may differ.

    Raises
    ------
    RunError
        They do not.
    """
    first: Json = {}
    for run in runs:
        study = run.read_study()
        values = {key: study["config"].get(key) for key in keys}
        values["data fingerprint"] = study["dataset"]["fingerprint"]
        values["groups file's SHA-256"] = study["split"].get("groups_sha256")
        values["weights"] = study["weights"]["sha256"] or study["weights"]["name"]
        for name in names:
            trained = dataclasses.asdict(Configuration.from_record(read_json(run.training(name))["configuration"]))
            values |= {f"{name}'s {k}": v for k, v in trained.items() if not (seeds and k == "seed")}
        first = first or values
        for key, value in values.items():
            if value != first[key]:
                raise RunError(
                    f"{run.root} belongs to another study than {runs[0].root}: its {key} is {value}, not {first[key]}.",
                    cure="Give runs of one study that differ only in the seed."
                    if seeds
                    else "Choose another folder with --out, or delete the folds of the other study.",
                )


#: Test predictions in one fold: true classes and predicted classes, both int [n], and groups, str [n]. A group has the
#: same name in every fold.
FoldPredictions = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.str_]]


def fold_predictions(
    run: Run, names: Sequence[str], classes: Sequence[str]
) -> tuple[dict[str, FoldPredictions], dict[str, FoldPredictions]]:
    """Test predictions of each configuration and of each baseline; runs of older versions have no baselines."""
    rows = {row.path: row for row in read_index(run.index)}

    def fold(paths: Sequence[str], predicted: npt.ArrayLike) -> FoldPredictions:
        order = np.argsort(paths)  # the same for all, so that they can be paired
        known = [rows[paths[i]] for i in order]
        labels = np.array([classes.index(row.label) for row in known])
        return labels, np.asarray(predicted)[order], np.array([row.group for row in known])

    tests = {name: read_predictions(run.predictions(name)).for_split("test") for name in names}
    answers = read_baselines(run.baselines)
    return {name: fold(test.paths, test.predicted) for name, test in tests.items()}, {
        name: fold(list(answers), [classes.index(one[i]) for one in answers.values()])
        for i, name in enumerate(BASELINES if answers else ())
    }


def pool_folds(folds: Sequence[FoldPredictions], classes: Sequence[str]) -> Json:
    """The entry of one configuration or baseline in cv.json."""
    labels, predicted, groups = (np.concatenate(arrays) for arrays in zip(*folds, strict=True))
    found = measure(labels, np.eye(len(classes))[predicted], classes)
    accuracies = [float(np.mean(labels == predicted)) for labels, predicted, _ in folds]
    return {
        "accuracies": accuracies,
        "n": [len(labels) for labels, _, _ in folds],
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


def _as_good(
    networks: Mapping[str, list[FoldPredictions]], baselines: Mapping[str, list[FoldPredictions]]
) -> list[Json]:
    """Baselines, and the class with the most images, that are as good as a network on all folds' test images."""
    labels = np.concatenate([fold[0] for fold in next(iter(networks.values()))])
    one, two = (
        {name: np.concatenate([predicted for _, predicted, _ in folds]) for name, folds in some.items()}
        for some in (networks, baselines)
    )
    return as_good_as(labels, one, two | {"largest_class": np.full(len(labels), np.bincount(labels).argmax())})


def folds_text(cv: Json) -> str:
    """Content of cv.json as text for the terminal."""
    kind = f"groups of near-duplicates (similarity {cv['group_similarity']:g} or more)"
    if cv["groups_from"] != "twins":
        kind = f"groups of patients ({cv['groups_from']}) and near-duplicates"
    return "\n".join([
        *cv["openings"],
        f"{len(cv['done'])} of {cv['of']} folds over {cv['groups']:,} {kind}; no group is in two splits.",
        *(f"{name}: {pooled['accuracy']:.2%} of {pooled['n']:,} images (95 % interval {pooled['interval'][0]:.2%} to "
          f"{pooled['interval'][1]:.2%}, from resampling whole groups); folds "
          + ", ".join(f"{value:.2%}" for value in found["accuracies"])
          for name, found in cv["configurations"].items() for pooled in [found["pooled"]]),
    ])  # fmt: skip
