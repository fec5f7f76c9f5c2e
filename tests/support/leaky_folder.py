"""A small data set with planted near-duplicates between Training and Testing."""

from __future__ import annotations

import numpy as np
import pytest
from folders import picture
from PIL import Image

from tumorlens.data.fetch import fetch
from tumorlens.data.index import Index, build_index

LABELS = ("one", "two")
N_TRAIN, N_TEST = 24, 12


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Testing holds, per class: 2 copies, 2 mirrored and darker, 1 flipped top to bottom; the others are new."""
    root = tmp_path_factory.mktemp("leaky") / "data"
    for k, label in enumerate(LABELS):
        for part in ("Training", "Testing"):
            (root / part / label).mkdir(parents=True)
        training = [picture(1000 * k + i) for i in range(N_TRAIN)]
        testing = [picture(1000 * k + 500 + i) for i in range(N_TEST)]
        testing[0], testing[1] = training[0], training[1]
        testing[2], testing[3] = (np.fliplr(training[i]) // 2 + 10 for i in (2, 3))
        testing[4] = np.flipud(training[4])
        for part, pictures in (("Training", training), ("Testing", testing)):
            for i, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(root / part / label / f"{i:03d}.png")
    cache = root.parent / "cache"
    return build_index(fetch(str(root), cache=cache), cache)
