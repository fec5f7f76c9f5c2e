"""The slice and its heatmap as PNGs within JSON, so that nothing of an image is kept for a second request."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tumorlens.inference.heatmap import Heat, colours, heat_of
from tumorlens.readers.pixels import Pixels

AT_MOST = 16  # slices of one answer that carry pictures, spread evenly; others come with ?slice=N


def slice_picture(pixels: Pixels) -> str:
    """A data URL of uint8 [224, 224, 3]: what the network saw."""
    return _url(Image.fromarray(pixels))


def heat_picture(heatmap: Heat, label: int) -> str:
    """A data URL of a transparent overlay, RGBA [224, 224]: the class's colours, opaque where it is hottest.

    Parameters
    ----------
    heatmap
        float32 [K, 7, 7], signed.
    label
        Index of the class.
    """
    levels = (heat_of(heatmap, label) * 255).round().astype(np.uint8)
    return _url(Image.fromarray(np.dstack([colours()[levels], levels])))


def spread(count: int | None) -> frozenset[int]:
    """Positions of the slices that carry pictures, of a file with `count` of them."""
    n = min(count or AT_MOST, AT_MOST)
    return frozenset(i * (count or n) // n for i in range(n))


def _url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getbuffer()).decode("ascii")
