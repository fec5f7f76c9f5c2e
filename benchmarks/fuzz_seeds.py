"""Small valid files of every supported format: the fuzzer mutates them, and tests of the readers read them."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
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


def png16(values: npt.NDArray[np.uint16], clear: bytes = b"") -> bytes:
    """A PNG of 16 bits per channel, uint16 [rows, columns, 1 to 4], with the filters that encoders use."""
    rows, columns, bands = values.shape
    raw = values.astype(">u2").view(np.uint8).reshape(rows, -1)
    left = np.pad(raw, ((0, 0), (2 * bands, 0)))[:, : raw.shape[1]]  # filter 1: the difference to the pixel before
    lines = b"".join(b"\1" + line.tobytes() for line in raw - left)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", columns, rows, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", clear) if clear else b"", chunk(b"IDAT", zlib.compress(lines))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff16(values: npt.NDArray[np.uint16], order: str, *, planar: bool, packed: bool) -> bytes:
    """A TIFF of 16 bits per channel, uint16 [rows, columns, 3 or 4], in planes or not, deflated or not."""
    rows, columns, bands = values.shape
    parts = [band.astype(f"{order}u2").tobytes() for band in (np.moveaxis(values, 2, 0) if planar else [values])]
    parts = [zlib.compress(part) for part in parts] if packed else parts
    tags = [(256, columns), (257, rows), (258, [16] * bands), (259, 8 if packed else 1), (262, 2),
            (273, [0] * len(parts)), (277, bands), (278, rows), (279, [len(part) for part in parts]),
            (284, 2 if planar else 1)]  # fmt: skip
    tags += [(338, 2)] if bands == 4 else []
    at = 10 + 12 * len(tags) + 4
    table, more = b"", b""
    for tag, value in tags:
        listed = value if isinstance(value, list) else [value]
        if tag == 273:
            listed = [at + 4 * bands * 3 + sum(map(len, parts[:i])) for i in range(len(parts))]
        content = struct.pack(f"{order}{len(listed)}I", *listed)
        if len(listed) > 1:
            content, more = struct.pack(f"{order}I", at + len(more)), more + content
        table += struct.pack(f"{order}HHI", tag, 4, len(listed)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + table + bytes(4) + more.ljust(4 * bands * 3, b"\0") + b"".join(parts)


def seeds() -> dict[str, list[bytes]]:
    """Valid files of each format by its name."""
    grey = picture()
    rgb = np.stack([grey, grey[::-1], 255 - grey], axis=-1)
    rgba = np.dstack([rgb, grey])
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = grey.astype(np.uint16) * 16
    signed = deep.astype(np.int16) - 1000
    stack = np.stack([deep, deep[::-1]])
    volume = np.stack([deep, deep // 2, deep // 3], axis=-1)
    return {
        "JPEG": [raster("JPEG"), raster("JPEG", rgb, progressive=True), raster("JPEG", rgb, exif=turned, comment="a")],
        "PNG": [
            raster("PNG"), raster("PNG", rgb), raster("PNG", deep),
            raster("PNG", rgba, exif=turned, icc_profile=b"icc"),
            png16(np.dstack([deep, deep, deep])), png16(np.dstack([deep, deep])),
        ],
        "TIFF": [
            raster("TIFF"), raster("TIFF", deep), raster("TIFF", rgb, compression="tiff_lzw"),
            raster("TIFF", rgb, compression="jpeg"), raster("TIFF", grey, compression="tiff_adobe_deflate"),
            raster("TIFF", grey, save_all=True, append_images=[Image.fromarray(grey[::-1])]),
            raster("TIFF", rgba, exif=turned), tiff16(np.dstack([deep, deep, deep]), ">", planar=False, packed=False),
            tiff16(np.dstack([deep, deep, deep]), "<", planar=True, packed=False),
        ],
        "BMP": [raster("BMP"), raster("BMP", rgb)],
        "WebP": [raster("WEBP", rgb), raster("WEBP", rgba, lossless=True, exif=turned)],
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
    fixed, at = bytearray(png), 8
    while at + 12 <= len(fixed):
        end = at + 8 + struct.unpack(">I", fixed[at : at + 4])[0]
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)
