"""Files that lie beside pictures in folders and zips: a DICOMDIR, notes, licences, thumbnails of a file manager.

They are skipped and counted. A file that should be a picture, by its name, is never one of them, whatever it holds.
"""

import re
from pathlib import PurePath

from tumorlens.core.progress import log
from tumorlens.core.text import shown
from tumorlens.readers.pixels import SUFFIXES
from tumorlens.readers.signatures import GZIP, ZIP, is_dicom, is_dicomdir, is_nifti, is_raster

_PICTURES = SUFFIXES | {
    ".dcm", ".dicom", ".ima", ".nii", ".gz", ".zip", ".img", ".hdr", ".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k",
    ".mgz", ".mgh", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".par", ".rec",
}  # fmt: skip
_OFFICE = {".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".jar", ".epub", ".numbers", ".pages"}  # zips, by content
_OTHERS = {".pdf", ".doc", ".xls", ".ppt", ".exe", ".dll", ".so", ".db", ".lnk", ".ico", ".pyc", ".ini", ".inf", ".chm"}
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # what no text holds
_NAMED = 3  # files that the line in the log names


class Skipped:
    """Counts skipped files, and keeps the names of the first."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._first: list[str] = []

    def add(self, source: str) -> None:
        """Count a file or a hidden folder, once."""
        self._seen.add(hash(source))
        name = shown(source.rstrip("/").rpartition("/")[2])
        if len(self._first) < _NAMED and name not in self._first:
            self._first.append(name)

    def report(self) -> None:
        """One line in the log, if there are any."""
        if n := len(self._seen):
            files = "1 file that is not a picture" if n == 1 else f"{n:,} files that are not pictures"
            more = ", …" if n > len(self._first) else ""
            log.info(f"Skipped {files}: {', '.join(self._first)}{more}")


def is_companion(name: str, head: bytes) -> bool:
    """Whether a file of this name that begins with these bytes is no picture, nor meant to be one."""
    suffix = PurePath(name).suffix.lower()
    if suffix in _OFFICE or is_dicomdir(head):
        return True
    if suffix in _PICTURES or head.startswith((GZIP, *ZIP)) or is_dicom(head) or is_nifti(head) or is_raster(head):
        return False
    return suffix in _OTHERS or bool(head and not _BINARY.search(head))


def may_be_companion(name: str) -> bool:
    """Whether `is_companion` depends on the content: a file with a picture's suffix need not be opened."""
    return PurePath(name).suffix.lower() not in _PICTURES or "dicomdir" in name.lower()
