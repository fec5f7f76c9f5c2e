"""Files that a user has, of any format and in any wrapping → slices to classify, and a reason for each that is none.

No torch here; pydicom and nibabel are imported when the first such file comes.
"""

from tumorlens.inputs.slices import Limits, Plane, Slice, Unreadable
from tumorlens.inputs.sources import count_inputs, read_bytes, read_inputs, standard_input

__all__ = [
    "Limits", "Plane", "Slice", "Unreadable", "count_inputs", "read_bytes", "read_inputs", "standard_input",
]  # fmt: skip
