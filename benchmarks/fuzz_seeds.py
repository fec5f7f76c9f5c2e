"""Small valid files of every supported format: the fuzzer mutates them, and tests of the readers read them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

ROWS, COLUMNS = 40, 32  # the smallest size that is encoded as JPEG 2000
SECRET = "Zweifelhuber^Xaverine"  # a name, put wherever a header may hold text, that results must never contain


def picture(rows: int = ROWS, columns: int = COLUMNS) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns], asymmetric: brighter downwards and to the right, with a white corner."""
    y, x = np.mgrid[0:rows, 0:columns]
    grey = 150 * y / rows + 80 * x / columns
    grey[: rows // 4, : columns // 4] = 255
    return grey.astype(np.uint8)


def raster(kind: str, pixels: npt.NDArray[Any] | None = None, **options: Any) -> bytes:
    """An image file as Pillow writes it: JPEG, PNG, TIFF, BMP or WEBP."""
    file = io.BytesIO()
    Image.fromarray(picture() if pixels is None else pixels).save(file, kind, **options)
    return file.getvalue()


def dicom(
    pixels: npt.NDArray[Any] | None,
    *,
    syntax: str = "1.2.840.10008.1.2.1",
    photometric: str = "MONOCHROME2",
    preamble: bool = True,
    encapsulated: list[bytes] | None = None,
    **elements: Any,
) -> bytes:
    """A DICOM file.

    Parameters
    ----------
    pixels
        Integers [rows, columns], [frames, rows, columns] or, if `photometric` has 3 colours,
        [rows, columns, 3]; None for a file without an image.
    syntax
        UID of the transfer syntax; JPEG-LS, JPEG 2000 and RLE are encoded here.
    encapsulated
        Frames already encoded, for other compressed syntaxes.
    elements
        Set last, by keyword; None deletes an element.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

    uid = UID(syntax)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, "1.2.3.4.5"
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = MRImageStorage, "1.2.3.4.5"
    data.SeriesInstanceUID, data.InstanceNumber, data.Modality = "1.2.3.4", 7, "MR"
    if pixels is not None:
        colours = 3 if photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 1
        frames = pixels.shape[0] if pixels.ndim == 3 and colours == 1 else 1
        data.Rows, data.Columns = pixels.shape[1:] if pixels.ndim == 3 and colours == 1 else pixels.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = colours, photometric
        if colours == 3:
            data.PlanarConfiguration = 0
        if frames > 1:
            data.NumberOfFrames = frames
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        content = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == "1.2.840.10008.1.2.2" else "<")).tobytes()
        data.PixelData = content + b"\0" * (len(content) % 2)
        data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
        if encapsulated is not None:
            data.PixelData = encapsulate(encapsulated)
            data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
        elif uid.is_encapsulated:
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.compress(uid, generate_instance_uid=False)
    for keyword, value in elements.items():
        if value is None:
            del data[keyword]
        else:
            setattr(data, keyword, value)
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue() if preamble else file.getvalue()[132:]


def named(data: bytes) -> bytes:
    """A DICOM file with SECRET in every element that could hold a name, including private elements and comments."""
    import pydicom
    from pydicom.dataset import Dataset

    image = pydicom.dcmread(io.BytesIO(data))
    for keyword in ("PatientName", "PatientID", "InstitutionName", "ReferringPhysicianName", "StudyDescription",
                    "SeriesDescription", "ImageComments", "PatientComments", "ProtocolName", "OperatorsName",
                    "StationName", "AccessionNumber", "WindowCenterWidthExplanation"):  # fmt: skip
        setattr(image, keyword, SECRET[: 16 if keyword in ("AccessionNumber", "StationName") else None])
    block = image.private_block(0x0029, SECRET, create=True)
    block.add_new(0x01, "LO", SECRET)
    item = Dataset()
    item.PatientName = SECRET
    image.OtherPatientIDsSequence = [item]
    image.preamble = SECRET.encode().ljust(128, b"\0")
    file = io.BytesIO()
    image.save_as(file)
    return file.getvalue()


def nifti(
    values: npt.NDArray[Any], affine: npt.NDArray[Any] | None = None, *, version: int = 1, **fields: Any
) -> bytes:
    """A NIfTI file of `values` [i, j, k, ...]; `fields` are set in its header."""
    import nibabel

    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    image = kind(values, np.eye(4) if affine is None else affine)
    image.header["descrip"], image.header["intent_name"] = SECRET, SECRET[:15]
    content = bytearray(image.to_bytes())
    header = type(image.header)(bytes(content[: image.header.sizeof_hdr]), check=False)
    for field, value in fields.items():
        header[field] = value
    content[: header.sizeof_hdr] = header.binaryblock
    if version == 1:
        content[14:32] = SECRET[:18].encode()  # db_name, which nibabel no longer writes
    return bytes(content)


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of the entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


JPEG, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
RLE, DEFLATED, IMPLICIT = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2"


def seeds() -> dict[str, list[bytes]]:
    """Valid files of each format by its name."""
    grey = picture()
    rgb = np.stack([grey, grey[::-1], 255 - grey], axis=-1)
    deep = grey.astype(np.uint16) * 16
    signed = deep.astype(np.int16) - 1000
    stack = np.stack([deep, deep[::-1]])
    volume = np.stack([deep, deep // 2, deep // 3], axis=-1)
    return {
        "JPEG": [raster("JPEG"), raster("JPEG", rgb, progressive=True)],
        "PNG": [raster("PNG"), raster("PNG", rgb), raster("PNG", deep)],
        "TIFF": [
            raster("TIFF"), raster("TIFF", deep), raster("TIFF", rgb, compression="tiff_lzw"),
            raster("TIFF", rgb, compression="jpeg"), raster("TIFF", grey, compression="tiff_adobe_deflate"),
            raster("TIFF", grey, save_all=True, append_images=[Image.fromarray(grey[::-1])]),
        ],
        "BMP": [raster("BMP"), raster("BMP", rgb)],
        "WebP": [raster("WEBP", rgb), raster("WEBP", rgb, lossless=True)],
        "DICOM": [
            dicom(deep, WindowCenter=2000, WindowWidth=3000, RescaleSlope=2, RescaleIntercept=-5),
            dicom(signed, syntax=IMPLICIT, photometric="MONOCHROME1", PixelSpacing=[1, 2]),
            dicom(rgb, photometric="RGB"), dicom(stack), dicom(grey, preamble=False),
        ],
        "DICOM deflated": [dicom(deep, syntax=DEFLATED)],
        "DICOM JPEG": [dicom(grey, syntax=JPEG, encapsulated=[raster("JPEG")])],
        "DICOM JPEG-LS": [dicom(deep, syntax=JPEG_LS), dicom(stack, syntax=JPEG_LS)],
        "DICOM JPEG 2000": [dicom(deep, syntax=JPEG_2000), dicom(grey, syntax=JPEG_2000)],
        "DICOM RLE": [dicom(deep, syntax=RLE), dicom(stack, syntax=RLE)],
        "NIfTI": [nifti(volume.astype(np.int16)), nifti(volume.astype(np.float32), version=2)],
        "NIfTI gz": [gzip.compress(nifti(volume.astype(np.int16)), mtime=0)],
        "zip": [
            zipped({"a/1.png": raster("PNG"), "a/2.dcm": dicom(deep)}),
            zipped({"1.bmp": raster("BMP")}, zipfile.ZIP_STORED),
        ],
    }  # fmt: skip


def with_checksums(png: bytes) -> bytes:
    """A mutated PNG with corrected chunk checksums, as far as chunk lengths are valid."""
    import zlib

    fixed, at = bytearray(png), 8
    while at + 12 <= len(fixed):
        end = at + 8 + struct.unpack(">I", fixed[at : at + 4])[0]
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)
