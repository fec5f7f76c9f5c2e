"""The matrices of Winograd's minimal filtering F(m×m, 3×3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", equation 8: Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, with
3×3 filters g, tiles d of (m + 2)×(m + 2) inputs that overlap by two, and m×m outputs Y. A tile needs (m + 2)²
multiplications instead of the 9 m² of a direct convolution: 16 instead of 36 for m = 2, 36 instead of 144 for m = 4,
and 49 instead of 225 for m = 5. Summed over channels, these are (m + 2)² matrix products. The interpolation points for
m = 4 are those with the smallest rounding error in Barabasz et al. 2020, "Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks", table 4. Those for m = 5 had one of the smallest errors of 220 sets
tried, more than twice that of m = 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_POINTS = {
    2: (0.0, -1.0, 1.0), 4: (0.0, -1.0, 1.0, 0.5, -2.0), 5: (0.0, -1.0, 1.0, -0.5, -2.0, 1.5),
}  # and infinity  # fmt: skip

Matrix = npt.NDArray[np.floating[Any]]


def matrices(outputs: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return the transforms of both axes as single matrices.

    Parameters
    ----------
    outputs
        m: outputs of a tile along each side, 2, 4 or 5.

    Returns
    -------
    tuple
        Bᵀ⊗Bᵀ, G⊗G and Aᵀ⊗Aᵀ, float64 [(m + 2)², (m + 2)²], [(m + 2)², 9] and [m², (m + 2)²].
    """
    b, g, a = _toom_cook(_POINTS[outputs])
    return np.kron(b, b), np.kron(g, g), np.kron(a, a)


def of_an_axis(outputs: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return Bᵀ, G and Aᵀ of F(m, 3) by the Toom-Cook construction.

    Returns
    -------
    tuple
        float64 [m + 2, m + 2], [m + 2, 3] and [m, m + 2]; their m + 2 rows (columns of Aᵀ) correspond to the points
        in the order of this module, with infinity before the last one.
    """
    b, g, a = _toom_cook(_POINTS[outputs])
    order = [*range(outputs), outputs + 1, outputs]
    return b[order], g[order], a[:, order]


def of_a_shorter_tile(outputs: int) -> tuple[Matrix, Matrix]:
    """Return Bᵀ and Aᵀ of F(m - 1, 3) for filters transformed by the G of `of_an_axis(m)`; its last point is omitted.

    On all points but the last, the G of F(m - 1, 3) has the rows of F(m, 3), each multiplied by the difference between
    its point and the last one. Here, Bᵀ includes that factor.

    Returns
    -------
    tuple
        float64 [m + 2, m + 2] and [m, m + 2], as from `of_an_axis`, with zeros for the last point, the last input and
        the last output.
    """
    *points, last = _POINTS[outputs]
    b, _, a = _toom_cook(tuple(points))
    factors = np.array([point - last for point in points] + [1.0])
    return np.pad(factors[:, None] * b, (0, 1)), np.pad(a, (0, 1))


def _toom_cook(points: tuple[float, ...]) -> tuple[Matrix, Matrix, Matrix]:
    """Return Bᵀ, G and Aᵀ for the interpolation points `points` followed by infinity."""
    inputs, outputs = len(points) + 1, len(points) - 1
    b, g, a = np.zeros((inputs, inputs)), np.zeros((inputs, 3)), np.zeros((outputs, inputs))
    for i, point in enumerate(points):
        others = [p for p in points if p != point]
        b[i, :-1] = np.poly(others)[::-1]
        g[i] = point ** np.arange(3) / np.prod([point - p for p in others])
        a[:, i] = point ** np.arange(outputs)
    b[-1] = np.poly(points)[::-1]
    g[-1, -1] = a[-1, -1] = 1
    return b, g, a


BLOCK = 128
"""Number of channels transformed at a time; tiles with this many channels fit in a core's cache."""
