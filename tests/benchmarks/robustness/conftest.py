"""Fixtures of the tests of figures on the uncertainty model."""

from uncertainty_cases import parts, slices, trust

__all__ = ["parts", "slices", "trust"]
