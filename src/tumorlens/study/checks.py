"""Checks of a study's inputs, before any download or long step."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from tumorlens.core.errors import MissingExtraError, RunError
from tumorlens.core.files import probe_writable, read_json
from tumorlens.core.run_folder import Run
from tumorlens.data.columns import read_cells, read_column
from tumorlens.data.fetch import named_path
from tumorlens.study.options import Study
from tumorlens.training.configurations import Configuration


def check_installed(study: Study) -> None:
    """Check that all packages that the study needs are installed.

    Raises
    ------
    MissingExtraError
        One is not.
    """
    extras = dict.fromkeys(("torch", "torchvision", "scipy", "sklearn", "jinja2"), "study")
    extras |= {"kagglehub": "study"} if study.data == "kaggle" and not study.table else {}
    extras |= {"tensorboard": "tensorboard"} if study.tensorboard else {}
    for module, extra in extras.items():
        if find_spec(module) is None:
            raise MissingExtraError(module, extra)


def check_files(study: Study) -> None:
    """Check that the files of a study can be read, and that its folders can be written.

    Raises
    ------
    DataError
        --data, --table, --split or --groups cannot be read, or is not what it should be.
    RunError
        The run folder or the cache cannot be written, or the folder holds a configuration with other values.
    """
    if study.data not in ("kaggle", "phantom"):
        named_path(str(study.data))
    if study.table:
        read_cells(Path(study.table), f"--table {study.table}")
    if study.split:
        read_column(Path(study.split), "split")
    if study.groups:
        read_column(Path(study.groups), "group")
    probe_writable(study.run.root)
    if not study.cache_folder.is_dir():  # an existing one may hold all that is needed, and be read-only
        probe_writable(study.cache_folder, "--cache")
    for configuration in study.chosen():
        is_trained(study.run, configuration)


def is_trained(run: Run, configuration: Configuration) -> bool:
    """Whether this configuration is trained in a run folder.

    Raises
    ------
    RunError
        One of the same name but with other values is.
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
            cure="Choose another folder with --out, or rename the configuration.",
        )
    return True
