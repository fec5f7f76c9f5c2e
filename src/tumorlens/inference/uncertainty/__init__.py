"""How far a prediction can be trusted: calibration, prediction sets, and refusal of images that are not brain MRI.

Verdicts need only numpy; fitting (`uncertainty.fitting`) needs the `study` extra.
"""

from tumorlens.inference.uncertainty.verdicts import OK, REFUSED, UNCERTAIN, Classification, UncertaintyModel

__all__ = ["OK", "REFUSED", "UNCERTAIN", "Classification", "UncertaintyModel"]
