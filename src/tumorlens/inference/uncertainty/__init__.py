"""How far a classifier's answer can be trusted: calibration, prediction sets, refusal of foreign images.

Judging needs numpy alone; fitting and measuring need the study's extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tumorlens.inference.uncertainty.verdicts import (
    OK,
    REFUSED,
    UNCERTAIN,
    Judgement,
    Trust,
)

if TYPE_CHECKING:
    from tumorlens.inference.uncertainty.fitting import Answers, Learned, fit_trust

__all__ = [
    "OK",
    "REFUSED",
    "UNCERTAIN",
    "Answers",
    "Judgement",
    "Learned",
    "Trust",
    "fit_trust",
]

_HOMES = {"Answers": "fitting", "Learned": "fitting", "fit_trust": "fitting"}


def __getattr__(name: str) -> Any:
    # Lazy, so that judging needs no scipy.
    if name in _HOMES:
        return getattr(import_module(f"tumorlens.inference.uncertainty.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tumorlens.inference.uncertainty' has no attribute {name!r}")
