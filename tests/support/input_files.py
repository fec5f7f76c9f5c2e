"""Generated files for the tests of the readers: the same that fuzzing starts from."""

from __future__ import annotations

from collections.abc import Iterable

import fuzz_seeds as seeds

from tumorlens.readers import Slice, Unreadable

__all__ = ["only", "reason", "seeds", "slices"]


def slices(found: Iterable[Slice | Unreadable]) -> list[Slice]:
    """All of them; a reason among them fails the test."""
    made = list(found)
    assert all(isinstance(one, Slice) for one in made), made
    return [one for one in made if isinstance(one, Slice)]


def only(found: Iterable[Slice | Unreadable]) -> Slice:
    """The one slice that there is."""
    made = slices(found)
    assert len(made) == 1
    return made[0]


def reason(found: Iterable[Slice | Unreadable]) -> str:
    """The one reason that there is, checked for a cure."""
    made = list(found)
    assert len(made) == 1, made
    assert isinstance(made[0], Unreadable), made
    assert made[0].cure
    return made[0].reason
