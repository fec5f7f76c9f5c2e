"""What a DICOM header says against a brain MRI."""

from __future__ import annotations

import numpy as np
import pytest
from input_files import only, seeds
from pydicom.dataset import Dataset

from tumorlens.readers import read_bytes

pytestmark = [  # written on purpose
    pytest.mark.filterwarnings("ignore:Invalid value for VR CS"),
    pytest.mark.filterwarnings("ignore:The value length"),
]
DEEP = seeds.picture().astype(np.uint16) * 16


def verdict(**elements: object) -> tuple[str, str] | None:
    return only(read_bytes(seeds.dicom(DEEP, **elements), "x")).header_verdict


@pytest.mark.case(4)
@pytest.mark.parametrize("modality", ["CT", "US", "PT", "XA", "NM", "CR", "DX", "MG", "RF", "SEG", "RTDOSE", "ct "])
def test_another_modality_is_refused(modality: str) -> None:
    found = verdict(Modality=modality)
    assert found == ("refused: not a brain MRI", f"modality {modality.strip().upper()} in its header, not MR")


@pytest.mark.case(4)
@pytest.mark.parametrize("modality", ["MR", "SC", "OT", "", None, "MA", "UNHEARD OF", ["CT", "MR"]])
def test_magnetic_resonance_and_unknown_modalities_pass(modality: object) -> None:
    assert verdict(Modality=modality) is None


@pytest.mark.case(4)
@pytest.mark.parametrize(
    "part", ["KNEE", "CHEST", "C-SPINE", "CSPINE", "L SPINE", "LUMBAR_SPINE", "ABDOMEN", "PELVIS", "BREAST", "HIP",
             "LEFT KNEE", "LEFTKNEE", "HALS", "WIRBELSAEULE", "RODILLA", "GENOU", "Shoulder", "FOOT", "NECK", "HEART",
             "ABDO", "CERVIX", "RENAL", "OBERSCHENKEL"]
)  # fmt: skip
def test_another_part_of_the_body_is_refused(part: str) -> None:
    found = verdict(BodyPartExamined=part)
    assert found == ("refused: not a brain MRI", f"body part {part.upper()} in its header")


@pytest.mark.case(4)
@pytest.mark.parametrize(
    "part", ["HEAD", "BRAIN", "HEADNECK", "HEAD NECK", "SKULL", "PITUITARY", "SELLA", "Schaedel", "KOPF", "CEREBRO",
             "CRANE", "HIPPOCAMPUS", "ORBIT", "IAC", "WHOLEBODY", "STUDY1", "", None, "BRAIN SPINE"]
)  # fmt: skip
def test_a_head_and_unknown_words_pass(part: str | None) -> None:
    assert verdict(BodyPartExamined=part) is None if part is not None else verdict() is None


@pytest.mark.case(4)
@pytest.mark.parametrize(("part", "seen"), [("HÜFTE", "HUFTE"), ("Muñeca", "MUNECA")])
def test_letters_with_accents_count_without_them(part: str, seen: str) -> None:
    assert verdict(BodyPartExamined=part) == ("refused: not a brain MRI", f"body part {seen} in its header")
    assert verdict(BodyPartExamined="Schädel") is None


@pytest.mark.case(4)
def test_the_anatomic_region_of_an_enhanced_file_counts() -> None:
    region, anatomy, shared = Dataset(), Dataset(), Dataset()
    region.CodeMeaning = "Knee"
    anatomy.AnatomicRegionSequence = [region]
    shared.FrameAnatomySequence = [anatomy]
    found = verdict(SharedFunctionalGroupsSequence=[shared])
    assert found == ("refused: not a brain MRI", "body part KNEE in its header")


@pytest.mark.case(20)
def test_a_mosaic_is_refused_with_a_cure() -> None:
    found = verdict(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"])
    assert found is not None
    assert found[0].startswith("refused")
    assert found[1] == "a mosaic of many slices in one picture; convert it: dcm2niix FOLDER"


@pytest.mark.case(20)
def test_a_mosaic_is_refused_although_its_image_type_is_a_single_value() -> None:
    found = verdict(ImageType="ORIGINAL PRIMARY M ND MOSAIC")
    assert found is not None
    assert found[1].startswith("a mosaic")


@pytest.mark.case(20)
@pytest.mark.parametrize(("component", "wanted"), [("PHASE", "uncertain"), ("MAGNITUDE", None), ("MIXED", None)])
def test_the_phase_of_an_enhanced_file_is_uncertain(component: str, wanted: str | None) -> None:
    kind, shared = Dataset(), Dataset()
    kind.FrameType, kind.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], component
    shared.MRImageFrameTypeSequence = [kind]
    of_frames, of_file = verdict(SharedFunctionalGroupsSequence=[shared]), verdict(ComplexImageComponent=component)
    assert of_frames == of_file
    assert (of_file and of_file[0]) == wanted


@pytest.mark.case(20)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "a localizer, by its header"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"], "a computed map or part of a signal (ADC), by its header"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "FA"], "a computed map or part of a signal (FA), by its header"),
        (["DERIVED", "SECONDARY", "PERFUSION", "RCBV"], "a computed map or part of a signal (RCBV), by its header"),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], "a computed map or part of a signal (MAP), by its header"),
        (["DERIVED", "PRIMARY", "T2 MAP"], "a computed map or part of a signal (MAP), by its header"),
        (["DERIVED", "SECONDARY", "PROJECTION IMAGE"], "a projection of many slices, by its header"),
        (["DERIVED", "PRIMARY", "MIP", "SAG"], "a projection of many slices, by its header"),
        (["ORIGINAL", "PRIMARY", "MNIP"], "a projection of many slices, by its header"),
        (["DERIVED", "PRIMARY", "FIELDMAP"], "a computed map or part of a signal (FIELDMAP), by its header"),
        (["DERIVED", "SECONDARY", "DIFFUSION", "MD"], "a computed map or part of a signal (MD), by its header"),
        ("DERIVED/PRIMARY/DIFFUSION/ADC", "a computed map or part of a signal (ADC), by its header"),
    ],
)
def test_localizers_maps_and_projections_are_uncertain(values: object, reason: str) -> None:
    assert verdict(ImageType=values) == ("uncertain", reason)


@pytest.mark.case(20)
@pytest.mark.parametrize(
    "values", [["ORIGINAL", "PRIMARY", "M", "ND", "NORM"], ["DERIVED", "SECONDARY"], ["DERIVED", "PRIMARY", "OTHER"],
               ["DERIVED", "SECONDARY", "MPR"], ["ORIGINAL", "PRIMARY", "M_SE", "M", "SE"], "JUNK",
               ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"], ["ADC", "FA"]]
)  # fmt: skip
def test_other_image_types_pass(values: object) -> None:
    assert verdict(ImageType=values) is None
