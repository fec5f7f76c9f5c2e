"""Files that a user has, of any format and in any wrapping → slices to classify, and a reason for each that is none.

No torch here; pydicom and nibabel are imported when the first such file comes.
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
