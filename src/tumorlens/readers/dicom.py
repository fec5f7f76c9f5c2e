"""DICOM → a slice per frame, with the contrast that its header asks for.

A frame goes through the modality transformation (rescale or table), then the VOI transformation (table, or the
first window with its function; PS3.3 C.11.2), then is inverted if MONOCHROME1. Without a usable window the
0.5th and 99.5th percentile of the frame become black and white: of the frame, because a series streams by.
Frames are shown as stored, as viewers show them; rows and columns keep their physical aspect.

Only the elements listed here are parsed, so that names and identifiers of patients never get into memory; and
no text of pydicom's errors is passed on, since it quotes values.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tumorlens.core.errors import ImageError
from tumorlens.readers.codestreams import check_codestream
from tumorlens.readers.dicom_limits import ItemCounter, check_length
from tumorlens.readers.dicom_rendering import rendered, spacing
from tumorlens.readers.jpegls import tried
from tumorlens.readers.types import (
    Facts,
    ReadLimits,
    SeriesNames,
    Slice,
    Unreadable,
    grey,
    squared,
)

_AGAIN = "Download or copy it again."
_EXPORT = "Export it again, or convert it to uncompressed DICOM, with dcmconv or gdcmconv --raw for example."
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_ENDLESS_FRAMES = 3  # of one file; a thousand of them would be a way to stop everything
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MODALITIES = frozenset(["CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "SC", "SM", "US", "XA", "XC"])
_COLOURS = frozenset(["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR"])
_GREYS = frozenset(["MONOCHROME1", "MONOCHROME2"])
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")

#: Everything that is looked at. Functional groups come whole and are looked into by name alone.
_ELEMENTS = (
    *_PIXELS, *_NEEDED, "SOPClassUID", "Modality", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames",
    "PlanarConfiguration", "BitsStored", "HighBit", "PixelRepresentation", "PixelAspectRatio", "PixelSpacing",
    "ImagerPixelSpacing", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "ModalityLUTSequence", "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a DICOM file, with its preamble or without."""
    if head[128:132] == b"DICM":
        return True
    # Without: the first element is of group 2 or 8. Explicit ones name their type, implicit ones have a short value.
    group, element, kind = head[:2], head[2:4], head[4:6]
    if len(head) < 16 or group not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    number = struct.unpack(">H" if group == b"\0\x08" else "<H", element)[0]
    explicit = kind in (b"UL", b"CS", b"UI", b"OB", b"SH", b"LO", b"DA", b"TM", b"DT")
    return number <= 0x1000 and (explicit or (group == b"\x08\0" and head[6:8] == b"\0\0"))


def read_dicom(stream: BinaryIO, source: str, limits: ReadLimits, names: SeriesNames) -> Iterator[Slice | Unreadable]:
    """The frames of a file, decoded one by one; one that is damaged, over a limit, or stored in a way that is not
    decoded is Unreadable.

    Raises
    ------
    ImageError
        It has no image, or a header that cannot be read: it belongs to no series.
    """
    data = _header(stream, limits)
    try:
        with _quiet("is DICOM, but its header cannot be read", _AGAIN):
            image = _checked(data, limits)
    except ImageError as error:
        index, _, series = _place(data, 1, names)
        yield Unreadable(source, index, error.what, error.cure, series)
        return
    index, count, series = _place(data, image.frames, names)
    endless = 0
    for frame in range(image.present):
        facts = dict(image.facts)
        try:
            with _quiet("cannot be decoded", _EXPORT):
                pixels = _frame(image, frame, facts)
        except ImageError as error:
            if count is None:
                yield Unreadable(source, index, error.what, error.cure, series)
                return
            yield Unreadable(source, frame, f"frame {frame + 1} {error.what}", error.cure, series)
            endless += isinstance(error, _EndlessError)
            if endless == _ENDLESS_FRAMES and frame + 1 < image.frames:
                left = (
                    f"frames {frame + 2} to {image.frames} were left out after {endless} whose decoding would not end"
                )
                yield Unreadable(source, image.frames - 1, left, _EXPORT, series)
                return
            continue
        yield Slice(source, index if count is None else frame, count, series, pixels, facts)
    if image.present < image.frames:
        reason = f"promises {image.frames:,} frames and holds {image.present:,}"
        yield Unreadable(source, image.frames - 1, reason, _AGAIN, series)


