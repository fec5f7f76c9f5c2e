"""DICOM → a slice per frame, with the contrast that its header requests.

A frame goes through the modality transformation (rescale or table), then the VOI transformation (table, or the
first window with its function; PS3.3 C.11.2), then is inverted if MONOCHROME1. Without a usable window the
0.5th and 99.5th percentile of the frame become black and white: of the frame, because a series is read as a stream.
Frames are shown as stored, as viewers show them; rows and columns keep their physical aspect ratio.

Only the elements listed here are parsed, so that names and identifiers of patients never get into memory; and
pydicom's error messages are not passed on, since they quote values.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from tumorlens.core.errors import ImageError
from tumorlens.readers.codestreams import check_codestream
from tumorlens.readers.dicom_limits import ItemCounter, check_length
from tumorlens.readers.dicom_rendering import pixel_spacing, render_grey
from tumorlens.readers.jpegls import EndlessFrameError, check_decodes
from tumorlens.readers.pixels import plausible_spacing
from tumorlens.readers.scaling import to_uint8
from tumorlens.readers.types import Metadata, ReadContext, ReadLimits, SeriesNames, Slice, Unreadable, fit_square

_AGAIN = "Download or copy it again."
_EXPORT = "Export it again, or convert it to uncompressed DICOM, with dcmconv or gdcmconv --raw for example."
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_MAX_ENDLESS = 3  # frames of one file; a thousand of them would block everything else
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MODALITIES = frozenset(["CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "SC", "SM", "US", "XA", "XC"])
_COLOURS = frozenset(["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR"])
_GREYS = frozenset(["MONOCHROME1", "MONOCHROME2"])
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")

#: All elements that are parsed. Functional groups are kept whole, and read by keyword only.
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


def read_dicom(context: ReadContext) -> Iterator[Slice | Unreadable]:
    """The frames of a file, decoded one by one.

    A frame is an Unreadable if it is damaged, over a limit, or of a transfer syntax that is not supported.

    Raises
    ------
    ImageError
        The file has no image, or a header that cannot be read: it belongs to no series.
    """
    source = context.source
    data = _read_header(context.stream, context.limits)
    try:
        with _dicom_errors("is DICOM, but its header cannot be read", _AGAIN):
            frames, present, metadata = _check_header(data, context.limits)
    except ImageError as error:
        index, _, series, instance = _position(data, 1, context.series)
        yield Unreadable(source, index, error.what, error.cure, series, instance)
        return
    index, count, series, instance = _position(data, frames, context.series)
    endless = 0
    for frame in range(present):
        try:
            with _dicom_errors("cannot be decoded", _EXPORT):
                pixels, contrast = _decode_frame(data, frame)
        except ImageError as error:
            if count is None:
                yield Unreadable(source, index, error.what, error.cure, series, instance)
                return
            yield Unreadable(source, frame, f"frame {frame + 1} {error.what}", error.cure, series)
            endless += isinstance(error, EndlessFrameError)
            if endless == _MAX_ENDLESS and frame + 1 < frames:
                left = f"frames {frame + 2} to {frames} were left out after {endless} whose decoding would not end"
                yield Unreadable(source, frames - 1, left, _EXPORT, series)
                return
            continue
        number = index if count is None else frame
        yield Slice(source, number, count, series, pixels, metadata | contrast, instance)
    if present < frames:
        reason = f"promises {frames:,} frames and holds {present:,}"
        yield Unreadable(source, frames - 1, reason, _AGAIN, series)


def _read_header(stream: BinaryIO, limits: ReadLimits) -> Any:
    """pydicom's dataset with the elements listed above."""
    size = stream.seek(0, 2)
    if size > limits.bytes:
        raise ImageError(f"{size:,} bytes, over the limit of {limits.bytes:,}", cure="Split it into its frames.")
    with _dicom_errors("is DICOM, but its header cannot be read", _AGAIN):
        counter = ItemCounter(size, limits)
        stream.seek(0)
        while piece := stream.read(1 << 20):
            counter.add(piece)
        _check_deflated(stream, limits, ItemCounter(size, limits))
        stream.seek(0)
        data = pydicom.dcmread(stream, force=True, specific_tags=list(_ELEMENTS))
        if not data:  # all that pydicom returns of a file that ends within compressed pixels
            stream.seek(0)
            data = pydicom.dcmread(stream, force=True, specific_tags=list(_ELEMENTS), stop_before_pixels=True)
        for element in data.values():
            if element.tag not in _PIXEL_TAGS:
                check_length(element)
        if "TransferSyntaxUID" not in data.file_meta:  # a file without preamble has no file meta information
            implicit, little = data.original_encoding
            kinds = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
            data.file_meta.TransferSyntaxUID = kinds[not implicit] if little else pydicom.uid.ExplicitVRBigEndian
        if "Rows" not in data and not any(k in data for k in _PIXELS):
            raise ImageError(f"a DICOM file without an image{_kind(data)}", cure="Leave it out.")
        return data


