"""Elements of a DICOM header, read so that junk counts as absent."""

from __future__ import annotations

import math
from typing import Any

from tumorlens.core.errors import ImageError
from tumorlens.readers.dicom_limits import check_length


def lookup(data: Any, frame: int, group: str, keyword: str) -> Any:
    """An element of this frame's functional groups, or of the shared ones, or of the file; None if it is missing."""
    found = in_groups(data, frame, group, keyword)
    return data.get(keyword) if found is None else found


def in_groups(data: Any, frame: int, group: str, keyword: str) -> Any:
    """An element of this frame's functional groups, or of the shared ones; None if it is missing or damaged.

    Raises
    ------
    ImageError
        It is longer than any valid one.
    """
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    shared = data.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame : frame + 1], *shared[:1]):
        for item in groups.get(group) or []:
            if keyword in item:
                check_length(item.get_item(keyword))
                try:
                    return item[keyword].value
                except ImageError:
                    raise
                except Exception:  # pydicom converts values when they are read, and raises anything on junk
                    continue
    return None


def numbers(value: Any) -> list[float]:
    """The numbers of an element of any multiplicity; empty if it is missing or any of them is not finite."""
    values = value if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else [value]
    if isinstance(value, str):  # of a time, for example
        values = [value]
    try:
        found = [float(v) for v in values]
    except (TypeError, ValueError):
        return []
    return found if all(math.isfinite(v) for v in found) else []


def whole_number(value: Any) -> int | None:
    """The integer of an element with one; None if it is missing, or is anything else."""
    found = numbers(value)
    return int(found[0]) if len(found) == 1 and found[0].is_integer() else None


def words(value: Any) -> list[str]:
    """The values of a code string, in capitals and without spaces around them."""
    values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value
    return [str(v).strip().upper() for v in values if v is not None]
