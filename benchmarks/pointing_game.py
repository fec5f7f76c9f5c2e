"""How well heatmaps point at lesions of known position, compared with a map that ignores the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.core.errors import ConfigError
from tumorlens.core.files import Json
from tumorlens.data.phantom.generator import LABELS, make_slice
from tumorlens.evaluation.statistics import wilson
from tumorlens.inference.classifier import Classifier
from tumorlens.inference.heatmap import HeatArray, upsample
from tumorlens.inference.uncertainty.verdicts import NO_TUMOR
from tumorlens.readers.pixels import SIZE, Pixels, resized

PHANTOM_SEED = 7_001  # of heads that are in no data set of the generator's usual seeds


@dataclass(frozen=True, eq=False)
class Case:
    """A slice with a known lesion."""

    pixels: Pixels
    """uint8 [224, 224, 3]."""
    mask: npt.NDArray[np.bool_]
    """[224, 224], true on the lesion, not empty."""
    label: str


def phantom_cases(n: int, seed: int = PHANTOM_SEED) -> Iterator[Case]:
    """`n` generated slices with a visible tumour, classes in turn, each of another patient."""
    tumours = [label for label in LABELS if label != NO_TUMOR]
    found = patient = 0
    while found < n:
        made = make_slice(seed, tumours[patient % len(tumours)], patient, 0)
        patient += 1
        share = np.asarray(Image.fromarray(made.mask).convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        mask = share >= 128
        if mask.any():
            found += 1
            yield Case(resized(Image.fromarray(made.pixels).convert("RGB")), mask, made.label)


def measure_pointing(classifier: Classifier, cases: Iterable[Case]) -> Json:
    """Pointing game and share of heat on the lesion, of the true class's map.

    Returns
    -------
    dict
        `n`, `correct` (slices whose true class is the most probable), `tolerance` in pixels, and for `heatmap` and
        `centre_blob`: `hits`, `rate` with its Wilson `interval` (95 %), `exact_rate` (without tolerance) and
        `inside`, the mean share of positive heat on the lesion.
    """
    blob = centre_blob()
    found: dict[str, list[tuple[bool, bool, float]]] = {"heatmap": [], "centre_blob": []}
    correct = 0
    for case in cases:
        outputs = classifier.run(case.pixels[None])
        true = classifier.classes.index(case.label)
        correct += int(outputs.logits[0].argmax()) == true
        for name, heat in (("heatmap", outputs.heatmap[0, true]), ("centre_blob", blob)):
            found[name].append(
                (pointing_game(heat, case.mask), pointing_game(heat, case.mask, 0), heat_inside(heat, case.mask))
            )
    n = len(found["heatmap"])
    return {"n": n, "correct": correct, "tolerance": TOLERANCE} | {
        name: {
            "hits": sum(hit for hit, _, _ in values),
            "rate": sum(hit for hit, _, _ in values) / n,
            "interval": list(wilson(sum(hit for hit, _, _ in values), n)),
            "exact_rate": sum(hit for _, hit, _ in values) / n,
            "inside": float(np.mean([share for _, _, share in values])),
        }
        for name, values in found.items()
    }


Mask = npt.NDArray[np.bool_]
TOLERANCE = 15  # pixels, as in the pointing game's paper


def pointing_game(heatmap: npt.ArrayLike, mask: Mask, tolerance: float = TOLERANCE) -> bool:
    """Whether the maximum lies on the lesion, or within `tolerance` pixels of it.

    Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126, 2018, section 4.3.

    Parameters
    ----------
    heatmap
        [7, 7] or [224, 224], any scale; the first of equal maxima of the upsample map counts.
    mask
        bool [224, 224], true on the lesion.
    tolerance
        Pixels; 15 in the paper.

    Raises
    ------
    ConfigError
        The mask is empty or of another shape.
    """
    heat = _full(heatmap, mask)
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    rows, columns = np.nonzero(mask)
    return bool(np.hypot(rows - y, columns - x).min() <= tolerance)


def heat_inside(heatmap: npt.ArrayLike, mask: Mask) -> float:
    """Share of the positive heat that lies on the lesion, 0 to 1; 0 for a map without any.

    The energy-based pointing game of Wang et al., "Score-CAM", CVPR Workshops 2020, section 4.3.
    """
    heat = np.maximum(_full(heatmap, mask), 0)
    total = float(heat.sum(dtype=np.float64))
    return float(heat[mask].sum(dtype=np.float64)) / total if total > 0 else 0.0


def centre_blob() -> HeatArray:
    """A map that ignores the image: a Gaussian in the centre with an sd of a sixth of the side, [224, 224]."""
    place = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    bell = np.exp(-0.5 * (place * 6) ** 2)
    return np.outer(bell, bell).astype(np.float32)


def _full(heatmap: npt.ArrayLike, mask: Mask) -> HeatArray:
    if mask.shape != (SIZE, SIZE) or mask.dtype != np.bool_ or not mask.any():
        raise ConfigError(
            f"The mask is {mask.dtype} {list(mask.shape)} with {np.count_nonzero(mask)} pixels set.",
            cure=f"Pass bool [{SIZE}, {SIZE}] with the lesion's pixels true.",
        )
    heat = np.asarray(heatmap, np.float32)
    return heat if heat.shape == mask.shape else upsample(heat)
