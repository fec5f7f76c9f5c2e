"""The main job, top to bottom: data → split → features → train → evaluate → compare → report."""

from __future__ import annotations

import dataclasses

from tumorlens.options import Study
from tumorlens.prepare import prepare
from tumorlens.progress import Clock, say
from tumorlens.runs import Json, Run, read_json
from tumorlens.stages import compare_run, note_timing, report_run

__all__ = ["Study", "run_study"]


def run_study(study: Study, *, command: str = "") -> Json:
    """Run a whole study, or what is left of it, and leave its folder.

    Parameters
    ----------
    study
        What to do.
    command
        The command line to record as the way to repeat it.

    Returns
    -------
    dict
        `run`, `report` (paths), `comparison` (as in comparison.json) and, for every
        configuration, `accuracy` on train, validation and test.

    Raises
    ------
    TumorlensError
        Anything that the user can cure; what was finished stays on disk.
    """
    if study.is_cv and study.fold is None:
        return _run_folds(study, command)
    clock = Clock()
    bench = prepare(study, command=command, clock=clock)
    bench.compute_features(clock)
    bench.doubt_labels()
    for configuration in bench.configurations:
        with clock.step(f"train_{configuration.name}_s"):
            bench.train(configuration)
    for configuration in bench.configurations:
        with clock.step("evaluate_s"):
            bench.evaluate(configuration)
    with clock.step("compare_s"):
        comparison = compare_run(bench.run.root)
    note_timing(bench.run, clock)
    with clock.step("report_s"):
        report = report_run(bench.run.root, images=bench.folder.root)
    note_timing(bench.run, clock)
    names = comparison["configurations"]
    metrics = {name: read_json(bench.run.metrics(name))["parts"] for name in names}
    return {
        "run": str(bench.run.root),
        "report": str(report),
        "accuracy": {n: {part: m["accuracy"] for part, m in parts.items()} for n, parts in metrics.items()},
        "comparison": comparison,
    }


def _run_folds(study: Study, command: str) -> Json:
    """Every fold as a study of its own, in a folder of its own; finished ones are not trained again."""
    from tumorlens.crossval import fold_folder, sum_up_folds
    from tumorlens.report import write_folds_page

    root = study.run.root
    for fold in range(1, study.folds * study.repeats + 1):
        one = dataclasses.replace(study, fold=fold, out=fold_folder(root, fold))
        if one.run.report.exists():
            say(f"Fold {fold} of {study.folds * study.repeats}: finished.")
        else:
            say(f"Fold {fold} of {study.folds * study.repeats}:")
            run_study(one, command=command)
        result = sum_up_folds(root, study.folds, study.repeats)
        report = write_folds_page(root, result, {k: read_json(Run(fold_folder(root, k)).study) for k in result["done"]})
    return {"run": str(root), "report": str(report), "cv": result, "accuracy": {n: c["pooled"]["accuracy"] for n, c in
            result["configurations"].items()}}  # fmt: skip
