"""Generated files for the tests of the readers: the same that fuzzing starts from."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from tumorlens.inputs import Slice, Unreadable

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


seeds = load("fuzz_seeds")


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
