"""Configurations as data: which layers are trained, from which initial weights, and with which optimiser.

Two of them, `initial` and `finetuned`, are the published pair. Adding another takes a few lines of TOML:

    [[configuration]]
    name = "layer4"
    learns = ["layer4", "fc"]
    learning_rate = 0.0001
    start = "initial"
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, get_type_hints

from tumorlens.core.errors import ConfigError
from tumorlens.training.architecture import BOUNDARIES, STAGES

OPTIMIZERS = ("adam", "adamw", "sgd")
SOLVERS = ("gradient", "lbfgs")
#: The types of TOML values that a field of each type accepts.
_TOML: dict[Any, tuple[type, ...]] = {
    str: (str,), bool: (bool,), float: (int, float), int: (int,), int | None: (int,), tuple[str, ...]: (list,),
}  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """One way to train the network."""

    name: str
    """Folder in the run and name in every table: letters, digits, `.`, `_`, `-`."""
    learns: tuple[str, ...]
    """Stages whose weights change, of STAGES; the others stay frozen, BatchNorm statistics included."""
    learning_rate: float
    """Step size of the optimiser; no schedule."""
    start: str = "imagenet"
    """`imagenet`: the study's weights and a fresh head; else an earlier configuration's best weights."""
    optimizer: str = "adam"
    """`adam`, `adamw` or `sgd` (momentum 0.9)."""
    weight_decay: float = 0.0
    """L2 penalty of the optimiser."""
    batch_size: int = 32
    """Images a step."""
    max_epochs: int = 60
    """Epochs at most."""
    patience: int = 5
    """Stop after this many epochs without a lower validation loss."""
    head_solver: str = "gradient"
    """`gradient`: the optimiser above; `lbfgs`: the head alone solved to convergence."""
    refit: bool = False
    """lbfgs: with the strength that validation chose, solve once more on training and validation images together.

    Validation figures of such a head are training figures."""
    seed: int | None = None
    """Seed of head and batch order; by default the study's."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Configuration:
        """Create one from a run's JSON; a field added since that run has its default value."""
        known = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
        return cls(**values)

    def __post_init__(self) -> None:
        where = f"Configuration {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) or self.name == "imagenet":
            raise ConfigError(
                f"{where}: the name must be 1 to 64 letters, digits, '.', '_' or '-', and not 'imagenet'.",
                cure="Rename it.",
            )
        if self.learns == ("all",):
            object.__setattr__(self, "learns", STAGES)
        unknown = [stage for stage in self.learns if stage not in STAGES]
        if unknown or not self.learns:
            raise ConfigError(
                f"{where}: learns = {list(self.learns)}, which names no stage or an unknown one.",
                cure=f'Choose from {", ".join(STAGES)}, or say learns = ["all"].',
            )
        object.__setattr__(self, "learns", tuple(stage for stage in STAGES if stage in self.learns))
        numbers = ("learning_rate", "batch_size", "max_epochs", "patience")
        choices = (("optimizer", OPTIMIZERS), ("head_solver", SOLVERS))
        lbfgs = self.head_solver == "lbfgs"
        for wrong, what, cure in (
            *(
                (getattr(self, f) not in known, f"{f} = {getattr(self, f)!r} is unknown.",
                 f"Choose from {', '.join(known)}.") for f, known in choices
            ),
            (lbfgs and self.learns != ("fc",),
             f"head_solver = 'lbfgs' solves the head alone, but learns = {list(self.learns)}.",
             'Use learns = ["fc"], or head_solver = "gradient".'),
            (self.refit and not lbfgs,
             "refit needs head_solver = 'lbfgs': epochs cannot be chosen without validation images.",
             "Leave refit out."),
            *(
                (not 0 < getattr(self, f) < inf, f"{f} = {getattr(self, f)} is not a positive number.",
                 "Use a number above 0.") for f in numbers
            ),
            (not 0 <= self.weight_decay < inf, f"weight_decay = {self.weight_decay} is negative.", "Use 0 or more."),
            (self.batch_size == 1 and self.learns != ("fc",),
             "BatchNorm cannot learn from batches of 1.", "Use batch_size = 2 or more."),
        ):  # fmt: skip
            if wrong:
                raise ConfigError(f"{where}: {what}", cure=cure)
        if self.seed is not None:
            check_seed(self.seed, f"{where}: seed =")

    @property
    def checkpoint(self) -> str:
        """File name of the best weights; the published pair keeps its published names."""
        suffix = "" if self.name == "initial" else f"_{self.name}"
        return f"best_brain_tumor_resnet18{suffix}.pth"

    @property
    def frozen_prefix(self) -> str:
        """Boundary before the first trainable stage, at which features can be cached."""
        return list(BOUNDARIES)[STAGES.index(self.learns[0])]


