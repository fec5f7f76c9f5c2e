"""Decodes frames from standard input in a process of its own, which guarded.py starts as a script.

A request is a header (`<IQd`: bytes of the settings and of the frame, seconds that it may take), the settings as JSON,
and the frame. The reply is the length of the pixels (8 bytes) and the pixels as .npy; the length is 0 if the frame does
not decode. A frame that takes longer ends the process. No import of tumorlens: it starts in 0.4 s.
"""

import contextlib
import faulthandler
import io
import json
import os
import signal
import struct
import sys
import warnings

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

with contextlib.suppress(ImportError):  # now, as its time must not count
    import gdcm  # type: ignore[import-untyped]  # noqa: F401

HEADER = struct.Struct("<IQd")


def limit_time(seconds: float) -> None:
    """End this process when `seconds` have passed, even within a decoder that never returns to Python; 0 cancels.

    Seconds of processor time, so that a busy machine raises no false alarm; of wall-clock time, with four times the
    patience, on systems without interval timers (Windows).
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
    elif seconds:
        faulthandler.dump_traceback_later(4 * seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def decoded(frame: bytes, settings: dict[str, object]) -> bytes:
    """The pixels as .npy; empty if the frame is damaged."""
    data, file = Dataset(), io.BytesIO()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(str(settings.pop("syntax")))
    plugin = str(settings.pop("plugin"))
    for keyword, value in settings.items():
        setattr(data, keyword, value)
    data.PixelData = encapsulate([frame])
    try:
        np.save(file, pixel_array(data, decoding_plugin=plugin))
    except Exception:  # any error means a damaged frame
        return b""
    return file.getvalue()


def main() -> None:
    """Reply to requests until standard input ends."""
    warnings.simplefilter("ignore")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders may print
    while len(header := sys.stdin.buffer.read(HEADER.size)) == HEADER.size:
        n_settings, n_frame, seconds = HEADER.unpack(header)
        settings, frame = json.loads(sys.stdin.buffer.read(n_settings)), sys.stdin.buffer.read(n_frame)
        limit_time(seconds)
        reply = decoded(frame, settings)
        limit_time(0)
        replies.write(struct.pack("<Q", len(reply)) + reply)
        replies.flush()


if __name__ == "__main__":
    main()
