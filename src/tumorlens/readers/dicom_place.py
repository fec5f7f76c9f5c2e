"""Where a DICOM image lies, and what tells it from others of its series (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from tumorlens.readers.dicom_elements import in_groups, lookup, numbers, words
from tumorlens.readers.places import TRAITS
from tumorlens.readers.types import Place

# For each trait its element in the functional groups of an enhanced file, and in a file of one frame.
_SOURCES: dict[str, tuple[tuple[str, str] | None, str | None]] = {
    "stack": (("FrameContentSequence", "StackID"), None),
    "image type": (("MRImageFrameTypeSequence", "FrameType"), "ImageType"),
    "echo time": (("MREchoSequence", "EffectiveEchoTime"), "EchoTime"),
    "echo": (None, "EchoNumbers"),
    "b-value": (("MRDiffusionSequence", "DiffusionBValue"), "DiffusionBValue"),
    "inversion time": (("MRModifierSequence", "InversionTimes"), "InversionTime"),
    "flip angle": (("MRTimingAndRelatedParametersSequence", "FlipAngle"), "FlipAngle"),
    "temporal position": (("FrameContentSequence", "TemporalPositionIndex"), "TemporalPositionIdentifier"),
    "acquisition": (("FrameContentSequence", "FrameAcquisitionNumber"), "AcquisitionNumber"),
    "trigger time": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), "TriggerTime"),
    "time": (("FrameContentSequence", "FrameAcquisitionDateTime"), "AcquisitionTime"),
}
_TIMES = ("temporal position", "acquisition", "trigger time", "time")
_LEGACY = "UnassignedPerFrameConvertedAttributesSequence"  # of files made of classic ones

#: Elements of a file of one frame that are read here.
ELEMENTS = (
    "SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation",
    *(single for _, single in _SOURCES.values() if single),
)  # fmt: skip


def place_of(data: Any, frame: int) -> Place:
    """The place of a frame, 0-based; the only one of most files.

    Raises
    ------
    ImageError
        An element is longer than any valid one.
    """
    traits = {name: _trait(data, frame, *source) for name, source in _SOURCES.items()}
    orientation = _orientation(lookup(data, frame, "PlaneOrientationSequence", "ImageOrientationPatient"))
    corner = numbers(lookup(data, frame, "PlanePositionSequence", "ImagePositionPatient"))
    position = None
    if orientation and len(corner) == 3:
        position = float(np.dot(np.cross(orientation[:3], orientation[3:]), corner))
    else:
        for value in (
            in_groups(data, frame, "FrameContentSequence", "InStackPositionNumber"),
            data.get("SliceLocation") if _frames(data) == 1 else None,
        ):
            if position is None and len(found := numbers(value)) == 1:
                position, orientation = found[0], ()
    uid = data.get("SOPInstanceUID")
    return Place(
        position, orientation, tuple(traits[name] for name in TRAITS),
        tuple((numbers(traits[name]) or [0.0])[0] for name in _TIMES),
        hash((str(uid), frame)) if uid else None,
    )  # fmt: skip


def _frames(data: Any) -> int:
    return int(data.get("NumberOfFrames") or 1)


def _trait(data: Any, frame: int, grouped: tuple[str, str] | None, single: str | None) -> str:
    """The element as text: numbers shortened, a code string's values without the first two; empty if it is missing."""
    value = in_groups(data, frame, *grouped) if grouped else None
    if value is None and single:
        value = in_groups(data, frame, _LEGACY, single)
        value = data.get(single) if value is None else value
    if value is None:
        return ""
    if found := numbers(value):
        return " ".join(f"{v:.15g}" for v in found)
    if single == "ImageType":
        return " ".join(word for word in words(value)[2:] if re.fullmatch(r"[A-Z0-9_ ]{1,16}", word))
    return str(value) if isinstance(value, str) and value.isprintable() and len(value) <= 16 else ""


def _orientation(value: Any) -> tuple[float, ...]:
    """Direction cosines of rows and columns; empty unless they are two perpendicular unit vectors."""
    found = numbers(value)
    if len(found) != 6:
        return ()
    row, column = found[:3], found[3:]
    lengths = [math.hypot(*row), math.hypot(*column)]
    sound = all(abs(length - 1) < 0.1 for length in lengths) and abs(float(np.dot(row, column))) < 0.1
    return tuple(found) if sound else ()
