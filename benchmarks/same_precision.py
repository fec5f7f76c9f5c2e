"""Is bf16 as good as fp32? Runs of the same seeds in both precisions, image by image.

    python benchmarks/same_precision.py --fp32 RUN RUN RUN --bf16 RUN RUN RUN

The runs are of `tumorlens study` on the same data, with the same weights and options but the precision. A choice
between the two is made on the validation images alone: by McNemar's test on the answers of all seeds, and by a paired
t-test on the seeds' lowest validation losses. The results on the test images are written beside it. Writes
benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import command, keep

from tumorlens.core.errors import RunError
from tumorlens.core.files import read_json
from tumorlens.core.run_folder import Run
from tumorlens.evaluation.predictions import Predictions, read_predictions
from tumorlens.evaluation.seeds import paired_seeds
from tumorlens.evaluation.statistics import mcnemar
from tumorlens.study.cross_validation import check_alike

CONFIGURATIONS = ("initial", "finetuned")


def seed_of(fp32: Run, bf16: Run) -> int:
    """The seed that both were run with; ends the program where they are no pair."""
    one, two = read_json(fp32.study), read_json(bf16.study)
    for run, record, wanted in ((fp32, one, "fp32"), (bf16, two, "bf16")):
        if record["device"]["precision"] != wanted:
            sys.exit(f"{run.root} was computed in {record['device']['precision']}, not in {wanted}.")
    try:
        check_alike((fp32, bf16), CONFIGURATIONS, ("seed",))
    except RunError as error:
        sys.exit(error.what)
    if one["split"]["sha256"] != two["split"]["sha256"]:
        sys.exit(f"{fp32.root} and {bf16.root} have other images in their parts.")
    return int(one["config"]["seed"])


def right(predictions: Predictions, part: str) -> dict[str, bool]:
    """Whether each image of a part was classified correctly, by its path."""
    answers = predictions.probabilities.argmax(1) == predictions.labels
    return {predictions.paths[i]: bool(answers[i]) for i, split in enumerate(predictions.splits) if split == part}


def compared(pairs: Sequence[tuple[Run, Run]], name: str) -> dict[str, Any]:
    """Both precisions of one configuration over the seeds."""
    found: dict[str, Any] = {"losses": {"fp32": [], "bf16": []}, "epochs": {"fp32": [], "bf16": []}}
    answers: dict[str, dict[str, list[bool]]] = {part: {"fp32": [], "bf16": []} for part in ("validation", "test")}
    seeds: dict[str, list[Any]] = {part: [] for part in answers}
    for pair in pairs:
        by_part: dict[str, list[dict[str, bool]]] = {part: [] for part in answers}
        for kind, run in zip(("fp32", "bf16"), pair, strict=True):
            trained, predictions = read_json(run.training(name)), read_predictions(run.predictions(name))
            found["losses"][kind].append(trained["best_validation_loss"])
            found["epochs"][kind].append([trained["epochs_run"], trained["best_epoch"]])
            for part in answers:
                by_part[part].append(right(predictions, part))
        for part, (one, two) in by_part.items():
            paths = sorted(one)
            both = [[scores[path] for path in paths] for scores in (one, two)]
            seeds[part].append([sum(both[0]), sum(both[1]), mcnemar(*both)["p_value"]])
            for kind, values in zip(("fp32", "bf16"), both, strict=True):
                answers[part][kind] += values
    for part, scores in answers.items():
        found[part] = {
            "n": len(scores["fp32"]), "seeds": seeds[part], "mcnemar": mcnemar(scores["fp32"], scores["bf16"]),
            **{kind: float(np.mean(values)) for kind, values in scores.items()},
        }  # fmt: skip
    found["loss_test"] = paired_seeds(found["losses"]["fp32"], found["losses"]["bf16"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--fp32", type=Path, nargs="+", required=True, help="runs in fp32")
    parser.add_argument("--bf16", type=Path, nargs="+", required=True, help="runs in bf16, of the same seeds in order")
    asked = parser.parse_args(arguments)
    if len(asked.fp32) != len(asked.bf16):
        parser.error(f"{len(asked.fp32)} runs in fp32 and {len(asked.bf16)} in bf16 make no pairs")
    pairs = [(Run(one), Run(two)) for one, two in zip(asked.fp32, asked.bf16, strict=True)]
    seeds = [seed_of(*pair) for pair in pairs]
    detail: dict[str, Any] = {"seeds": seeds} | {name: compared(pairs, name) for name in CONFIGURATIONS}
    print(json.dumps(detail, indent=1))
    keep("precision", command(), {}, detail)


if __name__ == "__main__":
    main()
