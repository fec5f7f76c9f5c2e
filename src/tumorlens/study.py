"""The main job, top to bottom: data → split → features → train → evaluate → compare → report."""

from __future__ import annotations

from tumorlens.options import Study
from tumorlens.prepare import prepare
from tumorlens.progress import Clock
from tumorlens.runs import Json, read_json
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
    clock = Clock()
    bench = prepare(study, command=command, clock=clock)
    bench.compute_features(clock)
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
