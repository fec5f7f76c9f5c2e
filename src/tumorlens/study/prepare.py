"""From options to a workbench: data fetched, checked, indexed and split, weights and device found."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.core.environment import environment, git_state
from tumorlens.core.errors import FetchError, MissingExtraError, RunError
from tumorlens.core.files import (
    Json,
    cache_dir,
    probe_writable,
    read_json,
    write_json,
)
from tumorlens.core.memory import blocks_given_back, garbage_left
from tumorlens.core.progress import Clock, log
from tumorlens.core.run_folder import FORMAT, Run
from tumorlens.core.version import __version__
from tumorlens.study.experiment import is_trained
from tumorlens.study.options import Study
from tumorlens.training.configurations import check_order

if TYPE_CHECKING:
    from tumorlens.study.experiment import Workbench


@blocks_given_back()  # else what the search for twins needed adds to what the frozen layers do
def prepare(study: Study, *, command: str = "", clock: Clock | None = None, write: bool = True) -> Workbench:
    """Fetch, check, index and split the data, find the weights, and write study.json, index.csv, audit.json.

    Without `write` a run's folder is checked against all that, and stays as it is.

    Raises
    ------
    RunError
        The folder holds another study, or cannot be written; nothing in it is changed.
    """
    clock = clock or Clock()
    with clock.step("imports_s"), garbage_left():
        try:
            from tumorlens.study.experiment import Workbench
            from tumorlens.training import weights as weight_files
            from tumorlens.training.devices import resolve_compute
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "torch", "study") from None
        from tumorlens.data.audit import audit, twins_line
        from tumorlens.data.baselines import baselines, write_baselines
        from tumorlens.data.dataset import open_split_dataset
        from tumorlens.data.fetch import named_path
        from tumorlens.data.index import write_index
        from tumorlens.data.protocols import SplitOptions

    run, configurations = study.run, study.chosen()
    check_order(configurations)
    for configuration in configurations:
        is_trained(run, configuration)
    # Choices that can fail at once come before work that takes minutes.
    if study.data not in ("kaggle", "phantom"):
        named_path(str(study.data))
    earlier = run.read_study().get("device") if run.study.exists() else None
    compute = resolve_compute(study.device, study.precision, study.convolutions, earlier=earlier)
    if write:
        probe_writable(run.root)
    weights = _weights(study, weight_files)
    log.info(
        f"Device: {compute.device.type} ({compute.device_reason}). Precision: {compute.precision_name} "
        f"({compute.precision_reason}). Weights: {weights.name}."
    )
    if weights.kind == "none":
        log.warning("WARNING: random weights. These accuracies say nothing about ImageNet transfer learning.")
    cache = Path(study.cache) if study.cache else cache_dir()
    options = SplitOptions(
        protocol=study.protocol,
        similarity=study.group_similarity,
        split_file=Path(study.split) if study.split else None,
        groups_file=Path(study.groups) if study.groups else None,
        folds=study.folds,
        fold=study.fold or 1,
    )
    dataset = open_split_dataset(str(study.data), options, cache=cache, seed=study.seed, clock=clock)
    index, assignment = dataset.index, dataset.assignment
    for line in dataset.identity.notes:
        log.info(line)
    sizes = {part: assignment.split.count(part) for part in ("train", "validation", "test")}
    used = sum(sizes.values())
    log.info(f"{used:,} images: " + ", ".join(f"{n:,} {part}" for part, n in sizes.items()) + ".")
    if study.split and assignment.left_out:
        log.info(f"{assignment.left_out:,} image(s) left out, as {study.split} gives them no part.")
    if index.unreadable:
        log.info(f"{len(index.unreadable)} file(s) left out; each with its reason in {run.audit}.")
    record: Json = {
        "format": FORMAT,
        "tumorlens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or f"run_study({study!r})",
        "config": study.record(),
        "configurations": [asdict(c) for c in configurations],
        "classes": list(index.classes),
        "dataset": dataset.record(),
        "split": dataset.split_record(),
        "weights": weights.record(),
        "device": compute.record(),
        "environment": environment(),
        "git": git_state(),
        "timing": {},
        "peak_memory_gb": None,
    }  # fmt: skip
    record = _merge(run, record)
    if write:
        write_json(run.study, record)
        write_index(run.index, dataset.rows)
        with clock.step("audit_s"):
            audited = audit(assignment, study.group_similarity)
            found = dataset.audit_record() | audited
            write_json(run.audit, _doubts_of(run, found) | found)
            write_baselines(run.baselines, baselines(dataset.rows, index.thumbnails))
        log.info(twins_line(audited["twins"]["all"]))
    return Workbench(run, study, configurations, dataset.folder, index.classes, dataset.rows, weights, compute, cache)


def _doubts_of(run: Run, found: Json) -> Json:
    """The doubts about labels that audit.json holds already, where all else in it is the same."""
    if not run.audit.exists():
        return {}
    before = read_json(run.audit)
    doubts = before.pop("label_doubts", None)
    return {"label_doubts": doubts} if doubts is not None and before == json.loads(json.dumps(found)) else {}


def _weights(study: Study, weight_files: Any) -> Any:
    try:
        return weight_files.find_weights(study.weights)
    except FetchError as error:
        if not study.random_weights_if_unavailable:
            raise
        log.warning(f"WARNING: {error.what}")
        return weight_files.find_weights("none")


#: What must agree for a run's folder to be gone on with.
_SAME = (
    ("config", "seed"), ("dataset", "fingerprint"), ("weights", "sha256"), ("device", "device"),
    ("device", "precision"), ("device", "convolutions"), ("split", "source"), ("split", "sha256"), ("classes", None),
)  # fmt: skip


def _merge(run: Run, record: Json) -> Json:
    """Join with a study.json that is already there; refuse a different study's folder."""
    if not run.study.exists():
        return record
    before = run.read_study()
    for section, key in _SAME:
        was, now = before.get(section), record[section]
        if key is not None:
            was, now = (was or {}).get(key), now[key]
        if was is None and key == "sha256" and section == "split":
            continue  # a run of an older version
        if was != now:
            name = f"{section} {key}" if key else section
            raise RunError(
                f"{run.root} holds another study: its {name} is {was}, this one's is {now}.",
                cure="Name another folder with --out, or delete that one.",
            )
    known = {c["name"]: c for c in before["configurations"]}
    record["configurations"] = list((known | {c["name"]: c for c in record["configurations"]}).values())
    record["created"] = before["created"]
    record["timing"], record["peak_memory_gb"] = before["timing"], before["peak_memory_gb"]
    return record
