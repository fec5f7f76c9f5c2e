"""What a study is made of, as one frozen dataclass; the command line's options are its fields."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tumorlens.core.errors import ConfigError
from tumorlens.core.run_folder import Run
from tumorlens.training.configurations import (
    BUILT_IN,
    Configuration,
    check_seed,
    read_configurations,
)

THRESHOLD = 0.99  # as in datasets.twins, which needs scipy; --help must not wait for that


@dataclass(frozen=True)
class Study:
    """What a study is made of. Every field is an option of `tumorlens study`."""

    data: str = "kaggle"
    """`kaggle` (version 1, pinned), `phantom` (generated slices), a zip as Kaggle ships it, or a folder."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's official ones), `none` (random), or a ResNet18 state-dict file."""
    out: Path | None = None
    """Folder of the run; else runs/<data>-seed<seed>, plus protocol, folds, groups, similarity if not the default."""
    seed: int = 0
    """Seed of split, head and batch order, and of the slices that --data phantom generates."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of convolutions; auto is bf16 where the device has instructions for it, else fp32."""
    convolutions: Literal["auto", "direct"] = "auto"
    """Of layers that learn, on the CPU; auto computes wide 3×3 ones by Winograd's algorithm: faster."""
    configurations: tuple[str, ...] = ("initial", "finetuned")
    """Which to run, in order: initial, finetuned, initial_lbfgs, initial_lbfgs_refit, or names from --config."""
    config: Path | None = None
    """TOML file with [[configuration]] tables: more configurations, or other values for the known ones."""
    finetuned_start: Literal["initial", "imagenet"] = "initial"
    """Whether finetuned starts from initial's best head or from a fresh one."""
    head_solver: Literal["gradient", "lbfgs"] = "gradient"
    """How initial's head is fitted: Adam as published, or L-BFGS to convergence."""
    max_epochs: int | None = None
    """Epochs at most, for all configurations; 60 where absent, as published."""
    protocol: Literal["official", "twin-free-train", "grouped-cv"] = "official"
    """Official split; or Training without twins of Testing; or, by `study` alone, folds over whole groups of images."""
    group_similarity: float = THRESHOLD
    """Thumbnail cosine from which images belong together; 0.95 stands in for missing patient identifiers."""
    groups: Path | None = None
    """CSV with columns path and group (patients), which is used as it is in place of near-duplicates."""
    folds: int = 5
    """Of grouped-cv (`study` alone)."""
    repeats: int = 1
    """Of grouped-cv (`study` alone), each with other random folds."""
    fold: int | None = None
    """Of grouped-cv (`study` alone): run only this one, from 1 on, and pool those that are finished; else all."""
    split: Path | None = None
    """CSV with columns path and split, such as an earlier run's index.csv."""
    cache: Path | None = None
    """Folder for decoded data and activations; $TUMORLENS_CACHE or the user's cache folder where absent."""
    tensorboard: bool = False
    """Also write TensorBoard events into each configuration's folder."""
    random_weights_if_unavailable: bool = False
    """Go on from random weights where the official ones cannot be had, and say so loudly."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ConfigError(f"--max-epochs {self.max_epochs} is below 1.", cure="Say 1 or more.")
        if not 0.5 <= self.group_similarity <= 1:
            raise ConfigError(f"--group-similarity {self.group_similarity} is out of range.", cure="Say 0.5 to 1.")
        if self.folds < 2 or self.repeats < 1:
            raise ConfigError(
                f"--folds {self.folds} with --repeats {self.repeats} is no cross-validation.",
                cure="Say 2 folds or more, and 1 repeat or more.",
            )
        if self.fold is not None and not (self.is_cv and 1 <= self.fold <= self.folds * self.repeats):
            raise ConfigError(
                f"--fold {self.fold} is none of the folds of --protocol {self.protocol}.",
                cure=f"Say 1 to {self.folds * self.repeats} with --protocol grouped-cv.",
            )
        if self.split is not None and self.protocol != "official":
            raise ConfigError(f"--split and --protocol {self.protocol} both split the data.", cure="Leave one out.")

    def record(self) -> dict[str, Any]:
        """As study.json keeps it: the options with paths as text."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @property
    def is_cv(self) -> bool:
        """Whether several folds are to be trained."""
        return self.protocol == "grouped-cv"

    @property
    def run(self) -> Run:
        """The run's folder."""
        if self.out is not None:
            return Run(self.out)
        known = self.data in ("kaggle", "phantom")
        name = f"{self.data if known else Path(self.data).resolve().stem}-seed{self.seed}"
        if self.protocol != "official":
            name += f"-{self.protocol}"
        if self.is_cv and self.folds != 5:
            name += f"-{self.folds}"
        if self.groups is not None:
            name += f"-{self.groups.stem}"
        if self.group_similarity != THRESHOLD:
            name += f"-{self.group_similarity:g}"
        return Run(Path("runs") / name)

    def chosen(self) -> tuple[Configuration, ...]:
        """The configurations to run, with the study's overrides.

        Raises
        ------
        ConfigError
            An unknown name, or a start that is not trained before.
        """
        named = dict(BUILT_IN)
        listed = read_configurations(self.config) if self.config else ()
        named |= {c.name: c for c in listed}
        wanted = list(dict.fromkeys((*self.configurations, *(c.name for c in listed))))
        if unknown := [name for name in wanted if name not in named]:
            raise ConfigError(
                f"Configuration {unknown[0]!r} is unknown.",
                cure=f"Choose from {', '.join(named)}, or describe it in a TOML file with --config.",
            )
        if not wanted:
            raise ConfigError("No configuration is named.", cure="Say --configurations initial finetuned.")
        chosen = []
        for configuration in (named[name] for name in wanted):
            changes: dict[str, Any] = {}
            if configuration.name == "finetuned" and self.finetuned_start != "initial":
                changes["start"] = self.finetuned_start
            if configuration.name == "initial" and self.head_solver != "gradient":
                changes["head_solver"] = self.head_solver
            if self.max_epochs is not None:
                changes["max_epochs"] = self.max_epochs
            chosen.append(dataclasses.replace(configuration, **changes))
        return tuple(chosen)
