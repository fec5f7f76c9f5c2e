"""The main job, top to bottom: data → split → features → train → evaluate → compare → report."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import TYPE_CHECKING

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import read_json
from tumorlens.core.memory import garbage_left, give_back_memory
from tumorlens.core.progress import Clock, log
from tumorlens.core.run_folder import Run
from tumorlens.study.options import Study
from tumorlens.study.prepare import prepare
from tumorlens.study.result import StudyResult
from tumorlens.study.stages import compare_run, note_timing, report_run
from tumorlens.training.distributed import process_group
from tumorlens.training.world import World

if TYPE_CHECKING:
    from tumorlens.study.experiment import Workbench

__all__ = ["Study", "run_study", "train_study"]


def run_study(study: Study, *, command: str = "") -> StudyResult:
    """Run a whole study, or what is left of it, and leave its folder.

    Parameters
    ----------
    study
        What to do.
    command
        The command line to record as the way to repeat it.

    Returns
    -------
    StudyResult
        Run folder, report, metrics of each configuration and the comparison. With the protocol grouped-cv, the pooled
        result of the finished folds.

    Notes
    -----
    Started by torchrun, the processes train together and each returns the same; rank 0 alone prints and writes.

    Raises
    ------
    TumorlensError
        Anything that the user can cure; what was finished stays on disk.
    """
    with process_group(study.device) as world:
        if study.is_cv:
            return _run_folds(study, command, world)
        return _run_one(study, command, world)


def train_study(study: Study, *, command: str = "") -> Workbench:
    """Prepare the data and train the configurations, without testing them; parameters and errors as in `run_study`."""
    if study.is_cv:
        raise ConfigError(
            "Folds are not trained without being tested.",
            cure="Say `tumorlens study --protocol grouped-cv`; with --fold K it does one fold.",
        )
    clock = Clock()
    with process_group(study.device) as world:
        bench = _trained(study, command, clock, world)
        world.run_on_rank0(note_timing, bench.run, clock)
    return bench


def _run_one(study: Study, command: str, world: World) -> StudyResult:
    clock = Clock()
    bench = _trained(study, command, clock, world)
    return world.run_on_rank0(_judged, bench, clock)


def _trained(study: Study, command: str, clock: Clock, world: World) -> Workbench:
    """Rank 0 prepares; all train. Each configuration is on disk before the next one begins."""
    if not world.is_rank0:  # what rank 0 is about to tell of is imported meanwhile
        with garbage_left(), suppress(ModuleNotFoundError):  # of which rank 0 tells
            import tumorlens.study.experiment  # noqa: F401
    bench = world.run_on_rank0(prepare, study, command=command, clock=clock)
    world.run_on_rank0(bench.compute_features, clock)
    give_back_memory()
    for configuration in bench.configurations:
        with clock.step(f"train_{configuration.name}_s"):
            bench.train(configuration, world)
    return bench


def _judged(bench: Workbench, clock: Clock) -> StudyResult:
    """Test, compare and report what was trained."""
    with clock.step("doubts_s"):
        bench.doubt_labels()
    for configuration in bench.configurations:
        with clock.step("evaluate_s"):
            bench.evaluate(configuration)
    with clock.step("compare_s"):
        comparison = compare_run(bench.run.root)
    note_timing(bench.run, clock)
    with clock.step("report_s"):
        report = report_run(bench.run.root, images=bench.folder.root)
    note_timing(bench.run, clock)
    metrics = {name: read_json(bench.run.metrics(name)) for name in comparison["configurations"]}
    return StudyResult.of_run(bench.run.root, report, comparison, metrics)


def _run_folds(study: Study, command: str, world: World) -> StudyResult:
    """Every fold, or the one that is asked for, as a study of its own, in a folder of its own; finished ones are
    not trained again, and all finished ones are pooled."""
    from tumorlens.study.cross_validation import fold_folder

    root = study.run.root
    for fold in [study.fold] if study.fold else range(1, study.folds * study.repeats + 1):
        one = dataclasses.replace(study, fold=fold, out=fold_folder(root, fold))
        if world.run_on_rank0(_finished, one):
            log.info(f"Fold {fold} of {study.folds * study.repeats}: finished.")
        else:
            log.info(f"Fold {fold} of {study.folds * study.repeats}:")
            _run_one(one, command, world)
        result = world.run_on_rank0(_summed_up, study)
    return result


def _finished(fold: Study) -> bool:
    """Whether this very fold lies in its folder.

    Raises
    ------
    RunError
        Another one does: of other data, weights or values of a configuration.
    """
    wanted = {configuration.name for configuration in fold.chosen()}
    if not fold.run.report.exists() or not wanted <= set(read_json(fold.run.comparison)["configurations"]):
        return False
    prepare(fold, write=False)  # its record tells of the command and the versions that trained it
    return True


def _summed_up(study: Study) -> StudyResult:
    """Pool the finished folds and write the page that shows them."""
    from tumorlens.report import write_folds_page
    from tumorlens.study.cross_validation import fold_folder, sum_up_folds

    root = study.run.root
    result = sum_up_folds(root, study.folds, study.repeats)
    records = {k: Run(fold_folder(root, k)).read_study() for k in result["done"]}
    return StudyResult.of_folds(root, write_folds_page(root, result, records), result)
