"""Records and indexes without files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tumorlens.data.index import (
    ImageRecord,
    Index,
)


def rows(n: dict[str, int], part: str = "Training") -> list[ImageRecord]:
    return [
        row(f"{part}/{label}/{i:05d}.jpg", label, part, content=f"{part}{label}{i}")
        for label, count in n.items()
        for i in range(count)
    ]


def row(path: str, label: str, part: str, *, content: str) -> ImageRecord:
    return ImageRecord(path, content, 1, 9, 9, "L", "", 0.0, 9.0, 0.0, content, label, part)


def index_of(found: list[ImageRecord]) -> Index:
    classes = tuple(sorted({r.label for r in found}))
    return Index(Path("x"), classes, tuple(found), (), np.zeros((len(found), 32, 32), np.uint8))
