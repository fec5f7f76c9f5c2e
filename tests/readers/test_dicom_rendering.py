"""DICOM lookup tables and padding with signed numbers, or signed numbers stored as unsigned."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from input_files import only, seeds
from pydicom.dataset import Dataset

from tumorlens.readers import read_bytes
from tumorlens.readers.scaling import to_uint8
from tumorlens.readers.types import fit_square

dicom = seeds.dicom
SIGNED = seeds.picture().astype(np.int16) * 16 - 1000
SQUARE = (1.0, 1.0)
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
WIDE = (np.arange(80 * 1000, dtype=np.int32) - 6000).reshape(250, 320)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("pixels", "first", "entries", "elements"),
    [
        (RAMP, 0, 4096, {}),
        (RAMP, -1024, 4096, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
        (WIDE, -1000, 65536, {}),
    ],
    ids=["many entries", "negative after rescaling", "values beyond the table"],
)
def test_voi_tables_are_looked_up_without_wrapping(
    syntax: str, bits: int, pixels: np.ndarray, first: int, entries: int, elements: dict[str, object]
) -> None:
    greys = np.linspace(0, 2**bits - 1, entries).astype(int)
    table = Dataset()
    signed = first < 0 and syntax != IMPLICIT and pixels.dtype.kind == "i"
    numbers = [entries % 65536, first if signed else first % 65536, bits]
    table.add_new("LUTDescriptor", "SS" if signed else "US", numbers)
    kind = "<u2" if syntax != "1.2.840.10008.1.2.2" else ">u2"
    table.add_new("LUTData", "OW", greys.astype(kind).tobytes())
    found = only(read_bytes(dicom(pixels, syntax=syntax, VOILUTSequence=[table], **elements), "x"))
    values = pixels.astype(int) + int(str(elements.get("RescaleIntercept", 0)))
    wanted = to_uint8(greys[np.clip(values - first, 0, entries - 1)], 0, 2**bits - 1)
    assert np.array_equal(found.pixels, fit_square(wanted, SQUARE))


def test_padding_of_signed_pixels_may_be_written_as_unsigned() -> None:
    padded = SIGNED.copy()
    padded[:, :16] = -2000
    wanted = only(read_bytes(dicom(padded, PixelPaddingValue=-2000), "x")).pixels
    data = pydicom.dcmread(io.BytesIO(dicom(padded)))
    data.add_new("PixelPaddingValue", "US", 65536 - 2000)
    for limit in (None, 65536 - 1990):
        if limit:
            data.add_new("PixelPaddingRangeLimit", "US", limit)
        file = io.BytesIO()
        data.save_as(file)
        assert np.array_equal(only(read_bytes(file.getvalue(), "x")).pixels, wanted)


BIG = "1.2.840.10008.1.2.2"


@pytest.mark.case(26)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("segmented", [False, True])
def test_palettes_in_big_endian_are_read_as_in_little_endian(bits: int, segmented: bool) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 64
    step = 255 if bits == 16 else 1
    found = []
    for syntax in (EXPLICIT, BIG):
        elements: dict[str, object] = {}
        for c, colour in enumerate(("Red", "Green", "Blue")):
            values = (np.arange(64) * (c + 1) * step).astype(np.uint16 if bits == 16 else np.uint8)
            if segmented:  # one discrete segment
                values = np.concatenate([np.array([0, 64], values.dtype), values])
            stored = values.tobytes() if syntax == EXPLICIT else values.view(np.uint16).byteswap().tobytes()
            elements[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, bits]
            name = f"{'Segmented' * segmented}{colour}PaletteColorLookupTableData"
            elements[name] = stored
        found.append(only(read_bytes(dicom(pixels, syntax=syntax, photometric="PALETTE COLOR", **elements), "x")))
    assert found[0].pixels.any()
    np.testing.assert_array_equal(found[1].pixels, found[0].pixels)


@pytest.mark.case(26)
@pytest.mark.parametrize("kind", ["OW", "US"])
def test_modality_tables_in_big_endian_are_read_as_in_little_endian(kind: str) -> None:
    found = []
    for syntax in (EXPLICIT, BIG):
        table = Dataset()
        table.add_new("LUTDescriptor", "US", [4096, 0, 16])
        values = (np.arange(4096) ** 2 // 256).astype("<u2" if syntax == EXPLICIT else ">u2")
        table.add_new("LUTData", kind, values.tobytes() if kind == "OW" else values.tolist())
        found.append(only(read_bytes(dicom(RAMP, syntax=syntax, ModalityLUTSequence=[table]), "x")).pixels)
    assert found[0].any()
    np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize(
    ("elements", "tall"),
    [
        ({"PixelSpacing": [2, 1]}, True),
        ({"ImagerPixelSpacing": [2, 1]}, True),
        ({"NominalScannedPixelSpacing": [2, 1]}, True),
        ({"PixelAspectRatio": [2, 1]}, True),
        ({"PixelSpacing": [900, 1]}, False),
        ({"PixelSpacing": [0, 1], "PixelAspectRatio": [2, 1]}, True),
        ({"PixelSpacing": [-2, 1]}, False),
        ({}, False),
    ],
)
def test_pixels_that_are_not_square_are_resampled_if_their_spacing_is_plausible(
    elements: dict[str, object], tall: bool
) -> None:
    pixels = np.full((64, 64), 1000, np.uint16)
    pixels[0, 0] = 0
    found = only(read_bytes(dicom(pixels, **elements), "x")).pixels
    assert (found[100, :50].max() == 0) == tall
