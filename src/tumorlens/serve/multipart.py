"""The files in the body of a batch: a zip, or the parts of a multipart form. Nothing is written to disk.

Starlette's own form parser writes parts of over 1 MB to temporary files, which images must not reach.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser

from tumorlens.core.text import shown
from tumorlens.readers.signatures import ZIP
from tumorlens.serve.problems import Problem

_MAX_HEADER = 8_192  # bytes per part
_MAX_HEADERS = 4_000_000  # bytes of all parts together: 400 for each of 10,000
_MALFORMED = (ValueError, TypeError, LookupError)  # raised by the email package for parameters as in RFC 2231
_CURE = "Send a zip as the body, or multipart/form-data with a file in each part."


def is_zip(body: bytes) -> bool:
    """Whether the body starts like a zip."""
    return body.startswith(ZIP)


def files_of(body: bytes, content_type: str, max_parts: int) -> Iterator[tuple[str, io.BytesIO]]:
    """Name and content of each file; a zip is one file, whose entries the reader unpacks.

    Parameters
    ----------
    content_type
        The request's header.
    max_parts
        Maximum number of parts.

    Raises
    ------
    Problem
        400 for a damaged form, 413 for too many parts, 415 for anything else.
    """
    message = Message()
    message["content-type"] = content_type or "application/octet-stream"
    if message.get_content_maintype() == "multipart":
        try:
            boundary = message.get_boundary()
        except _MALFORMED:
            boundary = None
        if not boundary:
            raise Problem("bad-request", "The multipart body has no boundary in its Content-Type.", cure=_CURE)
        return iter(list(_parts(body, boundary.encode("latin-1", "replace"), max_parts)))
    if not is_zip(body):
        raise Problem("unsupported-format", "The body is neither a zip nor multipart/form-data.", cure=_CURE)
    return iter([("", io.BytesIO(body))])


def _parts(body: bytes, boundary: bytes, max_parts: int) -> Iterator[tuple[str, io.BytesIO]]:
    """Split as in RFC 2046, section 5.1.1; text before the first boundary and after the last is ignored."""
    delimiter = b"\r\n--" + boundary
    whole = b"\r\n" + body
    if (found := whole.count(delimiter) - 1) > max_parts:  # before splitting: there may be millions
        raise Problem("too-large", f"{found:,} parts, over the limit of {max_parts:,}.", cure="Send fewer.")
    pieces = whole.split(delimiter)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise Problem("bad-request", "The multipart body is cut off, or its boundary is another one.", cure=_CURE)
    headers = 0
    for number, piece in enumerate(pieces[1:-1], 1):
        padding, line_end, rest = piece.partition(b"\r\n")
        # A part without headers starts with the empty line that would end them.
        header, blank, content = (b"", b"\r\n", rest[2:]) if rest.startswith(b"\r\n") else rest.partition(b"\r\n\r\n")
        headers += len(header)
        if headers > _MAX_HEADERS:
            raise Problem("too-large", f"The headers of all parts are over {_MAX_HEADERS:,} bytes.", cure=_CURE)
        damaged = Problem("bad-request", f"Part {number} of the multipart body has a damaged header.", cure=_CURE)
        if padding.strip(b" \t") or not line_end or not blank or len(header) > _MAX_HEADER:
            raise damaged
        try:
            # Browsers and curl send names as plain UTF-8; the parser for bytes accepts only ASCII.
            name = HeaderParser().parsestr(header.decode("utf-8", "surrogateescape")).get_filename()
        except _MALFORMED:
            raise damaged from None
        yield shown(name) if name else f"part-{number}", io.BytesIO(content)
