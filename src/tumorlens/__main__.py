"""The command `tumorlens`, also as `python -m tumorlens` and `torchrun -m tumorlens`."""

import atexit
import os
import sys
from typing import NoReturn

_code: int | None = None  # exit code of the command


@atexit.register  # registered first, so called last, after threads have ended
def _exit_at_once() -> None:
    """Skip the teardown of PyTorch's objects, which takes over a second."""
    if _code is None or "torch" not in sys.modules:
        return
    try:
        print(end="", flush=True)  # does nothing if the parent process closed it
        print(end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # closed pipe, which Python reports itself
        return
    os._exit(_code)


from tumorlens.core.streams import replace_closed_streams  # noqa: E402 - the handler above must be registered first

replace_closed_streams()  # before any other file is opened

from tumorlens.cli.app import main  # noqa: E402


def run() -> NoReturn:
    """Run one command and end the process."""
    global _code
    _code = main()
    if _code == 141:  # else Python fails again at exit on the unwritten rest, and exits with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(_code)


if __name__ == "__main__":
    run()
