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
