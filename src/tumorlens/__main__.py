"""The command `tumorlens`, also as `python -m tumorlens`, and thereby `torchrun -m tumorlens`."""

import atexit
import os
import sys
from typing import NoReturn

_code: int | None = None  # of the command that has run


@atexit.register  # the first that is registered is called last, after threads have ended
def _leave() -> None:
    """Do not take PyTorch's objects down one by one: it takes over a second, and the system takes all back anyhow."""
    if _code is None or "torch" not in sys.modules:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever began the process
                stream.flush()
    except (OSError, ValueError):  # whoever read it has gone, of which Python has its own way to tell
        return
    os._exit(_code)


from tumorlens.cli.main import main  # noqa: E402 - what it registers is to be called before


def run() -> NoReturn:
    """Run one command and end the process."""
    global _code
    _code = main()
    if _code == 141:  # at its end Python would fail once more on what it still holds for the pipe, and exit with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(_code)


if __name__ == "__main__":
    run()
