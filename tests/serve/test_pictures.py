"""Pictures inside the JSON responses."""

import numpy as np
from folders import CLASSES
from serve_model import picture, png

from tumorlens.inference.heatmap import colormap
from tumorlens.serve.pictures import MAX_PICTURES, spread


def test_the_overlay_is_transparent_where_nothing_is_hot(here):
    row = here.predict(png(), heatmap="png").json()["rows"][0]
    overlay = picture(row["heatmap"])
    assert overlay.shape == (224, 224, 4)
    assert overlay[..., 3].max() == 255
    np.testing.assert_array_equal(overlay[..., :3], colormap()[overlay[..., 3]])
    others = [here.predict(png(), heatmap="png", **{"class": c}).json()["rows"][0]["heatmap"] for c in CLASSES]
    assert row["heatmap"] in others
    assert len(set(others)) > 1


def test_pictures_are_spread_evenly():
    assert spread(None) == spread(MAX_PICTURES) == frozenset(range(MAX_PICTURES))
    assert spread(3) == {0, 1, 2}
    assert spread(10 * MAX_PICTURES) == frozenset(range(0, 10 * MAX_PICTURES, 10))
