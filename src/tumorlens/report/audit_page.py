"""The audit of a data set as one offline page: the leak by class, and its worst pairs as images."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.files import Json
from tumorlens.report.galleries import read_thumbnail
from tumorlens.report.page import write_page

_DOUBTS_SHOWN = 48
_CONFLICTS_SHOWN = 24


def write_audit_page(path: Path, found: Json, root: Path) -> None:
    """Write the page of an audit.

    Parameters
    ----------
    path
        The file to write.
    found
        From `run_audit`.
    root
        Folder of the images.

    Raises
    ------
    RunError
        The file cannot be written.
    """
    audit = found["audit"]
    doubts = audit.get("label_doubts", [])[:_DOUBTS_SHOWN]
    conflicts = audit["conflicts"][:_CONFLICTS_SHOWN]
    wanted = [p for pairs in audit["leaks"].values() for pair in pairs for p in (pair["path"], pair["twin"])]
    wanted += [p for c in conflicts for p in c["paths"]] + [d["path"] for d in doubts]
    images = {p: read_thumbnail(f"image-{i}", root, p) for i, p in enumerate(dict.fromkeys(wanted))}
    view = {"found": found, "audit": audit, "images": images, "doubts": doubts, "conflicts": conflicts}
    write_page(path, "audit.html.j2", view)
