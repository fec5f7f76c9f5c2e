"""The options of a study as one frozen dataclass. The command line takes its options and their help from it."""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import Json, cache_dir, expanded
from tumorlens.core.run_folder import Run
from tumorlens.data.columns import check_pattern
from tumorlens.training.configurations import BUILT_IN, Configuration, check_order, check_seed, read_configurations

if TYPE_CHECKING:
    from tumorlens.data.protocols import SplitOptions

    FilePath = str | Path
    Source = str | Path
    Named = str | Configuration
else:  # what the command line converts its words to
    FilePath, Source, Named = Path, str, str

THRESHOLD = 0.99  # as in data.near_duplicates, whose import is too slow for --help


@dataclass(frozen=True)
class Study:
    """What to run: a data set, how it is split, and the configurations to train.

    All values are checked when a Study is made. Paths may be `str` or `Path`; `configurations` may hold
    `Configuration` objects beside names.

    Parameters
    ----------
    data
        kaggle (version 1, pinned), phantom (generated slices), or a zip or folder with one folder per class.
    table
        CSV file that names files or series (columns path or series, class, and others), such as DICOM and NIfTI; paths
        are relative to its folder or to --data.
    weights
        imagenet (torchvision's official weights), none (random), or a file with a ResNet18 state dict.
    out
        Run folder; default: runs/DATA-seedSEED, plus protocol, folds, groups and similarity if not the default.
    seed
        Seed of split, initial head, batch order, and the slices that --data phantom generates.
    device
        Device to compute on; auto is cuda if there is one.
    precision
        Precision of convolutions; auto is bf16 if the device has instructions for it.
    convolutions
        CPU convolution algorithm for trainable layers: Winograd (auto, faster) or direct.
    configurations
        What to train, in order: initial, finetuned, initial_lbfgs, initial_lbfgs_refit, or names from --config.
    config
        TOML file with [[configuration]] tables: new configurations, or other values for built-in ones.
    finetuned_start
        Start of finetuned: the best weights of initial, or those of --weights with a new head.
    head_solver
        How the head of initial is fitted: Adam as published, or L-BFGS to convergence.
    max_epochs
        Maximum number of epochs of every configuration; default: 60, as published.
    protocol
        Split as published; or without training images that have a twin in Testing; or folds (study only).
    group_similarity
        Thumbnail cosine from which images form a group; 0.95 approximates missing patient identifiers.
    groups
        CSV file with columns path (or file name) and group (or patient): no split separates a patient's images.
    group_pattern
        Regular expression whose one group finds the patient in each file name, such as '^(P[0-9]+)_'.
    no_group_folders
        Do not take ten or more folders below the classes as patients.
    folds
        Number of folds of grouped-cv (study only).
    repeats
        Repetitions of grouped-cv (study only), each with other random folds.
    fold
        Train only this fold of grouped-cv (study only), from 1, and pool all finished ones.
    final_model
        After the folds of grouped-cv (study only), train a model to use on the images of all folds.
    split
        CSV file with columns path and split, such as index.csv of an earlier run.
    cache
        Folder for decoded images and features; default: $TUMORLENS_CACHE, or one in the user's cache folder.
    tensorboard
        Also write TensorBoard events to the folder of each configuration.
    random_weights_if_unavailable
        Warn and start from random weights if the official ones cannot be downloaded.
    on_epoch
        Python only: called with the record of each epoch, those before a resumption included. Keys: configuration,
        epoch, train_loss, train_accuracy, validation_loss, validation_accuracy, seconds, images_per_s, best.

    Raises
    ------
    ConfigError
        An invalid value, an unknown configuration, or one that starts from another that is not trained before it.
    """

    data: Source = "kaggle"
    _: KW_ONLY
    table: FilePath | None = None
    weights: Source = "imagenet"
    out: FilePath | None = None
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    convolutions: Literal["auto", "direct"] = "auto"
    configurations: tuple[Named, ...] = ("initial", "finetuned")
    config: FilePath | None = None
    finetuned_start: Literal["initial", "imagenet"] = "initial"
    head_solver: Literal["gradient", "lbfgs"] = "gradient"
    max_epochs: int | None = None
    protocol: Literal["official", "twin-free-train", "grouped-cv"] = "official"
    group_similarity: float = THRESHOLD
    groups: FilePath | None = None
    group_pattern: str | None = None
    no_group_folders: bool = False
    folds: int = 5
    repeats: int = 1
    fold: int | None = None
    final_model: bool = False
    split: FilePath | None = None
    cache: FilePath | None = None
    tensorboard: bool = False
    random_weights_if_unavailable: bool = False
    on_epoch: Callable[[Json], None] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        types = get_type_hints(Study)
        for field in dataclasses.fields(Study):
            object.__setattr__(self, field.name, _converted(field.name, types[field.name], getattr(self, field.name)))
        check_seed(self.seed)
        for wrong, what, cure in self._rules():
            if wrong:
                raise ConfigError(what, cure=cure)
        if self.group_pattern is not None:
            check_pattern(self.group_pattern)
        check_order(self.chosen())

    def _rules(self) -> tuple[tuple[bool, str, str], ...]:
        """Whether each rule on values is broken, the message, and the cure."""
        n = self.folds * self.repeats
        return (
            (self.max_epochs is not None and self.max_epochs < 1,
             f"--max-epochs {self.max_epochs} is below 1.", "Use 1 or more."),
            (not 0.5 <= self.group_similarity <= 1,
             f"--group-similarity {self.group_similarity} is out of range.", "Use 0.5 to 1."),
            (self.folds < 2 or self.repeats < 1,
             f"--folds {self.folds} with --repeats {self.repeats} is not a cross-validation.",
             "Use at least 2 folds and 1 repeat."),
            (self.fold is not None and not (self.is_cv and 1 <= self.fold <= n),
             f"--protocol {self.protocol} has no --fold {self.fold}.",
             f"Use 1 to {n} with --protocol grouped-cv."),
            (self.final_model and (not self.is_cv or self.fold is not None),
             "--final-model follows all folds of a cross-validation.",
             "Use it with --protocol grouped-cv and without --fold."),
            (self.groups is not None and self.group_pattern is not None,
             "--groups and --group-pattern both name patients.", "Leave one of them out."),
            (self.split is not None and self.protocol != "official",
             f"--split and --protocol {self.protocol} both split the data.", "Leave one of them out."),
            (self.on_epoch is not None and not callable(self.on_epoch),
             "on_epoch is not a function.", "Use a function that takes the record of an epoch."),
        )  # fmt: skip

    @classmethod
    def from_record(cls, config: Mapping[str, Any], out: Path) -> Study:
        """From `record()`, such as a run's study.json holds it; `out` is where the run folder is now."""
        values = {field.name: config[field.name] for field in dataclasses.fields(cls) if field.name in config}
        values["configurations"] = [
            c if isinstance(c, str) else Configuration.from_record(c) for c in config.get("configurations", ())
        ]
        return cls(**values | {"out": out})

    def record(self) -> Json:
        """The fields as study.json holds them: paths absolute, configurations by name or with all their values."""
        values = dataclasses.asdict(dataclasses.replace(self, on_epoch=None))
        for name, words in (("data", ("kaggle", "phantom")), ("weights", ("imagenet", "none"))):
            values[name] = values[name] if values[name] in words else Path(values[name]).expanduser()
        return {
            name: str(value.absolute()) if isinstance(value, Path) else value
            for name, value in values.items() if name != "on_epoch"
        }  # fmt: skip

    @property
    def split_options(self) -> SplitOptions:
        """How the images are grouped and split."""
        from tumorlens.data.protocols import SplitOptions

        return SplitOptions(
            protocol=self.protocol,
            similarity=self.group_similarity,
            split_file=Path(self.split) if self.split else None,
            groups_file=Path(self.groups) if self.groups else None,
            group_pattern=self.group_pattern,
            group_folders=not self.no_group_folders,
            folds=self.folds,
            fold=0 if self.final_model else self.fold or 1,
        )

    @property
    def is_cv(self) -> bool:
        """Whether this is a cross-validation."""
        return self.protocol == "grouped-cv"

    @property
    def cache_folder(self) -> Path:
        """Folder for decoded images and features."""
        return Path(self.cache) if self.cache else cache_dir()

    @property
    def run(self) -> Run:
        """The run folder."""
        if self.out is not None:
            return Run(Path(self.out))
        named = self.table or self.data
        name = named if named in ("kaggle", "phantom") else Path(named).resolve().stem
        parts = (
            f"{name}-seed{self.seed}",
            self.protocol if self.protocol != "official" else "",
            f"{self.folds}" if self.is_cv and self.folds != 5 else "",
            Path(self.groups).stem if self.groups else "pattern" if self.group_pattern else "",
            f"{self.group_similarity:g}" if self.group_similarity != THRESHOLD else "",
        )
        return Run(Path("runs", "-".join(part for part in parts if part)))

    def chosen(self) -> tuple[Configuration, ...]:
        """The configurations to run, with the study's overrides.

        Raises
        ------
        ConfigError
            No configuration, an unknown name, or two configurations of the same name.
        """
        listed = read_configurations(Path(self.config)) if self.config else ()
        described = {*listed, *(c for c in self.configurations if isinstance(c, Configuration))}
        named = BUILT_IN | {c.name: c for c in described}
        names = [c if isinstance(c, str) else c.name for c in (*self.configurations, *listed)]
        if unknown := [name for name in names if name not in named]:
            raise ConfigError(
                f"Configuration {unknown[0]!r} is unknown.",
                cure=f"Choose from {', '.join(named)}, or describe it in a TOML file with --config.",
            )
        if len({c.name for c in described}) < len(described):
            raise ConfigError("Two different configurations have the same name.", cure="Rename one of them.")
        if not names:
            raise ConfigError("No configuration is named.", cure="Use --configurations initial finetuned.")
        changes: dict[str, dict[str, Any]] = {
            "finetuned": {} if self.finetuned_start == "initial" else {"start": self.finetuned_start},
            "initial": {} if self.head_solver == "gradient" else {"head_solver": self.head_solver},
        }
        every: dict[str, Any] = {} if self.max_epochs is None else {"max_epochs": self.max_epochs}
        return tuple(dataclasses.replace(named[n], **changes.get(n, {}), **every) for n in dict.fromkeys(names))


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: operator.index, float: float, str: os.fspath, Path: expanded,
}  # fmt: skip


def _converted(name: str, kind: Any, value: Any) -> Any:
    """The value of a field in its type; ConfigError if it has another type or is not one of the choices."""
    option = f"--{name.replace('_', '-')}"
    kinds = (True, False) if kind is bool else get_args(kind) or (kind,)
    if kind is bool or get_origin(kind) is Literal:
        if value not in kinds:
            raise ConfigError(f"{option} {value} is not valid.", cure=f"Choose from {', '.join(map(str, kinds))}.")
        return value
    if kinds[0] not in _CONVERTERS or (value is None and type(None) in kinds):
        return value
    try:
        if name == "configurations":
            values = (value,) if isinstance(value, str | Configuration) else value
            return tuple(c if isinstance(c, Configuration) else os.fspath(c) for c in values)
        return _CONVERTERS[kinds[0]](value)
    except (TypeError, ValueError):
        raise ConfigError(
            f'Invalid value "{value}" for {option}.', cure=f"Use a value of type {kinds[0].__name__}."
        ) from None
