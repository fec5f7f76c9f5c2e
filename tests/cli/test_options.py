"""Options that commands share: what is positional, groups, -q, and how results are printed."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path

import pytest
from folders import write_folder

from tumorlens.cli.app import _GROUPS, app, main
from tumorlens.cli.options import Output, shown_default
from tumorlens.cli.serve import _GROUPS as SERVE_GROUPS
from tumorlens.core.progress import Bar, log
from tumorlens.serve.settings import Settings
from tumorlens.study.options import Study

POSITIONAL = {
    "study": ["--data"], "train": ["--data"], "evaluate": ["--run"], "compare": ["RUNS"], "report": ["--run"],
    "export": ["--run"], "predict": ["INPUTS"], "explain": ["INPUTS"], "serve": [],
    "data fetch": ["--source"], "data check": ["--source"], "data audit": ["--source"],
}  # fmt: skip


@pytest.mark.parametrize("command", POSITIONAL)
def test_what_is_positional_and_grouped(command: str) -> None:
    one = app
    for word in command.split():
        one = one[word]
    arguments = [argument for argument in one.assemble_argument_collection(parse_docstring=True) if argument.show]
    assert [argument.name for argument in arguments if argument.index is not None] == POSITIONAL[command]
    for argument in arguments:
        groups = [group.name for group in argument.parameter.group]
        assert groups in (["Data"], ["Training"], ["Hardware"], ["Output"], ["Network"], ["Limits"]), argument.name
        assert argument.parameter.help, argument.name
        assert argument.parameter.help.rstrip().endswith("."), argument.name
    assert any("-q" in argument.names for argument in arguments)


def test_study_takes_its_data_in_both_ways() -> None:
    ways = [["study", "a.zip", "-o", "x"], ["study", "--data", "a.zip", "--out", "x"], ["study", "-o", "x", "a.zip"]]
    for words in ways:
        _, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert Study(**vars(given.arguments["options"])) == Study("a.zip", out=Path("x"))


@pytest.mark.parametrize(
    ("options", "groups", "hidden"), [(Study, _GROUPS, {"on_epoch"}), (Settings, SERVE_GROUPS, set())]
)
def test_each_field_is_in_one_group(options: type, groups: dict[object, tuple[str, ...]], hidden: set[str]) -> None:
    grouped = [name for names in groups.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) | hidden == {field.name for field in dataclasses.fields(options)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", ["-q", "--quiet", ""])
def test_quiet_prints_errors_and_warnings_only(quiet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "data", train=2, test=1)
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    assert main(["data", "check", str(folder), "--cache", str(tmp_path / "c"), *([quiet] if quiet else [])]) == 0
    before = stderr.getvalue()  # a bar is drawn on a terminal
    log.info("progress")
    log.warning("warning")
    with Bar("Reading", 2) as bar:
        bar.advance()
    assert (stderr.getvalue() == "warning\n") == bool(quiet)
    assert bool(before) != bool(quiet)
    assert log.isEnabledFor(logging.INFO) != bool(quiet)


def test_a_result_is_printed_as_json_or_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().show({"name": "é"}, "text")
    Output(json=True).show({"name": "é"}, "text")
    assert capsys.readouterr().out == 'text\n{\n  "name": "é"\n}\n'


@pytest.mark.parametrize(
    ("value", "shown"), [(None, None), (False, None), ((), None), (0, "0"), ("a", "a"), (("a", "b"), "a b")]
)
def test_defaults_are_shown_as_they_are_typed(value: object, shown: str | None) -> None:
    assert shown_default(value) == shown
