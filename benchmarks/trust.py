"""Calibration, prediction sets, refusal and silent errors of a classifier, on data that nothing was fitted on.

    tumorlens export RUN
    python benchmarks/trust.py RUN [--model FILE] [--foreign FOLDER]

Unchanged test images, all and without twins; test images changed as another scanner, sequence or preprocessing would
change them (families marked for judging: all, those seen before, and the fresh ones); generated images that are not
brain MRI, and the half by hash of a folder of real ones, whose families are the file names up to the first underscore.
Writes benchmarks/results/trust.json, for an int8 file trust-int8.json, whose figures begin with `int8.`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command, keep
from robustness.evaluation import evaluate_trust, measure_part, near_shift, refusals
from robustness.families import (
    changed,
    families,
    half_of,
    phantom_plane,
)

from tumorlens.core.progress import log
from tumorlens.data.phantom.generator import VIEWS
from tumorlens.evaluation.leakage import without_twins
from tumorlens.export.trained_run import TrainedRun, open_trained_run
from tumorlens.inference.classifier import Classifier, load_classifier
from tumorlens.inference.uncertainty.fitting import LabelledOutputs
from tumorlens.readers.pixels import read_image


def predict_batches(classifier: Classifier, labels: np.ndarray, batches: Iterable[np.ndarray]) -> LabelledOutputs:
    """The classifier's outputs for all batches."""
    kept: dict[str, list[np.ndarray]] = defaultdict(list)
    for pixels in batches:
        outputs = classifier.run(pixels)
        for name in ("logits", "features", "statistics"):
            kept[name].append(getattr(outputs, name))
        kept["pixels"].append(pixels)
    return LabelledOutputs(labels, **{name: np.concatenate(arrays) for name, arrays in kept.items()})


def predict_array(classifier: Classifier, labels: np.ndarray, pixels: np.ndarray) -> LabelledOutputs:
    return predict_batches(classifier, labels, (pixels[i : i + 32] for i in range(0, len(pixels), 32)))


def predict_split(classifier: Classifier, trained: TrainedRun, split: str) -> LabelledOutputs:
    rows = trained.split(split)
    return predict_batches(classifier, trained.labels(rows), trained.batches(rows, f"Classifying {split}"))


def real_foreign_images(folder: Path) -> dict[str, np.ndarray]:
    """Images of the half that is for judging alone, by family."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() != ".md"):
        if half_of(hashlib.sha256(path.read_bytes()).hexdigest()) == "judge":
            found[path.name.split("_")[0]].append(read_image(path)[0])
    return {name: np.stack(images) for name, images in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", type=Path, help="the exported file; default: RUN/classifier.onnx")
    parser.add_argument("--foreign", type=Path, help="a folder of images that are not brain MRI")
    parser.add_argument("--near-images", type=int, default=300, help="test images that each near family changes")
    parser.add_argument("--far-images", type=int, default=100, help="images of each far family")
    asked = parser.parse_args(arguments)
    classifier = load_classifier(asked.model or asked.run)
    trained = open_trained_run(asked.run, classifier.card["configuration"])
    validation, test = predict_split(classifier, trained, "validation"), predict_split(classifier, trained, "test")
    rows = trained.split("test")
    free, _ = without_twins(trained.rows)
    twin_free = np.array([free[row.path][0] for row in rows])
    drawn = np.random.default_rng(0).permutation(len(rows))
    some, few = np.sort(drawn[: asked.near_images]), np.sort(drawn[: asked.far_images])
    near, far = {}, {}
    for family in families("near", "judge"):
        log.info(f"Near family {family.name}")
        near[family.name] = predict_array(classifier, test.labels[some], changed(family, test.pixels[some]))
    for view in VIEWS:
        log.info(f"Generated slices, {view}")
        pixels, names = phantom_plane(view, asked.far_images)
        labels = np.array([trained.classes.index(name) for name in names])
        near[f"generated, {view}"] = predict_array(classifier, labels, pixels)
    for family in families("far", "judge"):
        log.info(f"Far family {family.name}")
        far[family.name] = predict_array(classifier, test.labels[few], changed(family, test.pixels[few]))
    far_fitting = {}  # the rules were chosen on these, so they are reported separately
    for family in families("far", "fit"):
        log.info(f"Far family for fitting {family.name}")
        far_fitting[family.name] = predict_array(classifier, test.labels[few], changed(family, test.pixels[few]))
    mirrored = predict_array(classifier, test.labels, np.ascontiguousarray(test.pixels[:, :, ::-1]))
    for name, images in real_foreign_images(asked.foreign).items() if asked.foreign else ():
        far[f"real: {name}"] = predict_array(classifier, np.zeros(len(images), np.int64), images)
    found: dict[str, Any] = evaluate_trust(
        classifier.uncertainty,
        validation,
        test,
        twin_free=twin_free,
        near=near,
        far=far,
        groups=[r.group for r in rows],
    )
    found["far_fitting"] = refusals(classifier.uncertainty, far_fitting)
    found["mirrored"] = measure_part(classifier.uncertainty, validation, mirrored, [r.group for r in rows])
    fresh = {family.name for family in families("near", "judge") if family.fresh}
    for group, names in (("fresh", fresh), ("seen", near.keys() - fresh)):
        found[group] = near_shift(classifier.uncertainty, {name: near[name] for name in near if name in names})
    official, free = found["parts"]["official"], found["parts"].get("twin_free")
    sets = official["conformal"]["lac"]["marginal"]["0.95"]
    figures = {
        "calibration.adaptive_ece_official": official["after"]["adaptive_ece"],
        "conformal.coverage_0.95": sets["coverage"],
        "conformal.mean_set_size_0.95": sets["mean_set_size"],
        "refusal.far_rate": found["far"]["rate"],
        "refusal.test_rate": official["refused"]["rate"],
        "near_shift.silent_error_rate": found["near"]["silent_error_rate"],
        "near_shift.fresh_silent_error_rate": found["fresh"]["silent_error_rate"],
        "near_shift.seen_silent_error_rate": found["seen"]["silent_error_rate"],
        "near_shift.test_deferral_rate": official["deferred"]["rate"],
        "selective.accuracy_at_0.95_coverage": official["selective"]["accuracy_at_0.95_coverage"],
    } | ({"calibration.adaptive_ece_twin_free": free["after"]["adaptive_ece"]} if free else {})
    card = {
        key: classifier.card[key] for key in ("configuration", "precision", "dataset", "split", "checkpoint_sha256")
    }
    int8 = card["precision"] == "int8"
    if int8:
        figures = {f"int8.{name}": value for name, value in figures.items()}
    keep("trust-int8" if int8 else "trust", command(), figures, {"model": card, "trust": found})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
