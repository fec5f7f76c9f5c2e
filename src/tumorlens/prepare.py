"""From options to a workbench: data fetched, checked, indexed and split, weights and device found."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens import __version__
from tumorlens.allocator import blocks_given_back, garbage_left
from tumorlens.configurations import Configuration, check_order
from tumorlens.errors import FetchError, MissingExtraError, RunError
from tumorlens.options import Study
from tumorlens.progress import Clock, say
from tumorlens.runs import Json, Run, cache_dir, environment, git_state, read_json, write_json

if TYPE_CHECKING:
    from tumorlens.workbench import Workbench


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
            from tumorlens import devices, model
            from tumorlens.convolutions import by_winograd
            from tumorlens.workbench import Workbench
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "torch", "study") from None
        from tumorlens.audit import audit, baselines, twins_line
        from tumorlens.datasets.fetch import fetch, named_path
        from tumorlens.datasets.index import build_index, write_index
        from tumorlens.datasets.protocols import assign
        from tumorlens.leakage import write_baselines

    run, configurations = study.run, study.chosen()
    check_order(configurations)
    for configuration in configurations:
        is_trained(run, configuration)
    # Choices that can fail at once come before work that takes minutes.
    if study.data not in ("kaggle", "phantom"):
        named_path(study.data)
    device, device_why = devices.choose_device(study.device)
    precision, precision_why = devices.choose_precision(study.precision, device, _begun(run, device.type))
    threads = devices.keep_to_cores()
    precision_name = {"float32": "fp32", "bfloat16": "bf16"}[str(precision).removeprefix("torch.")]
    fast = by_winograd(study.convolutions, device)
    if write:
        probe_writable(run.root)
    weights = _weights(study, model)
    say(
        f"Device: {device.type} ({device_why}). Precision: {precision_name} ({precision_why}). Weights: {weights.name}."
    )
    if weights.kind == "none":
        say("WARNING: random weights. These accuracies say nothing about ImageNet transfer learning.")
    cache = study.cache or cache_dir()
    with clock.step("fetch_s"):
        folder = fetch(study.data, cache=cache, seed=study.seed)
    with clock.step("index_s"):
        index = build_index(folder, cache)
        identity = identity_of(folder, index)
    with clock.step("twins_s"):
        assignment = assign(
            index, protocol=study.protocol, seed=study.seed, similarity=study.group_similarity,
            split_file=study.split, groups_file=study.groups, folds=study.folds, fold=study.fold or 1,
        )  # fmt: skip
        split = assignment.split
    for line in identity.notes:
        say(line)
    sizes = {part: split.count(part) for part in ("train", "validation", "test")}
    used = sum(sizes.values())
    say(f"{used:,} images: " + ", ".join(f"{n:,} {part}" for part, n in sizes.items()) + ".")
    if study.split and assignment.left_out:
        say(f"{assignment.left_out:,} image(s) left out, as {study.split} gives them no part.")
    if index.unreadable:
        say(f"{len(index.unreadable)} file(s) left out; each with its reason in {run.audit}.")
    record: Json = {
        "tumorlens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or f"run_study({study!r})",
        "config": study.record(),
        "configurations": [asdict(c) for c in configurations],
        "classes": list(index.classes),
        "dataset": dataset_record(folder, index, identity),
        "split": {**sizes, "seed": study.seed, "source": split.source, "test_source": split.test_source,
                  "protocol": study.protocol, "left_out": assignment.left_out, "sha256": split_hash(split.rows)},
        "weights": weights.record(),
        "device": {"device": device.type, "why": device_why, "precision": precision_name,
                   "precision_why": precision_why, "name": devices.device_name(device),
                   "convolutions": "winograd" if fast else "direct",
                   "threads": threads},
        "environment": environment(),
        "git": git_state(),
        "timing": {},
        "peak_memory_gb": None,
    }  # fmt: skip
    record = _merge(run, record)
    if write:
        write_json(run.study, record)
        write_index(run.index, split.rows)
        with clock.step("audit_s"):
            audited = audit(assignment, study.group_similarity)
            found = audit_record(index, identity) | audited
            write_json(run.audit, _doubts_of(run, found) | found)
            write_baselines(run.baselines, baselines(split.rows, index.thumbnails))
        say(twins_line(audited["twins"]["all"]))
    return Workbench(run, study, configurations, folder, index.classes, split.rows, weights, device, precision, cache)


def is_trained(run: Run, configuration: Configuration) -> bool:
    """Whether this very configuration was trained in this run.

    Raises
    ------
    RunError
        One of that name but with other values was.
    """
    path = run.training(configuration.name)
    if not path.exists():
        return False
    trained = Configuration.from_record(read_json(path)["configuration"])
    before, now = (json.loads(json.dumps(asdict(c))) for c in (trained, configuration))
    if before != now:
        key = next(k for k in now if before.get(k) != now[k])
        raise RunError(
            f"{path.parent} holds {configuration.name} with {key} = {before.get(key)}, not {now[key]}.",
            cure="Name another folder with --out, or give the configuration another name.",
        )
    return True


def split_hash(rows: Any) -> str:
    """SHA-256 over which image has which part, hex."""
    lines = sorted(f"{row.path}\t{row.split}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _doubts_of(run: Run, found: Json) -> Json:
    """The doubts about labels that audit.json holds already, where all else in it is the same."""
    if not run.audit.exists():
        return {}
    before = read_json(run.audit)
    doubts = before.pop("label_doubts", None)
    return {"label_doubts": doubts} if doubts is not None and before == json.loads(json.dumps(found)) else {}


def _weights(study: Study, model: Any) -> Any:
    try:
        return model.find_weights(study.weights)
    except FetchError as error:
        if not study.random_weights_if_unavailable:
            raise
        say(f"WARNING: {error.what}")
        return model.find_weights("none")


def identity_of(folder: Any, index: Any) -> Any:
    """Which known data set an index is, as far as counts, names and hashes tell."""
    from tumorlens.datasets.sheets import identify

    return identify(
        index.counts(),
        (row.sha256 for row in index.rows),
        names=(f"{row.part}/{row.label}/{Path(row.path).name}" for row in index.rows),
        generated=folder.generated,
    )


def dataset_record(folder: Any, index: Any, identity: Any) -> Json:
    """The part of study.json that tells which data set it is."""
    from tumorlens.datasets.sheets import fingerprint

    sheet = identity.sheet
    return {
        "name": sheet.title if sheet else folder.root.name,
        "sheet": sheet.key if sheet else None,
        "root": str(folder.root.resolve()),
        "source": folder.source,
        "licence": sheet.licence if sheet else "",
        "fingerprint": fingerprint(row.sha256 for row in index.rows),
        "n_images": len(index.rows),
        "counts": index.counts(),
        "comparable_to_published": identity.comparable,
        "notes": list(identity.notes),
        "excluded": len(index.unreadable),
    }


def audit_record(index: Any, identity: Any) -> Json:
    """audit.json: what was left out and why, and files that differ only in name."""
    return {
        "unreadable": [asdict(u) for u in index.unreadable],
        "same_content": index.same_content(),
        "colour_images": sum(row.colour > 0.001 for row in index.rows),
        "datasheet": {
            "sheet": identity.sheet.key if identity.sheet else None,
            "exact": identity.exact,
            "comparable": identity.comparable,
            "notes": list(identity.notes),
            "missing": list(identity.missing),
            "extra": list(identity.extra),
        },
    }


def _begun(run: Run, device: str) -> str:
    """The precision in which a run is already there on that kind of device; empty for none."""
    before = read_json(run.study).get("device", {}) if run.study.exists() else {}
    return str(before.get("precision", "")) if before.get("device") == device else ""


#: What must agree for a run's folder to be gone on with.
_SAME = (
    ("config", "seed"), ("dataset", "fingerprint"), ("weights", "sha256"), ("device", "device"),
    ("device", "precision"), ("device", "convolutions"), ("split", "source"), ("split", "sha256"), ("classes", None),
)  # fmt: skip


def _merge(run: Run, record: Json) -> Json:
    """Join with a study.json that is already there; refuse a different study's folder."""
    if not run.study.exists():
        return record
    before = read_json(run.study)
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


def probe_writable(root: Path, option: str = "--out") -> None:
    """Fail now, not after an hour, where a run's folder cannot be written.

    Raises
    ------
    RunError
        It cannot.
    """
    if root.exists() and not root.is_dir():
        raise RunError(f"{option} {root} is a file.", cure="Name a folder.")
    probe = root / ".probe"
    try:
        write_json(probe, {})
    except RunError as error:  # the user named the folder, not the probe in it
        raise RunError(error.what.replace(str(probe), str(root)), cure=error.cure) from None
    probe.unlink()
