"""docs/cli.md, from the help of every command and the documented keys of configuration files."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import docstring_parser
from cyclopts import App

from tumorlens.cli.app import app
from tumorlens.training.configurations import BUILT_IN, Configuration


def commands(within: App, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of each command of the program: a study and its stages first, as the README names them."""
    found = []
    for name in within:
        if not name.startswith("-"):
            found += commands(within[name], (*words, name)) or [(*words, name)]
    return found


def cli_reference() -> str:
    """docs/cli.md: the --help of every command, as it is printed, and the keys of configuration files."""
    lines = ["# Command line", "", "Written by `make figures` from `--help`.", ""]
    for words in ((), *commands(app)):
        code = "import sys; from tumorlens.cli.app import main; sys.exit(main(sys.argv[1:]))"
        shown = subprocess.run(
            [sys.executable, "-c", code, *words, "--help"],
            capture_output=True, text=True, check=True, env={"COLUMNS": "100", "NO_COLOR": "1", "PATH": ""},
        ).stdout  # fmt: skip
        shown = re.sub(r"[ \t]+$", "", shown, flags=re.M).strip()
        lines += [f"## {' '.join(('tumorlens', *words))}", "", "```", shown, "```", ""]
    return "\n".join([*lines, configuration_keys()])


def configuration_keys() -> str:
    """The section of docs/cli.md on the file that --config names."""
    lines = [
        "## Configuration files",
        "",
        "`--config FILE` names a TOML file with one `[[configuration]]` table for each configuration. A table with the",
        "name of a built-in configuration (" + ", ".join(f"`{name}`" for name in BUILT_IN) + ") changes that one.",
        "",
        "```toml",
        "[[configuration]]",
        'name = "layer4"',
        'learns = ["layer4", "fc"]',
        "learning_rate = 0.0001",
        'start = "initial"',
        "```",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    documented = {one.arg_name: one.description for one in docstring_parser.parse_from_object(Configuration).params}
    for field in dataclasses.fields(Configuration):
        default = "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
        lines.append(f"| `{field.name}` | {default} | {' '.join((documented[field.name] or '').split())} |")
    return "\n".join([*lines, ""])