class _EndlessError(ImageError):
    """A frame whose decoding would not end in reasonable time."""


@dataclass(frozen=True)
class _Image:
    data: Any
    """pydicom's dataset with the elements listed above."""
    frames: int
    present: int
    """Frames that there are pixels for, `frames` in a whole file."""
    facts: Facts


def _header(stream: BinaryIO, limits: ReadLimits) -> Any:
    """pydicom's dataset with the elements listed above."""
    import pydicom

    size = stream.seek(0, 2)
    if size > limits.bytes:
        raise ImageError(f"{size:,} bytes, over the limit of {limits.bytes:,}", cure="Split it into its frames.")
    with _quiet("is DICOM, but its header cannot be read", _AGAIN):
        counter = ItemCounter(size, limits)
        stream.seek(0)
        while piece := stream.read(1 << 20):
            counter.add(piece)
        _check_deflated(stream, limits, ItemCounter(size, limits))
        stream.seek(0)
        data = pydicom.dcmread(stream, force=True, specific_tags=list(_ELEMENTS))
        if not data:  # which is all that pydicom leaves of a file that ends within compressed pixels
            stream.seek(0)
            data = pydicom.dcmread(stream, force=True, specific_tags=list(_ELEMENTS), stop_before_pixels=True)
        for element in data.values():
            if element.tag not in _PIXEL_TAGS:
                check_length(element)
        if "TransferSyntaxUID" not in data.file_meta:  # a file without the preamble has no such group
            implicit, little = data.original_encoding
            kinds = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
            data.file_meta.TransferSyntaxUID = kinds[not implicit] if little else pydicom.uid.ExplicitVRBigEndian
        if "Rows" not in data and not any(k in data for k in _PIXELS):
            raise ImageError(f"a DICOM file without an image{_kind(data)}", cure="Leave it out.")
        return data


def _check_deflated(stream: BinaryIO, limits: ReadLimits, counter: ItemCounter) -> None:
    """Refuse a deflated file that inflates beyond the limits; pydicom inflates everything at once."""
    from pydicom.filereader import read_dataset

    stream.seek(0)
    stream.seek(132 if stream.read(132)[128:] == b"DICM" else 0)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflate, total, stored = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    # At its end zlib keeps a padding byte as unconsumed for ever.
    while not inflate.eof and (piece := inflate.unconsumed_tail or stream.read(1 << 16)):
        stored += 0 if inflate.unconsumed_tail else len(piece)
        inflated = inflate.decompress(piece, 1 << 20)
        total += len(inflated)
        counter.add(inflated)
        if total > limits.bytes or (total > limits.ratio_from and total > limits.ratio * stored):
            raise ImageError(f"inflates to over {total:,} bytes, over the limits", cure=_EXPORT)


def _checked(data: Any, limits: ReadLimits) -> _Image:
    """Everything that can be told before decoding."""
    keyword = next((k for k in _PIXELS if k in data), None)
    if keyword is None:
        raise ImageError("cut off: it ends before its pixels do", cure=_AGAIN)
    if missing := [name for name in _NEEDED if data.get(name) in (None, "")]:
        raise ImageError(f"a DICOM image whose header lacks {', '.join(missing)}", cure=_EXPORT)
    rows, columns, samples = int(data.Rows), int(data.Columns), int(data.SamplesPerPixel)
    frames = max(1, int(data.get("NumberOfFrames") or 1))
    if rows < 8 or columns < 8:
        raise ImageError(f"only {columns}x{rows} pixels", cure="Leave it out.")
    if rows * columns * samples > limits.pixels or frames > limits.frames:
        raise ImageError(
            f"{frames:,} frames of {columns}x{rows} pixels of {samples} values, over the limits of {limits.frames:,} "
            f"frames and {limits.pixels:,} values a frame",
            cure="Split it, or scale it down.",
        )
    colours = str(data.PhotometricInterpretation)
    if colours not in _COLOURS | _GREYS or samples != (1 if colours in _GREYS | {"PALETTE COLOR"} else 3):
        raise ImageError("its pixels are neither grey, nor RGB, YBR or a palette's", cure=_EXPORT)
    syntax = data.file_meta.TransferSyntaxUID
    facts: Facts = {
        "format": "DICOM",
        "width": columns,
        "height": rows,
        "bits": int(data.get("BitsStored") or data.BitsAllocated),
        "modality": data.Modality if data.get("Modality") in _MODALITIES else "other",
        "transfer_syntax": _check_syntax(syntax),
    }
    present = min(frames, _frames_present(data, keyword, rows * columns * samples, colours))
    if present == 0:
        raise ImageError("cut off: its pixels are missing", cure=_AGAIN)
    data.NumberOfFrames = present  # else pydicom refuses the frames that are there
    return _Image(data, frames, present, facts)


