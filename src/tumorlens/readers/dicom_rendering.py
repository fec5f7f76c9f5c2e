"""Stored grey values of a DICOM frame → uint8, by the transformations in its header (PS3.3 C.11, C.7.6.16)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from tumorlens.readers.dicom_elements import lookup, numbers
from tumorlens.readers.dicom_limits import check_length
from tumorlens.readers.pixels import plausible_spacing
from tumorlens.readers.scaling import Values, blocks, contrast_range, sample, to_uint8


def render_grey(stored: Values, data: Any, frame: int) -> tuple[npt.NDArray[np.uint8], str]:
    """Grey picture of a frame, and the source of its contrast.

    Parameters
    ----------
    stored
        [rows, columns], as decoded.
    data
        pydicom's dataset: MONOCHROME1 or MONOCHROME2.
    frame
        0-based; enhanced files have transformations for each frame.

    Returns
    -------
    picture
        uint8 [rows, columns]; padding is black.
    contrast
        "VOI LUT", "window" or "percentiles".
    """
    padding = _padding(stored, data)
    if data.get("VOILUTSequence"):
        contrast = "VOI LUT"
        table, first = _voi_table(data, signed=_below_zero(stored, data, frame))
        shade: Callable[[Values], npt.NDArray[np.uint8]] = partial(_look_up, table=table, first=first)
    elif window := _window(data, frame):
        contrast = "window"
        shade = partial(_apply_window, window=window)
    else:
        contrast = "percentiles"
        low, high = contrast_range(_modality(sample(stored[~padding]), data, frame))
        shade = partial(to_uint8, low=low, high=high)
    picture = np.zeros(stored.shape, np.uint8)
    for rows in blocks(stored):
        picture[rows] = shade(_modality(stored[rows], data, frame))
    if data.PhotometricInterpretation == "MONOCHROME1":
        picture = 255 - picture
    picture[padding] = 0
    return picture, contrast


def pixel_spacing(data: Any, frame: int) -> tuple[float, float]:
    """Distance between rows and between columns, in mm or as a ratio; (1, 1) if the header has no plausible one."""
    found = [lookup(data, frame, "PixelMeasuresSequence", "PixelSpacing")]
    found += [data.get(k) for k in ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")]
    shape = int(data.Rows), int(data.Columns)
    return next(filter(None, (plausible_spacing(shape, numbers(value)) for value in found)), (1.0, 1.0))


def palette_in_native_order(data: Any) -> Any:
    """The same dataset with the words of its palettes in the order that pydicom expects: it swaps none itself, except
    those of segmented palettes with 16 bits."""
    if data.original_encoding[1]:
        return data
    swapped = copy.copy(data)
    for colour in ("Red", "Green", "Blue"):
        bits = data[f"{colour}PaletteColorLookupTableDescriptor"].value[2]
        for keyword in (f"{colour}PaletteColorLookupTableData", f"Segmented{colour}PaletteColorLookupTableData"):
            if keyword in data and data[keyword].VR == "OW" and not (keyword.startswith("Segmented") and bits > 8):
                words = np.frombuffer(data[keyword].value, np.uint16).byteswap()
                swapped[keyword] = DataElement(data[keyword].tag, "OW", words.tobytes())
    return swapped


def _modality(stored: Values, data: Any, frame: int) -> Values:
    """The values after the modality transformation."""
    if data.get("ModalityLUTSequence"):
        _check_table(data.ModalityLUTSequence[0])
        table = Dataset()
        table.set_original_encoding(*data.original_encoding)
        table.ModalityLUTSequence = data.ModalityLUTSequence
        return apply_modality_lut(
            stored.astype(np.int64), table
        )  # pydicom subtracts in the given type: 8 bits overflow
    slope, intercept = (
        numbers(lookup(data, frame, "PixelValueTransformationSequence", keyword))
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if not slope or slope[0] == 0:  # would make every picture a single grey
        return stored
    return stored.astype(np.float64) * slope[0] + (intercept or [0.0])[0]


def _padding(stored: Values, data: Any) -> npt.NDArray[np.bool_]:
    """bool [rows, columns], true outside the image, such as around a circular field of view."""
    first, last = numbers(data.get("PixelPaddingValue")), numbers(data.get("PixelPaddingRangeLimit"))
    if not first:
        return np.zeros(stored.shape, np.bool_)
    ends = (first[0], (last or first)[0])
    if stored.dtype.kind == "i":  # some files store the padding value of signed pixels as unsigned
        ends = (_signed(ends[0]), _signed(ends[1]))
    low, high = sorted(ends)
    return np.asarray((stored >= low) & (stored <= high))


def _window(data: Any, frame: int) -> tuple[float, float, str] | None:
    """Centre, width and function of the first usable window."""
    group = "FrameVOILUTSequence"
    centres, widths = (numbers(lookup(data, frame, group, k)) for k in ("WindowCenter", "WindowWidth"))
    function = str(lookup(data, frame, group, "VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    least = 1 if function == "LINEAR" else 0
    for centre, width in zip(centres, widths, strict=False):
        if width > least:
            return centre, width, function
    return None


def _look_up(values: Values, table: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.uint8]:
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)]


def _apply_window(values: Values, window: tuple[float, float, str]) -> npt.NDArray[np.uint8]:
    settings = Dataset()
    settings.WindowCenter, settings.WindowWidth, settings.VOILUTFunction = window
    # The result then spans 0 to 255: the output range follows the stored bits.
    settings.PhotometricInterpretation, settings.BitsStored, settings.PixelRepresentation = "MONOCHROME2", 8, 0
    return to_uint8(apply_windowing(values, settings), 0, 255)


def _voi_table(data: Any, *, signed: bool) -> tuple[npt.NDArray[np.uint8], int]:
    """The VOI table's grey values, uint8 [n], and the stored value that its first entry maps.

    Not pydicom's apply_voi, which counts entries in their own type, where 8 bits are too few.

    Parameters
    ----------
    signed
        Whether stored values may be negative; if so, the first mapped value may be too, although read as unsigned.
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
        raise ValueError("not a table of the standard")
    return to_uint8(table, 0, 2**bits - 1), int(_signed(start)) if signed else start


def _check_table(item: Any) -> None:
    for keyword in ("LUTDescriptor", "LUTData"):
        check_length(item.get_item(keyword))


def _below_zero(stored: Values, data: Any, frame: int) -> bool:
    """Whether values may be negative after the modality transformation, by the range of the stored type."""
    if stored.dtype.kind == "f":
        return True
    bits = min(int(data.get("BitsStored") or 64), 8 * stored.dtype.itemsize)
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if stored.dtype.kind == "i" else (0, 2**bits - 1)
    return bool(_modality(np.array(ends, stored.dtype), data, frame).min() < 0)


def _signed(value: float) -> float:
    """A signed 16-bit number that was read as unsigned."""
    return value - 65536 if value > 32767 else value
