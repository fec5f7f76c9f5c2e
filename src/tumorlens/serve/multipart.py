"""The files in the body of a batch: a zip, or the parts of a multipart form. Nothing is written to disk.

Starlette's own form parser writes parts of over 1 MB to temporary files, which images must not reach.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from email.parser import HeaderParser

from tumorlens.core.text import shown
from tumorlens.readers.signatures import ZIP
from tumorlens.serve.problems import Problem

#: What ends the line of the boundary, then at most 8,192 bytes of header, or none, and an empty line.
_HEADER = re.compile(rb"[ \t]*(?=\r\n)(.{0,8194}?)\r\n\r\n", re.DOTALL)
_MAX_HEADERS = 4_000_000  # bytes of all parts together: 400 for each of 10,000
_MALFORMED = (ValueError, TypeError, LookupError)  # raised by the email package for parameters as in RFC 2231
OPTIONS = ("plane", "coverage", "volume", "slice", "heatmap", "class")  # which no form carries
_CURE = "Send a zip as the body, or multipart/form-data with a file in each part."


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
    message = HeaderParser().parsestr(f"content-type: {content_type}")
    if message.get_content_maintype() == "multipart":
        try:
            boundary = message.get_boundary()
        except _MALFORMED:
            boundary = None
        if not boundary:
            raise Problem("bad-request", "The multipart body has no boundary in its Content-Type.", cure=_CURE)
        return iter(list(_parts(body, boundary.encode("latin-1", "replace"), max_parts)))
    if not body.startswith(ZIP):
        raise Problem("unsupported-format", "The body is neither a zip nor multipart/form-data.", cure=_CURE)
    return iter([("", io.BytesIO(body))])


def _parts(body: bytes, boundary: bytes, max_parts: int) -> Iterator[tuple[str, io.BytesIO]]:
    """Split as in RFC 2046, section 5.1.1; text before the first boundary and after the last is ignored."""
    delimiter = b"\r\n--" + boundary
    whole = b"\r\n" + body
    if (n := whole.count(delimiter) - 1) > max_parts:  # before splitting: there may be millions
        raise Problem("too-large", f"{n:,} parts, over the limit of {max_parts:,}.", cure="Send fewer.")
    pieces = whole.split(delimiter)
    if len(pieces) == 2 and pieces[1].startswith(b"--"):
        raise Problem("bad-request", "The form has no parts.", cure=_CURE)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise Problem("bad-request", "The multipart body is cut off, or its boundary is another one.", cure=_CURE)
    headers = 0
    for number, piece in enumerate(pieces[1:-1], 1):
        damaged = Problem("bad-request", f"Part {number} of the multipart body has a damaged header.", cure=_CURE)
        found = _HEADER.match(piece)
        if not found:
            raise damaged
        headers += found.end()
        if headers > _MAX_HEADERS:
            raise Problem("too-large", f"The headers of all parts are over {_MAX_HEADERS:,} bytes.", cure=_CURE)
        try:
            # Browsers and curl send names as plain UTF-8; the parser for bytes accepts only ASCII.
            part = HeaderParser().parsestr(found[1][2:].decode("utf-8", "surrogateescape"))
            name, field = part.get_filename(), part.get_param("name", header="content-disposition")
        except _MALFORMED:
            raise damaged from None
        if not name and field in OPTIONS:
            raise Problem(
                "bad-request", f"Part {number} of the form is the option {field}, not a file.",
                cure=f"Send it in the query: /v1/batch?{field}=…",
            )  # fmt: skip
        yield shown(name) if name else f"part-{number}", io.BytesIO(piece[found.end() :])
