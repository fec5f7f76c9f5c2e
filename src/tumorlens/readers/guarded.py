"""Decodes frames of JPEG-LS and JPEG Lossless in another process, whose time is limited.

CharLS, the decoder of JPEG-LS, counts to 2**31 on some damaged frames: 4 s for a hundred bytes, which nothing within
its process can interrupt, as it keeps Python's lock. GDCM, the decoder of JPEG Lossless, is a large C++ library. The
worker limits its own processor time and ends.
"""

from __future__ import annotations

import atexit
import io
import json
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tumorlens.core.errors import ImageError
from tumorlens.readers.scaling import Values

SECONDS = 0.5  # of processor time for any frame, and
PIXELS_PER_SECOND = 8_000_000  # slower than any machine in use decodes; the largest frame gets under 4 s in all

_WORKER = Path(__file__).with_name("guarded_worker.py")
_lock = threading.Lock()
_worker: subprocess.Popen[bytes] | None = None


class EndlessFrameError(ImageError):
    """A frame whose decoding takes longer than that of any valid frame."""


def request(frame: bytes, settings: dict[str, Any], seconds: float) -> bytes:
    """What the worker reads from its standard input."""
    text = json.dumps(settings).encode()
    return struct.pack("<IQd", len(text), len(frame), seconds) + text + frame


def decode_guarded(frame: bytes, settings: dict[str, Any], *, cure: str) -> Values:
    """The pixels of a frame, [rows, columns] or [rows, columns, 3].

    Parameters
    ----------
    frame
        One codestream.
    settings
        `syntax` (a UID), `plugin` (pydicom's name of the decoder), and the elements of the header that decoding needs.

    Raises
    ------
    EndlessFrameError
        Decoding it was stopped after 0.5 s and another second for each 8 million pixels.
    ImageError
        It is damaged.
    """
    seconds = SECONDS + settings["Rows"] * settings["Columns"] / PIXELS_PER_SECOND
    with _lock:
        reply = _ask(request(frame, settings, seconds))
        if reply is None:  # it ended itself, or the decoder ended it
            _stop()
            raise EndlessFrameError("cannot be decoded", cure=cure)
    if not reply:
        raise ImageError("cannot be decoded", cure=cure)
    return np.load(io.BytesIO(reply), allow_pickle=False)  # type: ignore[no-any-return]


def _ask(sent: bytes) -> bytes | None:
    """The worker's reply, empty if the frame is damaged; None if the worker has ended."""
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
        _worker.stdin.write(sent)
        _worker.stdin.flush()
        length = _worker.stdout.read(8)
        if len(length) == 8:
            reply = _worker.stdout.read(int.from_bytes(length, "little"))
            return reply if len(reply) == int.from_bytes(length, "little") else None
    return None


@atexit.register
def _stop() -> None:
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()  # closes the pipes and waits
        _worker = None
