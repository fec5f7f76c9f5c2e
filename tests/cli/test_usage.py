"""What a wrong command line prints, and that messages name only commands and options that exist."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from tumorlens.cli.app import app, main
from tumorlens.study.options import Study
from tumorlens.training.configurations import Configuration

ROOT = Path(__file__).resolve().parents[2]
KEYS = sorted({f.name for f in dataclasses.fields(Configuration)} - {f.name for f in dataclasses.fields(Study)})
#: Options of torchrun, git, DCMTK and curl that the source names.
FOREIGN = {
    "--nproc-per-node", "--nnodes", "--always", "--abbrev", "--exclude", "--dirty", "--raw", "--data-binary",
}  # fmt: skip
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*.md.j2"))]


def printed(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("words", "what", "cure"),
    [
        ("study a.zip runs/x", "`tumorlens study` does not take the argument runs/x.",
         "If it is the value of an option, put the option's name before it. `tumorlens study --help` lists them."),
        ("study --max-epoch 3", "`tumorlens study` has no option --max-epoch.", "Did you mean --max-epochs?"),
        ("study --output=x", "`tumorlens study` has no option --output.", "Did you mean --out?"),
        ("study -x", "`tumorlens study` has no option -x.", "`tumorlens study --help` lists arguments and options."),
        ("study --device gpu", "--device gpu is not valid.", "Choose from auto, cpu, cuda, mps, xpu."),
        ("study --weights", "`tumorlens study` needs a value for --weights.",
         "`tumorlens study --help` lists arguments and options."),
        ("evaluate", "`tumorlens evaluate` needs a value for RUN.",
         "`tumorlens evaluate --help` lists arguments and options."),
        ("compare", "`tumorlens compare` needs a value for RUNS.",
         "`tumorlens compare --help` lists arguments and options."),
        ("predict -x a.png", "`tumorlens predict` has no option -x.",
         "`tumorlens predict --help` lists arguments and options."),
        ("predict a.png --batch-size 16", "`tumorlens predict` has no option --batch-size.", "Did you mean --batch?"),
        ("explain a.png", "`tumorlens explain` needs a value for --out.",
         "`tumorlens explain --help` lists arguments and options."),
        ("staudy", "`tumorlens` has no command staudy.", "Did you mean study?"),
        ("--bogus", "`tumorlens` has no option --bogus.",
         "Commands: study, train, evaluate, compare, report, export, predict, explain, serve, data."),
        ("data chek a.zip", "`tumorlens data` has no command chek.", "Did you mean check?"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(words: str, what: str, cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(words, capsys) == f"Error: {what}\n  → {cure}\n"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_configuration_is_no_option(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = "--" + key.replace("_", "-")
    for words in (f"study phantom {option} 16", f"train {option}=16"):
        assert f"Set {key} in a file that --config names. docs/cli.md#configuration-files" in printed(words, capsys)
    assert f"| `{key}` |" in (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("option", ["--lr", "--workers", "--model", "--gpu", "--verbose", "--image-size", "--name-it"])
def test_a_suggestion_is_close_or_left_out(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean" not in printed(f"study {option} 1", capsys)


def commands(within: App, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in within:
        if not name.startswith("-"):
            yield (*words, name)
            yield from commands(within[name], (*words, name))


def options_of(words: tuple[str, ...]) -> set[str]:
    one = app
    for word in words:
        one = one[word]
    if one.default_command is None:
        return {"--help", "--version"}
    return {"--help", "--version"} | {n for argument in one.assemble_argument_collection() for n in argument.names}


OPTIONS = {words: options_of(words) for words in [(), *commands(app)]}


def wrong(text: str, anywhere: bool) -> list[str]:
    """Commands and options that a text names and the program lacks; `anywhere`, also options outside of a command."""
    found = []
    for line in re.findall(r"(?:`|^\s*(?:\$ )?)tumorlens\s+([a-z][^`\n#|&>]*)", text, flags=re.M):
        words = tuple(line.split())
        known = next((words[:n] for n in (2, 1) if words[:n] in OPTIONS), None)
        if known is None:
            found.append(f"tumorlens {line}")
            continue
        found += [
            w for w in words if (o := w.split("=")[0].rstrip(".,;:")).startswith("--") and o not in OPTIONS[known]
        ]
    if anywhere:
        all_options = set().union(*OPTIONS.values()) | FOREIGN
        found += [one for one in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text) if one not in all_options]
    return found


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """Literals of a module, docstrings too, with X for what an f-string fills in."""
    tree = ast.parse(path.read_text())
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


@pytest.mark.parametrize("source", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: path.stem)
def test_the_source_names_only_commands_and_options_that_exist(source: Path) -> None:
    bad = [f"{source.name}:{line}: {one}" for line, text in strings(source) for one in wrong(text, True)]
    if source.name == "generator.py":  # the program that phantom files say made them
        bad = [one for one in bad if not one.endswith("tumorlens phantom")]
    assert bad == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_commands_and_options_that_exist(document: Path) -> None:
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", document.read_text(), flags=re.S))
    assert wrong(code, False) == []


def test_what_names_a_wrong_command_is_found() -> None:
    assert wrong("Run `tumorlens fetch kaggle` or `tumorlens study --data x --model y`.", True) == [
        "tumorlens fetch kaggle", "--model",
    ]  # fmt: skip
    assert wrong("Use --outt.", True) == ["--outt"]


@pytest.mark.parametrize(
    "words", [words for words in OPTIONS if (words and app[words[0]].default_command) or len(words) > 1]
)
def test_the_example_of_each_command_parses(words: tuple[str, ...]) -> None:
    one = app
    for word in words:
        one = one[word]
    example = (one.help_epilogue or "").removeprefix("Example: tumorlens ")
    assert example.startswith(" ".join(words))
    app.parse_args(shlex.split(example), exit_on_error=False, print_error=False)
