"""Decodes JPEG-LS frames from standard input in a process of its own, which jpegls.py starts as a script.

A request is a header (`<Qd`: bytes of the frame, seconds that it may take) and the frame; the reply is `+` if it
decodes and `-` if it does not. A frame that takes longer ends the process. No import of tumorlens: it starts in 0.1 s.
"""

import faulthandler
import signal
import struct
import sys

import jpeg_ls  # type: ignore[import-untyped]

HEADER = struct.Struct("<Qd")


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


def main() -> None:
    """Reply to requests until standard input ends."""
    while len(header := sys.stdin.buffer.read(HEADER.size)) == HEADER.size:
        length, seconds = HEADER.unpack(header)
        frame = sys.stdin.buffer.read(length)
        limit_time(seconds)
        try:
            jpeg_ls.decode_pixel_data(frame)
            reply = b"+"
        except Exception:  # any error means a damaged frame
            reply = b"-"
        limit_time(0)
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
