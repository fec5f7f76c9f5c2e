"""How far a prediction can be trusted: calibration, prediction sets, and refusal of images that are not brain MRI.

Verdicts need only numpy; fitting and measuring need the `study` extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tumorlens.inference.uncertainty.verdicts import OK, REFUSED, UNCERTAIN, Classification, UncertaintyModel

if TYPE_CHECKING:
    from tumorlens.inference.uncertainty.fitting import LabelledOutputs, TrainingOutputs, fit_uncertainty

__all__ = [
    "OK",
    "REFUSED",
    "UNCERTAIN",
    "Classification",
    "LabelledOutputs",
    "TrainingOutputs",
    "UncertaintyModel",
    "fit_uncertainty",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: fitting needs scipy, verdicts do not.
    if name in ("LabelledOutputs", "TrainingOutputs", "fit_uncertainty"):
        return getattr(import_module("tumorlens.inference.uncertainty.fitting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
