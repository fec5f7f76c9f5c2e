"""How well heatmaps point at lesions whose place is known, beside a map that looks at no image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tumorlens.classifier import Classifier
from tumorlens.datasets.phantom import LABELS, make_slice
from tumorlens.explain import TOLERANCE, centre_blob, heat_inside, pointing_game
from tumorlens.images import SIZE, Pixels, resized
from tumorlens.runs import Json
from tumorlens.statistics import wilson
from tumorlens.trust.judging import HEALTHY

PHANTOM_SEED = 7_001  # of heads that no data set of the generator's usual seeds holds


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
    tumours = [label for label in LABELS if label != HEALTHY]
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
