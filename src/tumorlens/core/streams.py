"""Standard streams that the parent process has closed."""

import os
import sys


def replace_closed_streams() -> None:
    """Let closed standard streams lead nowhere: a closed stream is no terminal, and no reason to stop.

    Their numbers are taken too. Otherwise the next file that is opened gets one of them, and messages are written into
    it. A closed standard input still counts as closed: `sys.stdin` stays None.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
