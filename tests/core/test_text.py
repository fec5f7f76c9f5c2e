"""Names from outside are safe to print."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tumorlens.core.text import shown


@given(st.text(max_size=30))
def test_shown_names_are_printable(name: str) -> None:
    made = shown(name)
    assert made.encode("utf-8").decode("utf-8") == made
    assert not any(ord(c) < 32 or ord(c) == 127 for c in made)
    if name.isascii() and name.isprintable():
        assert made == name
