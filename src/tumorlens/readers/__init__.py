"""Image files of any supported format, in folders or zips → slices to classify, and a reason for each unreadable file.

No torch here; pydicom and nibabel are imported when the first file of their format is read.
"""

from tumorlens.readers.sources import (
    count_inputs,
    read_bytes,
    read_inputs,
    standard_input,
)
from tumorlens.readers.types import (
    Plane,
    ReadLimits,
    Slice,
    Unreadable,
)

__all__ = [
    "Plane",
    "ReadLimits",
    "Slice",
    "Unreadable",
    "count_inputs",
    "read_bytes",
    "read_inputs",
    "standard_input",
]  # fmt: skip