def _kind(data: Any) -> str:
    """What the standard calls such an object, in brackets; nothing if it is not one of the standard's."""
    uid = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    return f" ({uid.name})" if uid and uid.name != str(uid) else ""


def _check_syntax(syntax: Any) -> str:
    """The transfer syntax's name, if it can be decoded."""
    from pydicom.pixels.decoders.base import get_decoder

    name = str(syntax.name) if syntax.name != str(syntax) else "an unknown transfer syntax"
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ImageError(f"stored as {name}, which is not decoded", cure=_EXPORT)
    return name


def _frames_present(data: Any, keyword: str, samples: int, colours: str) -> int:
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    value = data[keyword].value
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        bits = samples * int(data.BitsAllocated)
        if colours == "YBR_FULL_422":
            bits = bits * 2 // 3
        return int(len(value) * 8 // bits)
    # One frame may lie in many fragments, but several never in one.
    offset = 4 + 4 + 4 * len(parse_basic_offsets(value))
    return parse_fragments(value[offset:])[0]


def _place(data: Any, frames: int, names: SeriesNames) -> tuple[int | None, int | None, str]:
    """Index, count and series of a file; a file of several frames is a series of its own."""
    if frames > 1:
        return None, frames, names.new()
    with _quiet("is DICOM, but its header cannot be read", _AGAIN):
        uid, number = data.get("SeriesInstanceUID"), data.get("InstanceNumber")
        # Longer numbers are no places in a series, and could be numbers of something else.
        index = int(number) - 1 if number is not None and 1 <= int(number) <= 0xFFFF else None
        return index, None, names.of(str(uid)) if uid else names.new()


def _frame(image: _Image, frame: int, facts: Facts) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    data = image.data
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.startswith("1.2.840.10008.1.2.4."):
        encoded = _encoded(data, frame)
        check_codestream(encoded, int(data.Rows), int(data.Columns))
        if syntax in _JPEG_LS and (outcome := tried(encoded, int(data.Rows) * int(data.Columns))) != "decodes":
            kind = _EndlessError if outcome == "endless" else ImageError
            raise kind("cannot be decoded", cure=_EXPORT)
    # Not pylibjpeg-rle, which panics on damaged frames and prints that to the screen.
    stored = pixel_array(data, index=frame, decoding_plugin="pydicom" if syntax == _RLE else "")
    if data.PhotometricInterpretation in _GREYS:
        picture, facts["contrast"] = rendered(stored, data, frame)
    elif data.PhotometricInterpretation == "PALETTE COLOR":
        picture = _eight_bits(apply_color_lut(stored, data)[..., :3], data.RedPaletteColorLookupTableDescriptor[2])
    else:
        picture = _eight_bits(stored, int(data.BitsStored))
    return squared(picture, spacing(data, frame))


def _encoded(data: Any, frame: int) -> bytes:
    from pydicom.encaps import get_frame

    lengths = data.get("ExtendedOffsetTableLengths")
    table = (data.ExtendedOffsetTable, lengths) if lengths else None
    return get_frame(data.PixelData, frame, number_of_frames=int(data.NumberOfFrames), extended_offsets=table)


def _eight_bits(colours: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    return grey(colours, 0, 2**bits - 1)


@contextmanager
def _quiet(reason: str, cure: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into an ImageError, and keep pydicom's warnings off screen and logs."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    # Parsers and decoders of hostile bytes raise anything, from KeyError to RecursionError; their texts quote values.
    except Exception:
        raise ImageError(reason, cure=cure) from None
    finally:
        log.disabled = was_disabled
