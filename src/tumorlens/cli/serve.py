"""`tumorlens serve`: options of the service, which are the fields of `serve.settings.Settings`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Group, Parameter

from tumorlens.cli.options import DATA, HARDWARE, OUTPUT, in_groups
from tumorlens.serve.settings import Settings

_GROUPS = {
    DATA: ("model",),
    Group("Network", sort_key=1): ("host", "port", "token_file", "insecure", "cors"),
    HARDWARE: ("workers", "window"),
    Group("Limits", sort_key=2): ("queue", "per_client", "max_megabytes", "max_seconds"),
    OUTPUT: ("quiet",),
}


class ServeOptions(Settings):
    """The fields of `Settings`, in groups."""

    __annotations__ = in_groups(Settings, _GROUPS, model={"alias": "-m"}, quiet={"alias": "-q"})


_DEFAULT = ServeOptions()


def serve(*, options: Annotated[ServeOptions, Parameter(name="*")] = _DEFAULT) -> int:
    """Classify over HTTP, with a web page to try it at /. For research, not for diagnosis.

    By default the service listens on this machine only. With --host it listens on
    a network, which needs --token-file.
    """
    from tumorlens.serve.server import serve as run

    return run(Settings(**vars(options)))  # workers unpickle it and need no cyclopts
