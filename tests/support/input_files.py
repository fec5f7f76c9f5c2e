"""Helpers for tests of the readers, and the files that fuzzing starts from."""

from __future__ import annotations

from collections.abc import Iterable

import fuzz_seeds as seeds

from tumorlens.readers import Slice, Unreadable

__all__ = ["only", "reason", "seeds", "slices"]


def slices(found: Iterable[Slice | Unreadable]) -> list[Slice]:
    """All slices; an unreadable file fails the test."""
    made = list(found)
    assert all(isinstance(one, Slice) for one in made), made
    return [one for one in made if isinstance(one, Slice)]


def only(found: Iterable[Slice | Unreadable]) -> Slice:
    """The only slice."""
    made = slices(found)
    assert len(made) == 1
    return made[0]


def reason(found: Iterable[Slice | Unreadable]) -> str:
    """The only reason, which must have a cure."""
    made = list(found)
    assert len(made) == 1, made
    assert isinstance(made[0], Unreadable), made
    assert made[0].cure
    return made[0].reason
