"""Tries a JPEG-LS frame in a process of its own before it is decoded in this one.

CharLS, which pyjpegls wraps, counts to 2**31 on frames that are cut off: 6 s for a hundred bytes, in which nothing
can stop it from within its process. The helper limits its own processor time (not wall-clock time, which a busy
machine would turn into false alarms), and its end stands for the frame's.
"""

from __future__ import annotations

import atexit
import signal
import struct
import subprocess
import sys
import threading
from typing import BinaryIO, Literal

SECONDS = 0.5  # of processor time for any frame, and
PIXELS_A_SECOND = 8_000_000  # slower than any machine in use decodes; the largest frame gets under 4 s in all

_REQUEST = "<Qd"  # bytes of the frame that follows, and seconds that it may take
_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None


def tried(frame: bytes, pixels: int) -> Literal["decodes", "damaged", "endless"]:
    """What happens when this JPEG-LS codestream of so many pixels is decoded."""
    with _lock:
        helper = _started()
        assert helper.stdin is not None
        assert helper.stdout is not None
        try:
            helper.stdin.write(struct.pack(_REQUEST, len(frame), SECONDS + pixels / PIXELS_A_SECOND) + frame)
            helper.stdin.flush()
            answer = helper.stdout.read(1)
        except BrokenPipeError:
            answer = b""
        if not answer:  # it ended itself, or the decoder ended it
            _stop()
            return "endless"
        return "decodes" if answer == b"+" else "damaged"


def _started() -> subprocess.Popen[bytes]:
    global _helper
    if _helper is None or _helper.poll() is not None:
        _stop()
        # -P: the folder of this file holds names that would hide others'.
        command = [sys.executable, "-P", __file__]
        _helper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
    return _helper


@atexit.register
def _stop() -> None:
    global _helper
    if _helper is not None:
        _helper.kill()
        _helper.communicate()  # closes the pipes and waits
        _helper = None


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    import jpeg_ls  # type: ignore[import-untyped]

    while len(request := requests.read(struct.calcsize(_REQUEST))) == struct.calcsize(_REQUEST):
        length, seconds = struct.unpack(_REQUEST, request)
        frame = requests.read(length)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        try:
            jpeg_ls.decode_pixel_data(frame)
            answer = b"+"
        except Exception:  # any means damaged, and decoding it again here gives the reason
            answer = b"-"
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
