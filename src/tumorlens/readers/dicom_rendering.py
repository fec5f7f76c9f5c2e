"""Stored grey values of a DICOM frame → uint8, by the transformations of its header (PS3.3 C.11, C.7.6.16)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.readers.dicom_limits import check_length
from tumorlens.readers.types import (
    Values,
    blocks,
    contrast,
    grey,
    sample,
)


def rendered(stored: Values, data: Any, frame: int) -> tuple[npt.NDArray[np.uint8], str]:
    """Grey picture of a frame, and what its contrast comes from.

    Parameters
    ----------
    stored
        [rows, columns], as decoded.
    data
        pydicom's dataset: MONOCHROME1 or MONOCHROME2.
    frame
        0-based; enhanced files have transformations of their own for each frame.

    Returns
    -------
    picture
        uint8 [rows, columns]; padding is black.
    contrast
        "VOI LUT", "window" or "percentiles".
    """
    padding = _padding(stored, data)
    window = _window(data, frame)
    low = high = 0.0
    table, start = np.zeros(0, np.uint8), 0
    if data.get("VOILUTSequence"):
        why = "VOI LUT"
        table, start = _voi_table(data, signed=_below_zero(stored, data, frame))
    elif window is not None:
        why = "window"
    else:
        why = "percentiles"
        low, high = contrast(_modality(sample(stored[~padding]), data, frame))
    picture = np.zeros(stored.shape, np.uint8)
    for rows in blocks(stored):
        values = _modality(stored[rows], data, frame)
        if why == "VOI LUT":
            picture[rows] = table[np.clip(np.rint(values).astype(np.int64) - start, 0, len(table) - 1)]
        elif window is not None:
            picture[rows] = _windowed(values, *window)
        else:
            picture[rows] = grey(values, low, high)
    if data.PhotometricInterpretation == "MONOCHROME1":
        picture = 255 - picture
    picture[padding] = 0
    return picture, why


def spacing(data: Any, frame: int) -> tuple[float, float]:
    """Distance of rows and of columns in mm or in proportion; (1, 1) where the header has none."""
    found = _numbers(_lookup(data, frame, "PixelMeasuresSequence", "PixelSpacing"))
    for keyword in ("ImagerPixelSpacing", "PixelAspectRatio"):
        found = found or _numbers(data.get(keyword))
    return (found[0], found[1]) if len(found) == 2 else (1.0, 1.0)


def _modality(stored: Values, data: Any, frame: int) -> Values:
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_modality_lut

    settings = Dataset()
    settings.set_original_encoding(*data.original_encoding)
    if data.get("ModalityLUTSequence"):
        _check_table(data.ModalityLUTSequence[0])
        settings.ModalityLUTSequence = data.ModalityLUTSequence
        stored = stored.astype(np.int64)  # pydicom subtracts within the stored type, where small ones overflow
    else:
        group = "PixelValueTransformationSequence"
        slope = _numbers(_lookup(data, frame, group, "RescaleSlope"))
        intercept = _numbers(_lookup(data, frame, group, "RescaleIntercept"))
        if not slope or slope[0] == 0:  # would make every picture one grey
            return stored
        settings.RescaleSlope, settings.RescaleIntercept = slope[0], (intercept or [0.0])[0]
    return apply_modality_lut(stored, settings)


def _padding(stored: Values, data: Any) -> npt.NDArray[np.bool_]:
    """Where there is no image, such as around a round field of view."""
    first, last = _numbers(data.get("PixelPaddingValue")), _numbers(data.get("PixelPaddingRangeLimit"))
    if not first:
        return np.zeros(stored.shape, np.bool_)
    ends = (first[0], (last or first)[0])
    if stored.dtype.kind == "i":  # some write the padding of signed pixels as unsigned
        ends = (_signed(ends[0]), _signed(ends[1]))
    low, high = sorted(ends)
    return np.asarray((stored >= low) & (stored <= high))


def _window(data: Any, frame: int) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window that can be used."""
    group = "FrameVOILUTSequence"
    centres, widths = (_numbers(_lookup(data, frame, group, k)) for k in ("WindowCenter", "WindowWidth"))
    function = str(_lookup(data, frame, group, "VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    least = 1 if function == "LINEAR" else 0
    for centre, width in zip(centres, widths, strict=False):
        if width > least:
            return centre, width, function
    return None


def _windowed(values: Values, centre: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_windowing

    settings = Dataset()
    settings.WindowCenter, settings.WindowWidth, settings.VOILUTFunction = centre, width, function
    # The result then spans 0 to 255: the output range follows the stored bits.
    settings.PhotometricInterpretation, settings.BitsStored, settings.PixelRepresentation = "MONOCHROME2", 8, 0
    return grey(apply_windowing(values, settings), 0, 255)


def _voi_table(data: Any, *, signed: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """The VOI table's greys [n], and the value that the first is for.

    Not pydicom's apply_voi, which counts entries in the type of what they hold, where 8 bits are too few.

    Parameters
    ----------
    signed
        Whether the values looked up may be negative, so that its first value may be, though read as unsigned.
    """
    item = data.VOILUTSequence[0]
    _check_table(item)
    entries, start, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries % 65536 or 65536
    held = item["LUTData"]
    if isinstance(held.value, bytes):
        little = data.original_encoding[1]
        table = np.frombuffer(held.value, "<u2" if little else ">u2", entries)
    else:
        table = np.atleast_1d(np.asarray(held.value, np.uint16))[:entries]
    if bits not in (8, *range(10, 17)) or len(table) < entries or int(table.max()) >= 2 ** max(8, bits):
        raise ValueError("no table of the standard's")
    return grey(table, 0, 2**bits - 1), int(_signed(start)) if signed else start


def _check_table(item: Any) -> None:
    for keyword in ("LUTDescriptor", "LUTData"):
        check_length(item.get_item(keyword))


def _below_zero(stored: Values, data: Any, frame: int) -> bool:
    """Whether values after the modality transformation may be negative, by what pixels may hold."""
    if stored.dtype.kind == "f":
        return True
    bits = min(int(data.get("BitsStored") or 64), 8 * stored.dtype.itemsize)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    return bool(_modality(np.array(ends, stored.dtype), data, frame).min() < 0)


def _signed(value: float) -> float:
    """A number of 16 bits that was read as unsigned, as a signed one."""
    return value - 65536 if value > 32767 else value


def _lookup(data: Any, frame: int, group: str, keyword: str) -> Any:
    """An element of this frame's functional groups, else of those that frames share, else of the file."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        for item in groups.get(group) or []:
            if keyword in item:
                check_length(item.get_item(keyword))
                return item[keyword].value
    return data.get(keyword)


def _numbers(value: Any) -> list[float]:
    """Finite numbers of an element of any multiplicity; empty if it is absent or any is not one."""
    values = value if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
    try:
        found = [float(v) for v in values]
    except (TypeError, ValueError):
        return []
    return found if all(math.isfinite(v) for v in found) else []
