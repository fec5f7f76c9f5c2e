"""Checks of a study's inputs, before any download or long step."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tumorlens.core.errors import MissingExtraError
from tumorlens.core.files import cache_dir, probe_writable
from tumorlens.data.fetch import named_path
from tumorlens.data.splits import read_column
from tumorlens.study.options import Study


def check_installed(study: Study) -> None:
    """Check that all packages that the study needs are installed.

    Raises
    ------
    MissingExtraError
        One is not.
    """
    extras = dict.fromkeys(("torch", "torchvision", "scipy", "sklearn", "jinja2"), "study")
    if study.data == "kaggle":
        extras["kagglehub"] = "study"
    if study.tensorboard:
        extras["tensorboard"] = "tensorboard"
    for module, extra in extras.items():
        if find_spec(module) is None:
            raise MissingExtraError(module, extra)


def check_files(study: Study) -> None:
    """Check that the files of a study can be read, and that its folders can be written.

    Raises
    ------
    DataError
        --data, --split or --groups cannot be read, or is not what it should be.
    RunError
        The run folder or the cache cannot be written.
    """
    if study.data not in ("kaggle", "phantom"):
        named_path(str(study.data))
    if study.split:
        read_column(Path(study.split), "split")
    if study.groups:
        read_column(Path(study.groups), "group")
    probe_writable(study.run.root)
    cache = Path(study.cache) if study.cache else cache_dir()
    if not cache.is_dir():  # an existing one may hold all that is needed, and be read-only
        probe_writable(cache, "--cache")
