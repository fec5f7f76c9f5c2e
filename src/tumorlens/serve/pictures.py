"""The slice and its heatmap as PNGs inside JSON, so that no image has to be kept for a second request."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tumorlens.inference.heatmap import HeatArray, class_heatmap, colormap
from tumorlens.readers.pixels import Pixels

MAX_PICTURES = 16  # slices per response with pictures, spread evenly; ?slice=N returns the others


def slice_picture(pixels: Pixels) -> str:
    """A data URL of uint8 [224, 224, 3], the network's input."""
    return _url(Image.fromarray(pixels))


def heat_picture(heatmap: HeatArray, label: int) -> str:
    """A data URL of a transparent overlay, RGBA [224, 224]: most opaque where the class's evidence is strongest.

    Parameters
    ----------
    heatmap
        float32 [K, 7, 7], signed.
    label
        Index of the class.
    """
    levels = (class_heatmap(heatmap, label) * 255).round().astype(np.uint8)
    return _url(Image.fromarray(np.dstack([colormap()[levels], levels])))


def spread(count: int | None) -> frozenset[int]:
    """Positions of the slices with pictures, in a file of `count` slices (None: not known)."""
    n = min(count or MAX_PICTURES, MAX_PICTURES)
    return frozenset(i * (count or n) // n for i in range(n))


def _url(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getbuffer()).decode("ascii")
