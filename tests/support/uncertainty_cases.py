"""Outputs made so that the results of the uncertainty model are known."""

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.phantom.generator import make_slice
from tumorlens.inference.uncertainty import UncertaintyModel
from tumorlens.inference.uncertainty.fitting import LabelledOutputs, TrainingOutputs, fit_uncertainty
from tumorlens.inference.uncertainty.ood import appearance_features
from tumorlens.readers.pixels import resized

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


@pytest.fixture(scope="module")
def slices() -> np.ndarray:
    """Forty phantom slices, uint8 [40, 224, 224, 3]."""
    made = [make_slice(0, CLASSES[i % 4], i, 0).pixels for i in range(40)]
    return np.stack([resized(Image.fromarray(pixels).convert("RGB")) for pixels in made])


def answers(slices: np.ndarray, n: int, seed: int, shift: float = 0.0) -> LabelledOutputs:
    """Logits that are right about 95 % of the time; features and statistics Gaussian around their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.normal(0, 1, (n, 4)) + 3.5 * np.eye(4)[labels]
    centres = np.random.default_rng(99).normal(0, 2, (4, 512))
    features = centres[labels] + rng.normal(0, 1, (n, 512)) + shift
    statistics = rng.normal(0, 1, (n, 1024)) + shift
    pixels = slices[rng.integers(0, len(slices), n)]
    return LabelledOutputs(
        labels, logits.astype(np.float32), features.astype(np.float32), statistics.astype(np.float32), pixels
    )


def training_outputs(train: LabelledOutputs) -> TrainingOutputs:
    return TrainingOutputs(train.labels, train.features, train.statistics, appearance_features(train.pixels))


def fit(validation: LabelledOutputs, train: LabelledOutputs) -> UncertaintyModel:
    return fit_uncertainty(CLASSES, validation, training_outputs(train))


@pytest.fixture(scope="module")
def parts(slices) -> tuple[LabelledOutputs, LabelledOutputs, LabelledOutputs]:
    """Train, validation, test."""
    return answers(slices, 400, 0), answers(slices, 500, 1), answers(slices, 400, 2)


@pytest.fixture(scope="module")
def trust(parts) -> UncertaintyModel:
    train, validation, _ = parts
    return fit(validation, train)
