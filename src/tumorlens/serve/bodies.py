"""What was sent if no file could be read in a body: a form, JSON, base64, text, something compressed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tumorlens.readers.signatures import GZIP, is_dicom, is_nifti, is_raster
from tumorlens.serve.problems import Problem

_HEAD = 4_096  # bytes that are looked at
_ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR"}
_BYTES = "Send the file's bytes as the body, as curl --data-binary @slice.png does"
_REMOVED_BY_CURL = (b"\0", b"\r", b"\n")
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")
_FIELD = re.compile(rb"[\w.%+\[\]-]{1,100}=")
_HEX = re.compile(rb"[0-9A-Fa-f]{60,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{60,}={0,2}")


def explained(problem: Problem, body: bytes, headers: Mapping[str, str], *, batch: bool = False) -> Problem:
    """The problem, or a better one that says what the body is and what to send instead. No word of it is quoted.

    Parameters
    ----------
    problem
        Raised by reading the body.
    batch
        Whether it was sent to /v1/batch, which takes a zip or a form.
    """
    if problem.kind not in ("unsupported-format", "unreadable") and not (batch and problem.kind == "bad-request"):
        return problem
    found = _compressed(headers)
    if not found and problem.kind == "bad-request":
        return problem  # of a damaged form, which says what is wrong with it
    found = found or _form(body, headers, batch=batch) or _archive(body)
    if batch and not found and _is_file(body[:_HEAD]):
        found = "is one file", "Send it to /v1/predict, or several files here as a zip or a form."
    found = found or _text(body[:_HEAD], headers) or _stripped(body, headers)
    return Problem("unsupported-format", f"The body {found[0]}.", cure=found[1]) if found else problem


def _compressed(headers: Mapping[str, str]) -> tuple[str, str] | None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return None
    name = encoding if encoding in _ENCODINGS else "of another kind"
    return f"was sent with a Content-Encoding ({name})", "Send it without one. A .nii.gz file is read as it is."


def _form(body: bytes, headers: Mapping[str, str], *, batch: bool) -> tuple[str, str] | None:
    named = headers.get("content-type", "").strip().lower().startswith("multipart/")
    if not body.startswith(b"--") or not (named or b"content-disposition:" in body[:_HEAD].lower()):
        return None
    if batch:
        return (
            "is a form, but its Content-Type is another",
            "Send the Content-Type multipart/form-data with its boundary.",
        )
    return "is a form (multipart/form-data)", f"{_BYTES}; or send the form to /v1/batch."


def _archive(body: bytes) -> tuple[str, str] | None:
    kind = next((name for start, name in _ARCHIVES.items() if body.startswith(start)), "")
    if body[257:262] == b"ustar":
        kind = "tar"
    return (f"is a {kind} archive", "Make it a zip, and send that to /v1/batch.") if kind else None


def _is_file(head: bytes) -> bool:
    return is_raster(head) or is_dicom(head) or is_nifti(head) or head.startswith(GZIP)


def _text(head: bytes, headers: Mapping[str, str]) -> tuple[str, str] | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return "is text", f"{_BYTES}."
    if _BINARY.search(head):
        return None
    start, kind = head.removeprefix(b"\xef\xbb\xbf").strip(), headers.get("content-type", "").lower()
    solid = b"".join(start.split())
    if start[:7].lower().startswith((b"data:", b"data%3a")):
        return "is a data: URL", "Decode what follows its comma as base64, and send the bytes."
    if start[:1] in (b"{", b"[", b'"') or ("json" in kind and start):
        return "is JSON", f"{_BYTES}; not base64 in JSON."
    if start.startswith((b"b'", b'b"')):
        return "is how Python prints bytes", "Send the bytes themselves, such as data=open('slice.png', 'rb')."
    if _HEX.fullmatch(solid) or _BASE64.fullmatch(solid):
        return f"is {'hexadecimal' if _HEX.fullmatch(solid) else 'base64'} text", "Decode it, and send the bytes."
    if start[:1] == b"<":
        return "is HTML or XML", f"{_BYTES}. Perhaps the file is an error page that was saved under its name."
    if _FIELD.match(start):
        return "is a form (application/x-www-form-urlencoded)", f"{_BYTES}."
    if len(start) < 1_000 and b"\n" not in start:
        return "is a short text", f"{_BYTES}, with @ before the name. The service opens no paths or addresses."
    return "is text", f"{_BYTES}."


def _stripped(body: bytes, headers: Mapping[str, str]) -> tuple[str, str] | None:
    """A file from which `curl -d @file` has removed bytes."""
    form = headers.get("content-type", "").lower().startswith("application/x-www-form-urlencoded")
    if not form or len(body) < 1_000 or any(byte in body for byte in _REMOVED_BY_CURL):
        return None
    return "has no line breaks or zero bytes, as curl -d removes them", "Use curl --data-binary instead of curl -d."
