"""File formats by the first bytes of their content."""

import struct

HEADER = 544  # bytes that identify every format here; those of a NIfTI header
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
GZIP = b"\x1f\x8b"
_RASTERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_raster(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a JPEG, PNG, BMP, TIFF or WebP image."""
    return head.startswith(_RASTERS) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def is_dicom(head: bytes) -> bool:
    """Whether a file that starts with these bytes is DICOM, with or without the preamble."""
    if head[128:132] == b"DICM":
        return True
    # Without: the first element is of group 2 or 8. Explicit VR names its type; implicit VR has a short value.
    group, element, kind = head[:2], head[2:4], head[4:6]
    if len(head) < 16 or group not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    number = struct.unpack(">H" if group == b"\0\x08" else "<H", element)[0]
    explicit = kind in (b"UL", b"CS", b"UI", b"OB", b"SH", b"LO", b"DA", b"TM", b"DT")
    return number <= 0x1000 and (explicit or (group == b"\x08\0" and head[6:8] == b"\0\0"))


def is_dicomdir(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a DICOMDIR, the table of contents of a disc."""
    return head[128:132] == b"DICM" and b"1.2.840.10008.1.3.10" in head


def is_nifti(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a NIfTI, or the header of a pair."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
