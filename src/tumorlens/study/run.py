"""The main job, top to bottom: data → split → features → train → evaluate → compare → report."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import read_json, write_json
from tumorlens.core.memory import gc_disabled, give_back_memory
from tumorlens.core.progress import Clock, log
from tumorlens.core.run_folder import Run
from tumorlens.study.checks import check_installed
from tumorlens.study.options import Study
from tumorlens.study.result import StudyResult
from tumorlens.study.stages import compare_run, report_run, write_timing
from tumorlens.training.distributed import process_group
from tumorlens.training.world import World

if TYPE_CHECKING:
    from tumorlens.study.experiment import Experiment


def run_study(study: Study, *, command: str = "") -> StudyResult:
    """Run a whole study, or what is left of it.

    Parameters
    ----------
    study
        What to run.
    command
        The command line to record as the way to repeat it; by default this call.

    Returns
    -------
    StudyResult
        Run folder, report, metrics of each configuration and the comparison. With the protocol grouped-cv, the pooled
        result of the finished folds.

    Raises
    ------
    TumorlensError
        Anything that the user can resolve; finished parts stay on disk.

    Notes
    -----
    Under torchrun the processes train together and each returns the same; only rank 0 writes files, logs, and calls
    `study.on_epoch`.
    """
    check_installed(study)
    with process_group(study.device) as world:
        return (_run_folds if study.is_cv else _run_one)(study, command, world)


def train_study(study: Study, *, command: str = "") -> Experiment:
    """Prepare the data and train the configurations, without testing them; parameters and errors as in `run_study`."""
    if study.is_cv:
        raise ConfigError(
            "Folds are not trained without being tested.",
            cure="Use `tumorlens study --protocol grouped-cv`; with --fold K it runs one fold.",
        )
    check_installed(study)
    with process_group(study.device) as world:
        experiment, clock = _train(study, command, world)
        world.run_on_rank0(write_timing, experiment.run, clock)
    return experiment


def _run_one(study: Study, command: str, world: World) -> StudyResult:
    return world.run_on_rank0(_evaluate, *_train(study, command, world))


def _train(study: Study, command: str, world: World) -> tuple[Experiment, Clock]:
    """Rank 0 prepares; all ranks train. Each configuration is saved before the next one begins."""
    clock = Clock()
    with clock.step("imports_s"), gc_disabled():
        from tumorlens.study.prepare import prepare
    experiment = world.run_on_rank0(prepare, study, command=command, clock=clock)
    world.run_on_rank0(experiment.compute_features, clock)
    give_back_memory()
    for configuration in experiment.configurations:
        with clock.step(f"train_{configuration.name}_s"):
            experiment.train(configuration, world, study.on_epoch)
    return experiment, clock


def _evaluate(experiment: Experiment, clock: Clock) -> StudyResult:
    """Test, compare and report the trained configurations."""
    run = experiment.run
    with clock.step("doubts_s"):
        experiment.doubt_labels()
    for configuration in experiment.configurations:
        with clock.step("evaluate_s"):
            experiment.evaluate(configuration)
    with clock.step("compare_s"):
        comparison = compare_run(run.root)
    write_timing(run, clock)  # which the report shows
    with clock.step("report_s"):
        report = report_run(run.root, images=experiment.root)
    write_timing(run, clock)
    metrics = {name: read_json(run.metrics(name)) for name in comparison["configurations"]}
    return StudyResult.of_run(run.root, report, comparison, metrics)


def _run_folds(study: Study, command: str, world: World) -> StudyResult:
    """Run all folds, or only `study.fold`, each as a study in its own folder, and pool the finished ones."""
    from tumorlens.study.cross_validation import fold_folder
    from tumorlens.study.prepare import is_finished

    for number in [study.fold] if study.fold else range(1, study.folds * study.repeats + 1):
        fold = dataclasses.replace(study, fold=number, final_model=False, out=fold_folder(study.run.root, number))
        finished = world.run_on_rank0(is_finished, fold)
        log.info(f"Fold {number} of {study.folds * study.repeats}:{' finished.' if finished else ''}")
        if not finished:
            _run_one(fold, command, world)
        result = world.run_on_rank0(_pool_folds, study)
    if study.final_model:
        log.info("Final model:")
        final = dataclasses.replace(study, out=study.run.final.root)
        world.run_on_rank0(_describe_final, *_train(final, command, world), result)
    return result


def _describe_final(experiment: Experiment, clock: Clock, folds: StudyResult) -> None:
    """Write what is known of the final model: its validation metrics, and the test figures of the folds."""
    run = experiment.run
    for configuration in experiment.configurations:
        experiment.evaluate(configuration)
    figures = {name: found["pooled"] for name, found in (folds.cross_validation or {})["configurations"].items()}
    write_json(run.study, run.read_study() | {"cross_validation": figures})
    write_timing(run, clock)
    log.info(f"Final model in {run.root}, trained on {len(experiment.subset('train')):,} images of all folds.")


def _pool_folds(study: Study) -> StudyResult:
    """Pool the finished folds and write the page that shows them."""
    from tumorlens.report import write_folds_page
    from tumorlens.study.cross_validation import fold_folder, sum_up_folds

    root = study.run.root
    result = sum_up_folds(root, study.folds, study.repeats)
    first = Run(fold_folder(root, result["done"][0])).read_study()
    return StudyResult.of_folds(root, write_folds_page(root, result, first), result)