def check_seed(seed: int, name: str = "--seed") -> None:
    """Raise a ConfigError unless `seed` is valid for both NumPy and PyTorch."""
    if not 0 <= seed < 2**31:
        raise ConfigError(f"{name} {seed} is out of range.", cure="Use 0 to 2147483647.")


INITIAL = Configuration("initial", ("fc",), learning_rate=1e-3)
FINETUNED = Configuration("finetuned", ("layer3", "layer4", "fc"), learning_rate=1e-4, start="initial")
INITIAL_LBFGS = Configuration("initial_lbfgs", ("fc",), learning_rate=1e-3, head_solver="lbfgs")
INITIAL_LBFGS_REFIT = dataclasses.replace(INITIAL_LBFGS, name="initial_lbfgs_refit", refit=True)
BUILT_IN = {c.name: c for c in (INITIAL, FINETUNED, INITIAL_LBFGS, INITIAL_LBFGS_REFIT)}


def read_configurations(path: Path) -> tuple[Configuration, ...]:
    """Read `[[configuration]]` tables from a TOML file. A built-in name uses that configuration's values as defaults.

    Raises
    ------
    ConfigError
        The file is missing or not valid TOML, a key is unknown, or a value has the wrong type or range.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}).", cure="Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}.", cure="Mend that line.") from None
    tables = content.pop("configuration", None)
    if content or not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        extra = f" (found {', '.join(content)})" if content else ""
        raise ConfigError(
            f"--config {path} must hold [[configuration]] tables and nothing else{extra}.",
            cure="Begin each with a line [[configuration]]; see `tumorlens study --help`.",
        )
    found = tuple(_from_table(table, path) for table in tables)
    names = [c.name for c in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--config {path} names {repeated[0]!r} twice.", cure="Give each its own name.")
    return found


def _from_table(table: dict[str, Any], path: Path) -> Configuration:
    name = table.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"--config {path}: a [[configuration]] has no name.", cure='Add name = "...".')
    types = get_type_hints(Configuration)
    for key, value in table.items():
        if key not in types:
            raise ConfigError(
                f"--config {path}: configuration {name!r} has an unknown key {key!r}.",
                cure=f"Known keys: {', '.join(types)}.",
            )
        if type(value) not in _TOML[types[key]] or (key == "learns" and not all(type(item) is str for item in value)):
            raise ConfigError(
                f"--config {path}: configuration {name!r} has {key} = {value!r} of the wrong type.",
                cure="Strings stand in quotes, layers in a list of strings, numbers bare.",
            )
    values = {**table, **({"learns": tuple(table["learns"])} if "learns" in table else {})}
    if name in BUILT_IN:
        return dataclasses.replace(BUILT_IN[name], **values)
    for key in ("learns", "learning_rate"):
        if key not in values:
            raise ConfigError(f"--config {path}: configuration {name!r} lacks {key!r}.", cure=f"Add {key} = ...")
    return Configuration(**values)


def check_order(configurations: tuple[Configuration, ...]) -> None:
    """Check that each `start` is `imagenet` or a configuration earlier in the list.

    Raises
    ------
    ConfigError
        A `start` is unknown, comes later in the list, or was trained on the validation images.
    """
    seen = {"imagenet"}
    refits = {configuration.name for configuration in configurations if configuration.refit}
    for configuration in configurations:
        if configuration.start in refits:
            raise ConfigError(
                f"Configuration {configuration.name!r} starts from {configuration.start!r}, which was trained on the "
                "validation images: they could not choose its epoch.",
                cure="Start from another one.",
            )
        if configuration.start not in seen:
            raise ConfigError(
                f"Configuration {configuration.name!r} starts from {configuration.start!r}, "
                f"which is not trained before it ({', '.join(sorted(seen))}).",
                cure='List that one first, or say start = "imagenet".',
            )
        seen.add(configuration.name)
