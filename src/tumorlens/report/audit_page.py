"""The audit of a data set as one offline page: the leak by class, and its worst pairs as pictures."""

from __future__ import annotations

from pathlib import Path

from tumorlens.core.files import Json, writing
from tumorlens.core.version import __version__
from tumorlens.report.galleries import Thumbnail, read_thumbnail
from tumorlens.report.html import environment

_DOUBTS_SHOWN = 48
_CONFLICTS_SHOWN = 24


def write_audit_page(path: Path, found: Json, root: Path) -> None:
    """Write the page.

    Parameters
    ----------
    path
        Where.
    found
        From `run_audit`.
    root
        Folder of the images.

    Raises
    ------
    RunError
        It cannot be written.
    """
    audited = found["audit"]
    doubts = audited.get("label_doubts", [])[:_DOUBTS_SHOWN]
    conflicts = audited["conflicts"][:_CONFLICTS_SHOWN]
    wanted = [p for pairs in audited["leaks"].values() for pair in pairs for p in (pair["path"], pair["twin"])]
    wanted += [p for c in conflicts for p in c["paths"]] + [d["path"] for d in doubts]
    pictures: dict[str, Thumbnail] = {
        p: read_thumbnail(f"image-{i}", root, p) for i, p in enumerate(dict.fromkeys(wanted))
    }
    page = environment().get_template("audit.html.j2").render(
        found=found, audit=audited, pictures=pictures, doubts=doubts, conflicts=conflicts, version=__version__
    )  # fmt: skip
    with writing(path) as file:
        file.write(page.encode("utf-8", errors="replace"))
