"""TIFF: tags that would cost far more than their file are refused before Pillow parses them."""

from __future__ import annotations

import struct

import pytest
from input_files import reason
from PIL import Image

from tumorlens.readers import read_bytes


def tiff(*pages: list[tuple[int, int, int, int]], sign: str = "<") -> bytes:
    """A TIFF that has only tags (tag, type, count, value), no pixels."""
    made = struct.pack(f"{sign}2sHI", b"II" if sign == "<" else b"MM", 42, 8)
    for page in pages:
        after = 0 if page is pages[-1] else len(made) + 6 + 12 * len(page)
        entries = b"".join(struct.pack(f"{sign}HHII", *entry) for entry in page)
        made += struct.pack(f"{sign}H", len(page)) + entries + struct.pack(f"{sign}I", after)
    return made


SIDES = [(256, 4, 1, 64), (257, 4, 1, 64)]


@pytest.mark.parametrize("sign", ["<", ">"])
@pytest.mark.parametrize(
    ("pages", "wanted"),
    [
        ([[*SIDES, (273, 4, 400_000, 8)]], "over 144 strips"),
        ([SIDES, [*SIDES, (324, 4, 400_000, 8)]], "over 144 strips"),
        ([[*SIDES, (258, 3, 1_000_001, 8)]], "over 1,000,000 values"),
        ([[*SIDES] * 501], "over 1,000 tags"),
        ([[*SIDES, *((i, 7, 5_000, 8) for i in range(50_000, 50_400))]], "more bytes of tags than the file"),
    ],
)  # fmt: skip
def test_a_tiff_whose_tags_cost_too_much_is_refused_before_pillow_opens_it(
    pages: list[list[tuple[int, int, int, int]]], wanted: str, sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert wanted in reason(read_bytes(tiff(*pages, sign=sign), "x"))
