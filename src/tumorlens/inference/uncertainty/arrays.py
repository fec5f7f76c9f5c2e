"""Array types, softmax, and arrays as JSON; needs only numpy."""

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
EXPORT_AGAIN = "Export the model again: tumorlens export RUN"
_STORED = ("float16", "float32")


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Floats:
    """float64 [n, k], rows sum to 1, of logits [n, k] divided by a temperature above 0."""
    z = np.asarray(logits, np.float64) / temperature
    raised = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float64)


def pack_array(values: npt.ArrayLike, dtype: str = "float32") -> Json:
    """An array for JSON: dtype (float16 or float32), shape, and its little-endian bytes in base64."""
    array = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return {"dtype": dtype, "shape": list(array.shape), "base64": base64.b64encode(array.tobytes()).decode()}


def unpack_array(record: Any, name: str, shape: tuple[int | None, ...], of: str = "") -> npt.NDArray[np.float32]:
    """The array `name` of the record (of field `of`), which `pack_array` made, as float32.

    Parameters
    ----------
    shape
        Required shape; None for any length.

    Raises
    ------
    WeightsError
        The field is missing, damaged or not finite, or has another shape or dtype.
    """
    field = f"{of}.{name}" if of else name
    try:
        entry = record[name]
        dtype, found = entry["dtype"], tuple(entry["shape"])
        if dtype not in _STORED:
            raise ValueError(f"dtype {dtype!r}")
        content = base64.b64decode(entry["base64"], validate=True)
        values = np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(found).astype(np.float32)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise WeightsError(
            f"The field {field!r} of the uncertainty record is damaged ({error}).", cure=EXPORT_AGAIN
        ) from None
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise WeightsError(f"The field {field!r} of the uncertainty record has shape {list(found)}.", cure=EXPORT_AGAIN)
    if not np.isfinite(values).all():
        raise WeightsError(f"The field {field!r} of the uncertainty record holds NaN or infinity.", cure=EXPORT_AGAIN)
    return values


def number(record: Any, name: str, low: float, high: float, of: str = "") -> float:
    """The number `name` of the record (of field `of`); WeightsError unless it is from `low` to `high`."""
    value = record.get(name) if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        field = f"{of}.{name}" if of else name
        raise WeightsError(
            f"The field {field!r} of the uncertainty record is {value!r}, not a number from {low:g} to {high:g}.",
            cure=EXPORT_AGAIN,
        )
    return float(value)
