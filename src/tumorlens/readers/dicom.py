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
from tumorlens.readers import dicom_place, dicom_subject
from tumorlens.readers.codestreams import check_codestream
from tumorlens.readers.dicom_elements import whole_number, words
from tumorlens.readers.dicom_limits import ItemCounter, check_length
from tumorlens.readers.dicom_place import place_of
from tumorlens.readers.dicom_rendering import palette_in_native_order, pixel_spacing, render_grey
from tumorlens.readers.dicom_subject import header_verdict
from tumorlens.readers.guarded import EndlessFrameError, decode_guarded
from tumorlens.readers.scaling import Values, to_uint8
from tumorlens.readers.types import Metadata, Place, ReadContext, ReadLimits, SeriesNames, Slice, Unreadable, fit_square

_AGAIN = "Download or copy it again."
_EXPORT = "Export it again, uncompressed (Explicit VR Little Endian)."
# pydicom's decoder of each compressed syntax. Those in another process may not end, or are large C++ libraries.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.5": "pydicom",  # not pylibjpeg-rle, which panics on damaged frames and prints to standard error
}
_GUARDED = {
    "1.2.840.10008.1.2.4.57": "gdcm",
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
_MAX_ENDLESS = 3  # frames of one file; a thousand of them would block everything else
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MODALITIES = frozenset(["CR", "CT", "DX", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "SC", "SM", "US", "XA", "XC"])
_COLOURS = frozenset(["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR"])
_GREYS = frozenset(["MONOCHROME1", "MONOCHROME2"])
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation")
_DECODING = (*_NEEDED, "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration")

#: All elements that are parsed. Functional groups are kept whole, and read by keyword only.
_ELEMENTS = (
    *_PIXELS, *_DECODING, *dicom_place.ELEMENTS, *dicom_subject.ELEMENTS, "SOPClassUID", "SeriesInstanceUID",
    "InstanceNumber", "NumberOfFrames", "PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
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
        if not context.survey:
            yield Unreadable(source, index, error.what, error.cure, series, instance, _place(data, 0))
        return
    index, count, series, instance = _position(data, frames, context.series)
    endless = 0
    for frame in range(present):
        number = index if count is None else frame
        place = _place(data, frame)
        if context.survey:
            yield Slice(source, number, count, series, _NO_PIXELS, metadata, instance, place)
            continue
        if context.chosen is not None and (source, number) not in context.chosen:
            continue
        try:
            with _dicom_errors("cannot be decoded", _EXPORT):
                verdict = header_verdict(data, frame)
                pixels, contrast = _decode_frame(data, frame)
        except ImageError as error:
            what = error.what if count is None else f"frame {frame + 1} {error.what}"
            yield Unreadable(source, number, what, error.cure, series, instance, place)
            endless += isinstance(error, EndlessFrameError)
            if endless == _MAX_ENDLESS and frame + 1 < frames:
                left = f"frames {frame + 2} to {frames} were left out after {endless} whose decoding would not end"
                yield Unreadable(source, frames - 1, left, _EXPORT, series)
                return
            continue
        yield Slice(source, number, count, series, pixels, metadata | contrast, instance, place, verdict)
    if present < frames and not context.survey:
        reason = f"promises {frames:,} frames and holds {present:,}"
        yield Unreadable(source, frames - 1, reason, _AGAIN, series)


def series_uid(stream: BinaryIO) -> str:
    """SeriesInstanceUID of a file; empty if it has none.

    Raises
    ------
    ImageError
        The file has no image, or a header that cannot be read.
    """
    return str(_read_header(stream, ReadLimits()).get("SeriesInstanceUID") or "")


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
        for tag in [tag for tag in data.keys() if tag not in _PIXEL_TAGS]:  # noqa: SIM118 - not its elements
            if not _is_sound(data, tag):
                del data[tag]  # only a hint, without which the pixels can be read
        if "TransferSyntaxUID" not in data.file_meta:  # a file without preamble has no file meta information
            implicit, little = data.original_encoding
            kinds = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
            data.file_meta.TransferSyntaxUID = kinds[not implicit] if little else pydicom.uid.ExplicitVRBigEndian
        if "Rows" not in data and not any(k in data for k in _PIXELS):
            raise ImageError(f"a DICOM file without an image{_kind(data)}", cure="Leave it out.")
        return data


def _is_sound(data: Any, tag: Any) -> bool:
    """Whether pydicom can convert an element, or decoding needs it anyway; ImageError if it is too long."""
    check_length(data.get_item(tag))
    with suppress(Exception):  # pydicom converts values when they are read, and raises anything on junk
        return data[tag].value is not None
    return pydicom.datadict.keyword_for_tag(tag) in _DECODING


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
    if rows < 8 or columns < 8:
        raise ImageError(f"only {columns}x{rows} pixels", cure="Leave it out.")
    colours = str(data.PhotometricInterpretation)
    held = _frames_present(data, keyword, rows * columns * samples, colours)
    promised = whole_number(data.get("NumberOfFrames"))
    if promised is None and not data.file_meta.TransferSyntaxUID.is_encapsulated:
        promised = held
    frames = max(1, promised or 1)
    if rows * columns * samples > limits.pixels or frames > limits.frames:
        raise ImageError(
            f"{frames:,} frames of {columns}x{rows} pixels of {samples} values, over the limits of {limits.frames:,} "
            f"frames and {limits.pixels:,} values a frame",
            cure="Split it, or scale it down.",
        )
    if colours not in _COLOURS | _GREYS or samples != (1 if colours in _GREYS | {"PALETTE COLOR"} else 3):
        raise ImageError("its pixels are neither grey, nor RGB, YBR or a palette's", cure=_EXPORT)
    metadata: Metadata = {
        "format": "DICOM",
        "width": columns,
        "height": rows,
        "bits": int(data.get("BitsStored") or data.BitsAllocated),
        "modality": next((m for m in words(data.get("Modality")) if m in _MODALITIES), "other"),
        "transfer_syntax": _check_syntax(data.file_meta.TransferSyntaxUID),
    }
    present = min(frames, held)
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
        return int(len(value) * 8 // max(1, bits))
    # A frame may span many fragments, but a fragment never holds several frames.
    offset = 4 + 4 + 4 * len(parse_basic_offsets(value))
    return parse_fragments(value[offset:])[0]


def _position(data: Any, frames: int, names: SeriesNames) -> tuple[int | None, int | None, str, int | None]:
    """Index, count, series and InstanceNumber of a file; a file of several frames is a series of its own."""
    if frames > 1:
        return None, frames, names.new(), None
    uid, number = data.get("SeriesInstanceUID"), whole_number(data.get("InstanceNumber")) or 0
    # Larger numbers are not positions in a series, and could be identifiers.
    instance = number if 1 <= number <= 0xFFFF else None
    return instance and instance - 1, None, names.of(str(uid)) if uid else names.new(), instance


def _decode_frame(data: Any, frame: int) -> tuple[npt.NDArray[np.uint8], Metadata]:
    """uint8 [224, 224, 3], and the source of a grey frame's contrast."""
    stored = _stored_values(data, frame)
    contrast: Metadata = {}
    if data.PhotometricInterpretation in _GREYS:
        picture, contrast["contrast"] = render_grey(stored, data, frame)
    elif data.PhotometricInterpretation == "PALETTE COLOR":
        bits = data.RedPaletteColorLookupTableDescriptor[2]
        picture = to_uint8(apply_color_lut(stored, palette_in_native_order(data))[..., :3], 0, 2**bits - 1)
    else:
        picture = to_uint8(stored, 0, 2 ** int(data.BitsStored) - 1)
    return fit_square(picture, pixel_spacing(data, frame)), contrast


def _place(data: Any, frame: int) -> Place:
    """The place of a frame; none if the header is damaged there."""
    with suppress(ImageError), _dicom_errors("", ""):
        return place_of(data, frame)
    return Place()


def _stored_values(data: Any, frame: int) -> Values:
    """[rows, columns], or [rows, columns, 3] for colours."""
    syntax = str(data.file_meta.TransferSyntaxUID)
    plugin = _PLUGINS.get(syntax, "")
    if syntax.startswith("1.2.840.10008.1.2.4."):
        lengths = data.get("ExtendedOffsetTableLengths")
        table = (data.ExtendedOffsetTable, lengths) if lengths else None
        encoded = get_frame(data.PixelData, frame, number_of_frames=int(data.NumberOfFrames), extended_offsets=table)
        check_codestream(encoded, int(data.Rows), int(data.Columns))
        guarded = _GUARDED.get(syntax)
        if plugin == "pillow" and int(data.BitsAllocated) > 8:
            raise ImageError("holds JPEG of 12 bits, which is not decoded", cure=_EXPORT)
        if guarded:
            needed = {keyword: data[keyword].value for keyword in _DECODING if data.get(keyword) is not None}
            return decode_guarded(encoded, {"syntax": syntax, "plugin": guarded, **needed}, cure=_EXPORT)
        if not plugin:  # JPEG 2000
            with suppress(Exception):  # on some damaged frames, which Pillow decodes in part
                return pixel_array(data, index=frame, decoding_plugin="pylibjpeg")
            plugin = "pillow"
    return pixel_array(data, index=frame, decoding_plugin=plugin)


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
