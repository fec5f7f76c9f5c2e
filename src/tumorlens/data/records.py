"""What study.json and audit.json record about a data set."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tumorlens.core.files import Json


def split_hash(rows: Any) -> str:
    """SHA-256 over which image has which part, hex."""
    lines = sorted(f"{row.path}\t{row.split}\n" for row in rows)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def identity_of(folder: Any, index: Any) -> Any:
    """Which known data set an index is, as far as counts, names and hashes tell."""
    from tumorlens.data.datasheets import identify

    return identify(
        index.counts(),
        (row.sha256 for row in index.rows),
        names=(f"{row.part}/{row.label}/{Path(row.path).name}" for row in index.rows),
        generated=folder.generated,
    )


def dataset_record(folder: Any, index: Any, identity: Any) -> Json:
    """The part of study.json that tells which data set it is."""
    from tumorlens.data.datasheets import fingerprint

    sheet = identity.sheet
    return {
        "name": sheet.title if sheet else folder.root.name,
        "sheet": sheet.key if sheet else None,
        "root": str(folder.root.resolve()),
        "source": folder.source,
        "licence": sheet.licence if sheet else "",
        "fingerprint": fingerprint(row.sha256 for row in index.rows),
        "n_images": len(index.rows),
        "counts": index.counts(),
        "comparable_to_published": identity.comparable,
        "notes": list(identity.notes),
        "excluded": len(index.unreadable),
    }


def audit_record(index: Any, identity: Any) -> Json:
    """audit.json: what was left out and why, and files that differ only in name."""
    return {
        "unreadable": [asdict(u) for u in index.unreadable],
        "same_content": index.same_content(),
        "colour_images": sum(row.colour > 0.001 for row in index.rows),
        "datasheet": {
            "sheet": identity.sheet.key if identity.sheet else None,
            "exact": identity.exact,
            "comparable": identity.comparable,
            "notes": list(identity.notes),
            "missing": list(identity.missing),
            "extra": list(identity.extra),
        },
    }
