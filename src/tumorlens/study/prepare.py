"""From options to an `Experiment`: inputs checked, data set opened, device and weights resolved, record written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tumorlens.core.environment import environment, git_state
from tumorlens.core.errors import DataError, FetchError, RunError
from tumorlens.core.files import Json, read_json, write_json
from tumorlens.core.memory import blocks_given_back
from tumorlens.core.progress import Clock, log
from tumorlens.core.run_folder import FORMAT, Run
from tumorlens.core.version import __version__
from tumorlens.data.audit import audit, twins_line
from tumorlens.data.baselines import baselines, write_baselines
from tumorlens.data.dataset import SplitDataset, open_dataset, open_split_dataset
from tumorlens.data.index import write_index
from tumorlens.data.patients import parted
from tumorlens.data.splits import SPLITS
from tumorlens.study.checks import check_files
from tumorlens.study.experiment import Experiment
from tumorlens.study.options import Study
from tumorlens.training import weights as weight_files
from tumorlens.training.devices import Compute, resolve_compute

#: Entries of study.json that must agree for a run folder to be resumed.
_SAME = (
    ("config", "seed"), ("dataset", "fingerprint"), ("weights", "sha256"), ("device", "device"),
    ("device", "precision"), ("device", "convolutions"), ("split", "source"), ("split", "sha256"), ("classes", ""),
)  # fmt: skip
_SPLIT = ("seed", "group_similarity", "group_pattern", "no_group_folders", "folds")
#: The same for folds of one cross-validation.
_SAME_IN_FOLDS = (
    *(("config", name) for name in _SPLIT), ("split", "groups_sha256"),
    ("dataset", "fingerprint"), ("weights", "sha256"), ("classes", ""),
)  # fmt: skip
#: The same for a fold that is finished, whose data are not read again.
_SAME_FOLD = (
    *(("config", name) for name in (*_SPLIT, "fold")), ("split", "groups_sha256"),
    ("device", "device"), ("device", "precision"), ("device", "convolutions"), ("weights", "sha256"),
    ("dataset", "fingerprint"),
)  # fmt: skip


@blocks_given_back()  # so that the search for near-duplicates does not add to the memory of the frozen layers
def prepare(study: Study, *, command: str = "", clock: Clock | None = None, expected: str | None = None) -> Experiment:
    """Check the inputs, open the data set, resolve device and weights, and write the records of the run.

    Writes study.json, index.csv, audit.json and baselines.csv.

    Parameters
    ----------
    command
        The command to record as the way to repeat the run; by default a Python call.
    clock
        Receives the seconds of the steps.
    expected
        Fingerprint that the data set must have, if it is that of an earlier run.

    Raises
    ------
    DataError
        The data set cannot be used, or is not the expected one.
    RunError
        The folder holds another study, or cannot be written; nothing in it is changed.
    """
    clock = clock or Clock()
    check_files(study)
    compute = _resolve_compute(study)
    weights = _find_weights(study)
    log.info(
        f"Device: {compute.device.type} ({compute.device_reason}). Precision: {compute.precision_name} "
        f"({compute.precision_reason}). Weights: {weights.name}."
    )
    if weights.kind == "none":
        log.warning("WARNING: random weights. These accuracies say nothing about ImageNet transfer learning.")
    dataset = open_split_dataset(
        str(study.data),
        study.split_options,
        cache=study.cache_folder,
        seed=study.seed,
        clock=clock,
        table=Path(study.table) if study.table else None,
    )
    if expected and (found := dataset.record()["fingerprint"]) != expected:
        raise DataError(
            f"--data {study.data} is not the data set of {study.run.root}: its fingerprint is {found}, not {expected}.",
            cure="Name the data set that the run was trained with; `tumorlens data check` prints a fingerprint.",
        )
    _log_dataset(study, dataset)
    experiment = Experiment(
        dataclasses.replace(study, on_epoch=None),  # which need not be picklable for the other processes
        study.chosen(), dataset.folder.root, dataset.index.classes, dataset.rows, weights, compute,
    )  # fmt: skip
    write_record(experiment, dataset, command or f"run_study({study!r})")
    with clock.step("audit_s"):
        _write_audit(study.run, dataset)
    return experiment


def is_finished(study: Study) -> bool:
    """Whether the run folder holds this study with all its results.

    The data set is read only if --data has changed since, to see whether it is the same.

    Raises
    ------
    RunError
        The folder holds the results of another study.
    """
    names = {c.name for c in study.chosen()}
    if not (study.run.report.exists() and names <= set(read_json(study.run.comparison)["configurations"])):
        return False
    check_files(study)
    earlier, config = study.run.read_study(), study.record()
    record: Json = {
        "config": config, "split": {"groups_sha256": _groups_hash(study)}, "device": _resolve_compute(study).record(),
        "dataset": earlier["dataset"], "weights": earlier["weights"],
    }  # fmt: skip
    if config["weights"] != earlier["config"]["weights"]:
        record["weights"] = _find_weights(study).record()
    if config["data"] != earlier["config"]["data"]:
        table = Path(study.table) if study.table else None
        opened = open_dataset(str(study.data), cache=study.cache_folder, seed=study.seed, table=table)
        record["dataset"] = opened.record()
    _check_same(study.run, earlier, record, _SAME_FOLD)
    return True


def _resolve_compute(study: Study) -> Compute:
    earlier = study.run.read_study().get("device") if study.run.study.exists() else None
    return resolve_compute(study.device, study.precision, study.convolutions, earlier=earlier)


def _find_weights(study: Study) -> weight_files.Weights:
    try:
        return weight_files.find_weights(str(study.weights))
    except FetchError as error:
        if not study.random_weights_if_unavailable:
            raise
        log.warning(f"WARNING: {error.what}")
        return weight_files.find_weights("none")


def _groups_hash(study: Study) -> str | None:
    """SHA-256, in hex, of the file that names patients: --groups, else --table."""
    file = study.groups or study.table
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _log_dataset(study: Study, dataset: SplitDataset) -> None:
    for note in dataset.identity.notes:
        log.info(note)
    sizes = {split: dataset.assignment.split.count(split) for split in SPLITS}
    log.info(f"{sum(sizes.values()):,} images: " + ", ".join(f"{n:,} {split}" for split, n in sizes.items()) + ".")
    for line in patients_lines(dataset):
        log.info(line)
    if study.split and dataset.assignment.left_out:
        log.info(f"{dataset.assignment.left_out:,} image(s) left out, as {study.split} assigns them to no split.")
    if n := len(dataset.index.unreadable):
        log.info(f"{n} file(s) left out; {study.run.audit} lists the reasons.")


def patients_lines(dataset: SplitDataset) -> list[str]:
    """Where patients come from, and warnings if given splits part some."""
    patients = dataset.assignment.patients
    if patients is None:
        return []
    lines, count = patients.lines(), parted(dataset.rows)
    if patients.joined_from != dataset.options.similarity:
        level = f"from a similarity of {patients.joined_from:.6g} on" if patients.joined_from else "not at all"
        lines.append(
            f"WARNING: near-duplicates from a similarity of {dataset.options.similarity:g} on chain most patients of a "
            f"class; they are joined to groups of patients {level}."
        )
    if count["test_shared"]:
        lines.append(
            f"WARNING: {count['test_shared']:,} of the {count['test']:,} patients in the test also have images in "
            f"training or validation: {count['images']:,} test images. Accuracy is reported with and without them."
        )
    if count["validation_shared"]:
        lines.append(f"WARNING: {count['validation_shared']:,} patient(s) have images in training and in validation.")
    return lines


def write_record(experiment: Experiment, dataset: SplitDataset, command: str) -> None:
    """Write study.json and index.csv; configurations of an earlier call stay recorded.

    Raises
    ------
    RunError
        The folder holds another study; nothing in it is changed.
    """
    study, run = experiment.study, experiment.run
    record: Json = {
        "format": FORMAT,
        "tumorlens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": study.record(),
        "configurations": [dataclasses.asdict(c) for c in experiment.configurations],
        "classes": list(experiment.classes),
        "dataset": dataset.record(),
        "split": dataset.split_record() | {"groups_sha256": _groups_hash(study)},
        "weights": experiment.weights.record(),
        "device": experiment.compute.record(),
        "environment": environment(),
        "git": git_state(),
        "timing": {},
        "peak_memory_gb": None,
    }
    if run.study.exists():
        earlier = run.read_study()
        _check_same(run, earlier, record, _SAME)
        known = {c["name"]: c for c in (*earlier["configurations"], *record["configurations"])}
        record["configurations"] = list(known.values())
        kept = ("created", "timing", "peak_memory_gb", "cross_validation")
        record |= {key: earlier[key] for key in kept if key in earlier}
    for fold in run.root.parent.glob("fold-*/study.json") if study.is_cv else ():
        other = Run(fold.parent)
        _check_same(other, other.read_study(), record, _SAME_IN_FOLDS)
    write_json(run.study, record)
    write_index(run.index, dataset.rows)


def _check_same(run: Run, earlier: Json, record: Json, entries: Any) -> None:
    """RunError if the record of a run folder and that of this study differ in one of these entries."""
    for section, key in entries:
        before, now = earlier[section], record[section]
        if key:
            before, now = before.get(key, now[key]), now[key]  # runs of older versions lack some
        if before != now:
            raise RunError(
                f"{run.root} holds another study: its {f'{section} {key}'.strip()} is {before}, this one's is {now}.",
                cure="Choose another folder with --out, or delete that one.",
            )


def _write_audit(run: Run, dataset: SplitDataset) -> None:
    """Write audit.json and baselines.csv. Label doubts stay in audit.json if all else in it is the same."""
    if not dataset.assignment.split.count("test"):  # a final model: nothing is tested, so nothing can leak
        write_json(run.audit, dataset.audit_record())
        return
    thumbnails = dataset.index.thumbnails
    found = dataset.audit_record() | audit(dataset.assignment, dataset.options.similarity, thumbnails)
    earlier = read_json(run.audit) if run.audit.exists() else {}
    doubts = {"label_doubts": earlier.pop("label_doubts")} if "label_doubts" in earlier else {}
    if earlier == json.loads(json.dumps(found)):
        found = doubts | found
    write_json(run.audit, found)
    write_baselines(run.baselines, baselines(dataset.rows, thumbnails))
    log.info(twins_line(found["twins"]))
