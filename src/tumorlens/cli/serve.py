"""`tumorlens serve`: options of the service, which are the fields of `serve.settings.Settings`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from tumorlens.serve.settings import Settings

_DEFAULT = Settings()


def serve(*, options: Annotated[Settings, Parameter(name="*")] = _DEFAULT) -> int:
    """Answer over HTTP what `predict` answers, with a page to try it at /. For research, not for diagnosis.

    Listens on this machine alone unless --host says otherwise, and then only with --token-file.
    """
    from tumorlens.core.errors import MissingExtraError

    try:
        from tumorlens.serve.server import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tumorlens"):
            raise
        raise MissingExtraError(error.name or "?", "serve") from None
    return run(options)
