"""Stored grey values of a DICOM frame → uint8, by the transformations of its header (PS3.3 C.11, C.7.6.16)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tumorlens.inputs.slices import Values, blocks, contrast, grey, sample


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
    if data.get("VOILUTSequence"):
        why = "VOI LUT"
    elif window is not None:
        why = "window"
    else:
        why = "percentiles"
        low, high = contrast(_modality(sample(stored[~padding]), data, frame))
    picture = np.zeros(stored.shape, np.uint8)
    for rows in blocks(stored):
        values = _modality(stored[rows], data, frame)
        if why == "VOI LUT":
            picture[rows] = _voi_lut(values, data)
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
    low, high = sorted((first[0], (last or first)[0]))
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


def _voi_lut(values: Values, data: Any) -> npt.NDArray[np.uint8]:
    from pydicom.dataset import Dataset
    from pydicom.pixels.processing import apply_voi

    settings = Dataset()
    settings.set_original_encoding(*data.original_encoding)
    settings.VOILUTSequence = data.VOILUTSequence
    bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
    return grey(apply_voi(np.rint(values).astype(np.int64), settings), 0, 2**bits - 1)


def _lookup(data: Any, frame: int, group: str, keyword: str) -> Any:
    """An element of this frame's functional groups, else of those that frames share, else of the file."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        for item in groups.get(group) or []:
            if keyword in item:
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
