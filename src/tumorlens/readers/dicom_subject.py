"""Whether a DICOM header says that an image is no slice of a brain MRI; what it does not say counts for nothing.

An image of another modality or part of the body, or a mosaic, is refused. A localizer, a computed map or a projection
shows a brain, but not as in training images: it is uncertain. Modality OT or SC, ImageType DERIVED, and unknown words
pass, since archives write them for pictures of every kind.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from tumorlens.readers.dicom_elements import in_groups, lookup, words

#: Elements that are read here.
ELEMENTS = ("Modality", "BodyPartExamined", "ImageType", "ComplexImageComponent", "AnatomicRegionSequence")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# PS3.3 C.7.3.1.1.1 without MR, MA and MS (magnetic resonance, angiography and spectroscopy), OT, DOC and SC.
_MODALITIES = _words("""
    AR ASMT AS AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DS DX EC ECG EEG EMG EOG EPS ES FA
    FID FS GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MG NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS PA
    PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR
    SR SRF ST STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC
""")
# Parts of the body in English, German, French, Spanish, Italian and Portuguese. A long word counts wherever it occurs,
# as in LEFTKNEE; a short one must be a word of its own. A word for the head comes first: HEADNECK is a head.
_HEAD = re.compile(
    "HEAD|BRAIN|SKULL|NEURO|CEREB|CEREV|CRANI|CRANE|CRANEO|ENCEPH|ENCEF|PITUIT|HYPOPH|HIPOF|SELLA|ORBIT|KOPF|GEHIRN|"
    "SCHAEDEL|SCHADEL|TETE|CABEZA|CABECA|TESTA|CERVEAU|CERVELLO|HIPPOC|WHOLE"
)
_OTHER_PARTS = re.compile(
    "ABDO|ADRENAL|ANKLE|AORTA|AXILLA|BLADDER|BREAST|BRUST|BRONCH|BUTTOCK|CALCAN|CARDIAC|CAVIGLIA|CERVICAL|CHEST|"
    "CLAVIC|COCCYX|COLON|COLUMNA|COLUNA|COLONNA|CORAZON|CORONARY|COUDE|CUELLO|DORSAL|DUODEN|ELBOW|ELLBOGEN|ELLENBOGEN|"
    "EPAULE|ESOPHAG|EXTREMIT|FEMUR|FINGER|FOREARM|GALLBLADDER|GENOU|GINOCCHIO|HEART|HOMBRO|HUEFTE|HUFTE|HUMERUS|JOELHO|"
    "KIDNEY|KNEE|KNIE|LARYNX|LEBER|LIVER|LUMBAR|LUMBAL|LSPINE|LUNGE|MAMMA|MEDIASTIN|MUNECA|OMBRO|OVAR|PANCREAS|PATELLA|"
    "PELVI|BECKEN|BASSIN|POIGNET|POLSO|PROSTAT|RACHIS|RECTUM|RODILLA|SACRUM|SACRAL|SCAPULA|SCHULTER|SHOULDER|"
    "SPALLA|SPINE|SPLEEN|STERNUM|STOMACH|TESTIS|TESTICLE|THIGH|THORA|TORAX|THYROID|TIBIA|TOBILLO|UTERUS|VAGINA|WIRBEL|"
    "WRIST|HANDGELENK|UPPERARM|MYOCARD|CERVIX|RENAL|HEPAT|SCHENKEL|NIERE|SHLDR|UROGENIT"
)
_SHORT_PARTS = _words("""
    ANCA ARM ARMS BACK BWS CADERA CALF COEUR COU COXA CUORE FEET FOOT FUSS HALS HANCHE HAND HANDS HERZ HIP HIPS HWS
    ILIUM JOINT LEG LEGS LUNG LUNGS LWS MANO NECK PENIS PIED RIB RIBS TOE TOES ULNA VENTRE
""")
_COMPUTED = _words("""
    ADC EADC FA COLFA TENSOR CBF CBV RCBF RCBV RELCBF RELCBV MTT RELMTT TTP TMAX GBP PBP KTRANS KEP PHASE P
    IMAGINARY I VELOCITY TEMPERATURE SUBTRACTION SUB STD_DEVIATION TTEST MAP FIELDMAP T1MAP T2MAP MD
""")
_COMPUTED_WORDS = _COMPUTED - {"I", "P", "SUB", "MD"}  # which mean this only as a value of their own
_PROJECTIONS = frozenset(["PROJECTION", "PROJECTION IMAGE", "MAX_IP", "MIN_IP", "MIP", "MINIP", "MNIP"])
_LOCALIZERS = frozenset(["LOCALIZER", "LOCALISER", "SCOUT", "SURVEY"])


def header_verdict(data: Any, frame: int) -> tuple[str, str] | None:
    """Verdict, `refused: not a brain MRI` or `uncertain`, and its reason; None if the header does not say so.

    Raises
    ------
    ImageError
        An element is longer than any valid one.
    """
    modality = words(data.get("Modality"))
    if len(modality) == 1 and modality[0] in _MODALITIES:
        return _refused(f"modality {modality[0]} in its header, not MR")
    part = unicodedata.normalize("NFKD", _body_part(data, frame)).encode("ascii", "ignore").decode()
    letters = re.sub("[^A-Z]", "", part)
    if not _HEAD.search(letters) and (_OTHER_PARTS.search(letters) or _SHORT_PARTS & set(re.split("[^A-Z]+", part))):
        shown = part if re.fullmatch("[A-Z0-9_ -]{1,24}", part) else "other than the head"
        return _refused(f"body part {shown} in its header")
    group = "MRImageFrameTypeSequence"
    kinds = words(in_groups(data, frame, group, "FrameType") or data.get("ImageType"))
    if len(kinds) == 1:  # all values in one, by a program that knows no backslash
        kinds = re.split("[ /,;]+", kinds[0])
    pieces = {piece for kind in kinds[2:] for piece in re.split("[ _]+", kind)}
    if "MOSAIC" in kinds:
        return _refused("a mosaic of many slices in one picture; convert it: dcm2niix FOLDER")
    if _LOCALIZERS & (set(kinds) | pieces):
        return "uncertain", "a localizer, by its header"
    if _PROJECTIONS & (set(kinds) | pieces):
        return "uncertain", "a projection of many slices, by its header"
    component = words(lookup(data, frame, group, "ComplexImageComponent"))
    if computed := (_COMPUTED & {*kinds[2:], *component}) | (_COMPUTED_WORDS & pieces):
        return "uncertain", f"a computed map or part of a signal ({min(computed)}), by its header"
    return None


def _refused(reason: str) -> tuple[str, str]:
    return "refused: not a brain MRI", reason


def _body_part(data: Any, frame: int) -> str:
    """Capitals; of an enhanced file, the meaning of its anatomic region's code."""
    found = words(data.get("BodyPartExamined"))
    regions = data.get("AnatomicRegionSequence")
    for item in in_groups(data, frame, "FrameAnatomySequence", "AnatomicRegionSequence") or regions or []:
        found += words(item.get("CodeMeaning"))
    return " ".join(found)