def _check_deflated(stream: BinaryIO, limits: ReadLimits, counter: ItemCounter) -> None:
    """Refuse a deflated file that inflates beyond the limits; pydicom inflates everything at once."""
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
        if total > limits.bytes or limits.is_bomb(total, stored):
            raise ImageError(f"inflates to over {total:,} bytes, over the limits", cure=_EXPORT)


def _check_header(data: Any, limits: ReadLimits) -> tuple[int, int, Metadata]:
    """Frames, frames whose pixels are in the file, and metadata; all that can be checked before decoding is."""
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
    metadata: Metadata = {
        "format": "DICOM",
        "width": columns,
        "height": rows,
        "bits": int(data.get("BitsStored") or data.BitsAllocated),
        "modality": data.Modality if data.get("Modality") in _MODALITIES else "other",
        "transfer_syntax": _check_syntax(data.file_meta.TransferSyntaxUID),
    }
    present = min(frames, _frames_present(data, keyword, rows * columns * samples, colours))
    if present == 0:
        raise ImageError("cut off: its pixels are missing", cure=_AGAIN)
    data.NumberOfFrames = present  # or pydicom would refuse those that are present
    return frames, present, metadata


def _kind(data: Any) -> str:
    """The standard's name of such an object, in brackets; empty for a private class."""
    uid = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    return f" ({uid.name})" if uid and uid.name != str(uid) else ""


def _check_syntax(syntax: Any) -> str:
    """The transfer syntax's name; ImageError if it is not supported."""
    name = str(syntax.name) if syntax.name != str(syntax) else "an unknown transfer syntax"
    with suppress(NotImplementedError):
        if get_decoder(syntax).is_available:
            return name
    raise ImageError(f"stored as {name}, which is not decoded", cure=_EXPORT)


def _frames_present(data: Any, keyword: str, samples: int, colours: str) -> int:
    value = data[keyword].value
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        bits = samples * int(data.BitsAllocated)
        if colours == "YBR_FULL_422":
            bits = bits * 2 // 3
        return int(len(value) * 8 // bits)
    # A frame may span many fragments, but a fragment never holds several frames.
    offset = 4 + 4 + 4 * len(parse_basic_offsets(value))
    return parse_fragments(value[offset:])[0]


def _position(data: Any, frames: int, names: SeriesNames) -> tuple[int | None, int | None, str, int | None]:
    """Index, count, series and InstanceNumber of a file; a file of several frames is a series of its own."""
    if frames > 1:
        return None, frames, names.new(), None
    with _dicom_errors("is DICOM, but its header cannot be read", _AGAIN):
        uid, number = data.get("SeriesInstanceUID"), data.get("InstanceNumber")
        # Larger numbers are not positions in a series, and could be identifiers.
        instance = int(number) if number is not None and 1 <= int(number) <= 0xFFFF else None
        return instance and instance - 1, None, names.of(str(uid)) if uid else names.new(), instance


def _decode_frame(data: Any, frame: int) -> tuple[npt.NDArray[np.uint8], Metadata]:
    """uint8 [224, 224, 3], and the source of a grey frame's contrast."""
    syntax = data.file_meta.TransferSyntaxUID
    if syntax.startswith("1.2.840.10008.1.2.4."):
        rows, columns = int(data.Rows), int(data.Columns)
        lengths = data.get("ExtendedOffsetTableLengths")
        table = (data.ExtendedOffsetTable, lengths) if lengths else None
        encoded = get_frame(data.PixelData, frame, number_of_frames=int(data.NumberOfFrames), extended_offsets=table)
        check_codestream(encoded, rows, columns)
        if syntax in _JPEG_LS:
            check_decodes(encoded, rows * columns, cure=_EXPORT)
    # Not pylibjpeg-rle, which panics on damaged frames and prints to standard error.
    stored = pixel_array(data, index=frame, decoding_plugin="pydicom" if syntax == _RLE else "")
    contrast: Metadata = {}
    if data.PhotometricInterpretation in _GREYS:
        picture, contrast["contrast"] = render_grey(stored, data, frame)
    elif data.PhotometricInterpretation == "PALETTE COLOR":
        bits = data.RedPaletteColorLookupTableDescriptor[2]
        picture = to_uint8(apply_color_lut(stored, data)[..., :3], 0, 2**bits - 1)
    else:
        picture = to_uint8(stored, 0, 2 ** int(data.BitsStored) - 1)
    spacing = plausible_spacing(picture.shape[:2], pixel_spacing(data, frame)) or (1.0, 1.0)
    return fit_square(picture, spacing), contrast


@contextmanager
def _dicom_errors(reason: str, cure: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into an ImageError, and suppress pydicom's warnings and log records."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    # Parsers and decoders of damaged bytes raise anything from KeyError to RecursionError; messages quote values.
    except Exception:
        raise ImageError(reason, cure=cure) from None
    finally:
        log.disabled = was_disabled
