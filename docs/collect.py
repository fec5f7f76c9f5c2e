"""What is kept of runs in docs/results/: their numbers, without images, paths or predictions of single images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.core.run_folder import Run
from tumorlens.study.cross_validation import FoldPredictions, fold_predictions, pool_folds, sum_up_folds

RESULTS = Path(__file__).resolve().parent / "results"


def collect(root: Path, name: str) -> None:
    """Keep what a run measured, without images, paths of a machine or predictions of single images."""
    study = read(root / "study.json")
    del study["dataset"]["root"]
    study["command"] = " ".join(Path(w).name if "/" in w else w for w in study["command"].split())
    for key in ("data", "weights", "out", "cache", "config", "split", "groups"):
        if study["config"].get(key):
            study["config"][key] = Path(study["config"][key]).name
    comparison = read(root / "comparison.json")
    for pair in comparison["pairs"]:
        del pair["corrected_images"], pair["introduced_images"]
    kept: dict[str, Any] = {"name": name, "study": study, "comparison": comparison, "configurations": {}}
    for configuration in comparison["configurations"]:
        folder = root / configuration
        metrics = read(folder / "metrics.json")
        for part in metrics["parts"].values():
            del part["roc"], part["text"]
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        training = read(folder / "training.json")
        kept["configurations"][configuration] = {"training": training, "metrics": metrics, "history": history}
    audit = read(root / "audit.json")
    if "twins" in audit:
        kept["audit"] = {key: audit[key] for key in ("twins", "groups", "shortcuts")}
        kept["audit"]["conflicts"] = len(audit["conflicts"])
        kept["audit"]["label_doubts"] = len(audit.get("label_doubts", []))
    keep(name, kept)


def collect_folds(root: Path, name: str) -> None:
    """Keep the finished folds of a cross-validation beside those kept before, from whatever machine, and pool all."""
    cv = read(root / "cv.json")
    cv = sum_up_folds(root, cv["folds"], cv["of"] // cv["folds"])
    path = RESULTS / f"{name}.json"
    before = read(path) if path.exists() else {}
    kept = before.get("answers", {})
    groups = (
        "of", "groups", "group_similarity", "groups_from", "largest_group", "outgrown", "cut_pairs", "copies_dropped"
    )  # fmt: skip
    about = {key: cv[key] for key in groups}
    if before and (was := {key: before["cv"][key] for key in groups}) != about:
        sys.exit(f"{path} holds folds of other groups ({was}; now {about}). Choose another name.")
    for fold in cv["done"]:
        run = Run(root / f"fold-{fold}")
        study = read(run.study)
        same = {"data": study["dataset"]["fingerprint"], "weights": study["weights"]["sha256"],
                "seed": study["config"]["seed"], "epochs": study["config"]["max_epochs"]}  # fmt: skip
        if (was := next((one.get("same", same) for one in kept.values()), same)) != same:
            sys.exit(f"{path} holds folds of another study ({was}; fold {fold} is of {same}). Choose another name.")
        configurations, baselines = fold_predictions(run, cv["configurations"], study["classes"])
        kept[str(fold)] = {
            "seconds": study["timing"]["total_s"],
            "same": same,
            **{key: study[key] for key in ("classes", "weights", "device", "environment", "git")},
            "configurations": {one: packed(found, run.root / one) for one, found in configurations.items()},
            "baselines": {one: packed(found) for one, found in baselines.items()},
        }
    kept = dict(sorted(kept.items(), key=lambda item: int(item[0])))
    first = next(iter(kept.values()))
    pooled = {
        kind: {
            one: pool_folds([unpacked(fold[kind][one]) for fold in kept.values()], first["classes"])
            for one in first[kind]
        }
        for kind in ("configurations", "baselines")
    }
    cv = {"done": [int(fold) for fold in kept], **about, **pooled}
    precisions = sorted({fold["device"]["precision"] for fold in kept.values()})
    keep(name, {"name": name, "cv": cv, "precisions": precisions, "answers": kept})


def packed(fold: FoldPredictions, folder: Path | None = None) -> dict[str, Any]:
    """A fold's predictions in little space, and how long it was trained."""
    training = read(folder / "training.json") if folder else {}
    labels, predicted, groups = fold
    return {
        **{key: training[key] for key in ("epochs_run", "best_epoch") if key in training},
        "labels": "".join(map(str, labels)),
        "predicted": "".join(map(str, predicted)),
        "groups": " ".join(groups),
    }


def unpacked(kept: dict[str, Any]) -> FoldPredictions:
    """What `packed` kept; class numbers have one digit."""
    labels, predicted = (np.array(list(kept[key]), np.int64) for key in ("labels", "predicted"))
    return labels, predicted, np.array(kept["groups"].split(" "))


def keep(name: str, content: dict[str, Any]) -> None:
    """Write one file of docs/results."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(RESULTS / f"{name}.json")


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
