"""Usage errors: what is wrong with a command line, and what to write instead."""

from __future__ import annotations

import dataclasses
import difflib

from cyclopts import App, CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError
from cyclopts.exceptions import UnknownCommandError

from tumorlens.core.errors import TumorlensError

_SIMILAR = 0.75  # of difflib's ratio; below it a suggestion is a guess


class UsageError(TumorlensError):
    """A command line that cannot be run; the exit code is 2."""


def usage_error(error: CycloptsError) -> UsageError:
    """The message for what cyclopts could not parse."""
    chain = error.command_chain or ()
    command = " ".join(["tumorlens", *chain])
    see = f"`{command} --help` lists what it takes."
    argument, app = error.argument, error.app
    if isinstance(error, UnknownOptionError):
        return _unknown_option((error.token.keyword or error.token.value).split("=")[0], command, app, see)
    if isinstance(error, UnknownCommandError) and error.unused_tokens and app:
        commands = [name for name in app if not name.startswith("-")]
        word = error.unused_tokens[0]
        cure = _closest(word, commands) or f"Commands: {', '.join(commands)}."
        return UsageError(f"Unknown command {word!r}.", cure=cure)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        cure = f"Write the option's name before its value. {see}"
        return UsageError(f"`{command}` has no place for {error.unused_tokens[0]!r}.", cure=cure)
    if isinstance(error, MissingArgumentError) and argument:
        name = error.keyword or (argument.name if argument.index is None else argument.name.strip("-").upper())
        return UsageError(f"`{command}` needs a value for {name}.", cure=see)
    if isinstance(error, CoercionError) and argument and error.token and (choices := argument.get_choices()):
        what = f"{error.token.keyword or argument.name} {error.token.value} is unknown."
        return UsageError(what, cure=f"Choose from {', '.join(choices)}.")
    return UsageError(str(error), cure=see)


def _unknown_option(option: str, command: str, app: App | None, see: str) -> UsageError:
    from tumorlens.training.configurations import Configuration

    what = f"`{command}` has no option {option}."
    key = option.lstrip("-").replace("-", "_")
    if command in ("tumorlens study", "tumorlens train") and key in {f.name for f in dataclasses.fields(Configuration)}:
        cure = f"Set {key} in a file that you pass with --config; docs/cli.md lists the keys of configurations."
        return UsageError(what, cure=cure)
    names = [name for one in app.assemble_argument_collection() if one.parse for name in one.names] if app else []
    return UsageError(what, cure=_closest(option, names) or see)


def _closest(word: str, names: list[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=_SIMILAR)
    return f"Did you mean {close[0]}?" if close else ""
