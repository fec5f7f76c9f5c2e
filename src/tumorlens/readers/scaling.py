"""Values of any depth → uint8, with a contrast range that a few outliers do not set."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]

#: Percentiles of the grey values that become black and white if a file names no window. Most training images were
#: scaled to their brightest pixel, which leaves the brain dark; the top half percent holds vessels, fat and artefacts,
#: none of which should set the contrast of everything else.
BLACK, WHITE = 0.5, 99.5
_BLOCK = 1_000_000  # values processed at once
_SAMPLE = 2_000_000  # values that percentiles are taken from; more make no visible difference


def contrast_range(values: Values) -> tuple[float, float]:
    """Grey values that become black and white by default: the 0.5th and 99.5th percentile.

    Parameters
    ----------
    values
        A slice or volume of any shape and real dtype; of over two million values an even sample is used.

    Returns
    -------
    tuple of float
        The smallest and largest value if the percentiles coincide, as in a mask; (0, 0) if no value is finite.
    """
    flat = sample(values)
    flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return 0.0, 0.0
    with np.errstate(over="ignore"):  # interpolating between the ends of float64 overflows
        low, high = (float(v) for v in np.percentile(flat.astype(np.float64), (BLACK, WHITE)))
    return (low, high) if low < high else (float(flat.min()), float(flat.max()))


def sample(values: Values) -> Values:
    """At most two million of the values, evenly spaced, [n]."""
    flat = values.ravel(order="K")
    return flat[:: max(1, math.ceil(flat.size / _SAMPLE))]


def to_uint8(values: Values, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Scale linearly to uint8 of the same shape: `low` and below is 0, `high` and above (infinity too) 255; NaN is 0.

    All is 0 unless `low` is below `high`.
    """
    made = np.zeros(values.shape, np.uint8)
    if not low < high:
        return made
    for rows in blocks(values):  # float64 of a large picture at once would take a gigabyte
        with np.errstate(all="ignore"):  # extreme floats, which are clipped right after
            scaled = (values[rows].astype(np.float64) - low) * (255.0 / (high - low))
        made[rows] = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255))
    return made


def blocks(values: Values) -> Iterator[slice]:
    """Slices along the first axis of about a million values each; a single one for an ordinary picture."""
    step = max(1, _BLOCK * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        yield slice(start, start + step)
