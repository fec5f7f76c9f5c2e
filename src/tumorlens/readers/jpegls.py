"""Tests in another process whether a JPEG-LS frame decodes, before it is decoded in this one.

CharLS, the decoder behind pyjpegls, counts to 2**31 on some damaged frames: 4 s for a hundred bytes, which nothing
within its process can interrupt, as it keeps Python's lock. The worker limits its own processor time and ends.
"""

from __future__ import annotations

import atexit
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tumorlens.core.errors import ImageError

SECONDS = 0.5  # of processor time for any frame, and
PIXELS_PER_SECOND = 8_000_000  # slower than any machine in use decodes; the largest frame gets under 4 s in all

_WORKER = Path(__file__).with_name("jpegls_worker.py")
_lock = threading.Lock()
_worker: subprocess.Popen[bytes] | None = None


class EndlessFrameError(ImageError):
    """A frame whose decoding takes longer than that of any valid frame."""


def check_decodes(frame: bytes, pixels: int, *, cure: str) -> None:
    """Refuse a JPEG-LS codestream of so many pixels that does not decode.

    Raises
    ------
    EndlessFrameError
        Decoding it was stopped after 0.5 s and another second for each 8 million pixels.
    ImageError
        It is damaged.
    """
    with _lock:
        reply = _ask(struct.pack("<Qd", len(frame), SECONDS + pixels / PIXELS_PER_SECOND) + frame)
        if not reply:  # it ended itself, or the decoder ended it
            _stop()
            raise EndlessFrameError("cannot be decoded", cure=cure)
    if reply != b"+":
        raise ImageError("cannot be decoded", cure=cure)


def _ask(request: bytes) -> bytes:
    """The worker's reply of one byte; empty if it has ended."""
    global _worker
    if _worker is None or _worker.poll() is not None:
        _stop()
        # -P: the folder of the script holds names that would hide other modules. Own session: no Ctrl-C for it.
        _worker = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    assert _worker.stdin
    assert _worker.stdout
    with suppress(OSError):
        _worker.stdin.write(request)
        _worker.stdin.flush()
        return _worker.stdout.read(1)
    return b""


@atexit.register
def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()  # closes the pipes and waits
        _worker = None
