"""Options that commands share: the groups of --help, the model, and how results are printed. Light to import."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from cyclopts import Group, Parameter, validators


def _whole_names(console: Any, options: Any, panel: Any) -> None:
    """Show a group with a column that fits its longest option: by default one over 35 % of the width is cut."""
    from cyclopts.help import DefaultFormatter
    from cyclopts.help.specs import ColumnSpec, DescriptionColumn, NameRenderer

    names = ColumnSpec(renderer=NameRenderer(), style="cyclopts.name")
    DefaultFormatter(column_specs=(names, DescriptionColumn))(console, options, panel)


ARGV: list[str] = []  # the words of the command line, without the program's name

DATA, OUTPUT = Group("Data", sort_key=0), Group("Output", sort_key=4)
TRAINING = Group("Training", sort_key=1, help_formatter=_whole_names)
HARDWARE = Group("Hardware", sort_key=3)

FILE, FOLDER = validators.Path(exists=True, dir_okay=False), validators.Path(exists=True, file_okay=False)
Run = Annotated[Path, Parameter(group=DATA, help="Folder of the run.")]
Model = Annotated[
    Path,
    Parameter(
        alias="-m",
        group=DATA,
        help="An exported .onnx file, or the folder of an exported run, "
        "where classifier.onnx is preferred to classifier-int8.onnx.",
    ),
]
MODEL = Path("classifier.onnx")
Plane = Annotated[
    Literal["axial", "coronal", "sagittal"],
    Parameter(group=DATA, help="Plane in which NIfTI volumes are sliced."),
]
Volume = Annotated[
    int | None,
    Parameter(
        group=DATA,
        help="Read only this volume, from 1, of a 4-D NIfTI file or a DICOM series of several.",
        show_default="the first of a NIfTI file, all of a DICOM series",
    ),
]


@dataclass(frozen=True)
class Log:
    """What is printed on stderr."""

    quiet: Annotated[bool, Parameter(alias="-q", group=OUTPUT)] = False
    """Print errors and warnings only, no progress."""


@dataclass(frozen=True)
class Output(Log):
    """How a result is printed."""

    json: Annotated[bool, Parameter(group=OUTPUT)] = False
    """Print the result as JSON on stdout."""

    def show(self, result: Any, text: str) -> None:
        """Print `result` as JSON if that was asked for, else `text`."""
        print(json_module.dumps(result, indent=2, ensure_ascii=False) if self.json else text)


Printed = Annotated[Output, Parameter(name="*")]
PRINTED = Output()


def in_groups(options: type, groups: Mapping[Group, Sequence[str]], /, **details: dict[str, Any]) -> dict[str, Any]:
    """Annotations that give each field of a dataclass its group in --help; a field without a group is no option.

    `details` are further arguments of a field's Parameter.
    """
    group_of = {name: group for group, names in groups.items() for name in names}
    return {
        name: Annotated[hint, Parameter(group=group_of.get(name), parse=name in group_of, **details.get(name, {}))]
        for name, hint in get_type_hints(options).items()
    }


def shown_default(value: Any) -> str | None:
    """A default as --help prints it; None for flags, which are off by default."""
    if value is None or value is False or value == ():
        return None
    return " ".join(value) if isinstance(value, tuple) else str(value)
