"""Usage errors: what is wrong with a command line, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cyclopts import (
    App,
    Argument,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from tumorlens.core.errors import TumorlensError

_SIMILAR = 0.71  # of difflib's ratio; below it a suggestion is a guess


class UsageError(TumorlensError):
    """A command line that cannot be run; the exit code is 2."""


def usage_error(error: CycloptsError) -> UsageError:
    """The message for a command line that cyclopts could not parse."""
    command = " ".join(["tumorlens", *(error.command_chain or ())])
    what, cure = str(error), ""
    match error:
        case UnknownOptionError(token=token, app=App() as app):
            option = (token.keyword or token.value).split("=")[0]
            what = f"`{command}` has no option {option}."
            known = (name for one in app.assemble_argument_collection() if one.parse for name in one.names)
            cure = _configuration_key(option, command) or _closest(option, known)
        case UnknownCommandError(unused_tokens=[word, *_], app=App() as app):
            commands = [name for name in app if not name.startswith("-")]
            what = f"`{command}` has no {'option' if word.startswith('-') else 'command'} {word}."
            cure = _closest(word, commands) or f"Commands: {', '.join(commands)}."
        case UnusedCliTokensError(unused_tokens=[word, *_]):
            what = f"`{command}` does not take the argument {word}."
            cure = f"If it is the value of an option, put the option's name before it. `{command} --help` lists them."
        case MissingArgumentError(argument=Argument() as argument):
            name = argument.name if argument.index is None else argument.name.strip("-").upper()
            what = f"`{command}` needs a value for {error.keyword or name}."
        case CoercionError(argument=Argument() as argument, token=Token() as token) if argument.get_choices():
            choices = ", ".join(argument.get_choices() or ())
            what, cure = f"{token.keyword} {token.value} is not valid.", f"Choose from {choices}."
    return UsageError(what, cure=cure or f"`{command} --help` lists arguments and options.")


def _configuration_key(option: str, command: str) -> str:
    from tumorlens.training.configurations import Configuration

    key = option.lstrip("-").replace("-", "_")
    if command not in ("tumorlens study", "tumorlens train") or key not in Configuration.__dataclass_fields__:
        return ""
    return f"Set {key} in a file that --config names. docs/cli.md#configuration-files lists its keys."


def _closest(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1, cutoff=_SIMILAR)
    return f"Did you mean {close[0]}?" if close else ""
