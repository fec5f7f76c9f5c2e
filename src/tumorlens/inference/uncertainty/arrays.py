"""Types, softmax, and arrays as JSON: numpy alone."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import WeightsError
from tumorlens.core.files import Json

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
CURE = "Export the model anew."
_STORED = ("float16", "float32")


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """float64 [n, k], rows sum to 1, of logits [n, k] divided by a temperature above 0."""
    z = np.asarray(logits, np.float64) / temperature
    raised = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float64)


def packed(values: npt.ArrayLike, dtype: str = "float32") -> Json:
    """An array for JSON: dtype (float16 or float32), shape, and its little-endian bytes in base64."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def unpacked(record: Any, shape: tuple[int | None, ...], name: str) -> npt.NDArray[np.float32]:
    """The array that `packed` wrote, as float32.

    Parameters
    ----------
    shape
        What it must have; None for any length.
    name
        Of the field, for the message.

    Raises
    ------
    WeightsError
        Missing, another shape or type, damaged, or not finite.
    """
    try:
        dtype, found = record["dtype"], tuple(record["shape"])
        if dtype not in _STORED:
            raise ValueError(f"dtype {dtype!r}")
        content = base64.b64decode(record["base64"], validate=True)
        values = np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(found).astype(np.float32)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise WeightsError(f"The field {name!r} of the trust record is damaged ({error}).", cure=CURE) from None
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise WeightsError(f"The field {name!r} of the trust record has shape {list(found)}.", cure=CURE)
    if not np.isfinite(values).all():
        raise WeightsError(f"The field {name!r} of the trust record holds NaN or infinity.", cure=CURE)
    return values


def number(record: Any, name: str, low: float, high: float, of: str = "") -> float:
    """The number under `name` in the record (of field `of`), `low` to `high`; WeightsError where there is none."""
    value = record.get(name) if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        field = f"{of}.{name}" if of else name
        raise WeightsError(
            f"The field {field!r} of the trust record is {value!r}, not a number from {low:g} to {high:g}.", cure=CURE
        )
    return float(value)
