"""The matrices of Winograd's minimal filtering F(m×m, 3×3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", equation 8: Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for
3×3 filters g, tiles d of (m + 2)×(m + 2) inputs, which overlap by two, and Y of m×m outputs. A tile takes (m + 2)²
multiplications where the definition takes 9 m²: 16 and 36 for m = 2, 36 and 144 for m = 4, 49 and 225 for m = 5.
Summed over channels they are (m + 2)² matrix products. The interpolation points for m = 4 are those of Barabasz et al.
2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", table 4, whose
rounding error is smallest; those for m = 5 erred among the least of 220 sets tried, over twice as far as m = 4 does.
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
    """Both axes' transforms at once.

    Parameters
    ----------
    outputs
        m, 2, 4 or 5: outputs of a tile along each side.

    Returns
    -------
    tuple
        Bᵀ⊗Bᵀ, G⊗G and Aᵀ⊗Aᵀ, float64 [(m + 2)², (m + 2)²], [(m + 2)², 9] and [m², (m + 2)²].
    """
    b, g, a = _toom_cook(_POINTS[outputs])
    return np.kron(b, b), np.kron(g, g), np.kron(a, a)


def of_an_axis(outputs: int) -> tuple[Matrix, Matrix, Matrix]:
    """Bᵀ, G and Aᵀ of F(m, 3) by Toom and Cook's construction.

    Returns
    -------
    tuple
        float64 [m + 2, m + 2], [m + 2, 3] and [m, m + 2]; their m + 2 rows (of Aᵀ: columns) are the points in the
        order of this module, infinity before the last of them.
    """
    b, g, a = _toom_cook(_POINTS[outputs])
    order = [*range(outputs), outputs + 1, outputs]
    return b[order], g[order], a[:, order]


def of_a_shorter_tile(outputs: int) -> tuple[Matrix, Matrix]:
    """Bᵀ and Aᵀ of F(m - 1, 3), for filters that `of_an_axis(m)`'s G transformed: its last point is left out.

    F(m - 1, 3) on all points but the last has a G whose rows are those of F(m, 3), each times the distance of its
    point from the last one. That factor is in Bᵀ here.

    Returns
    -------
    tuple
        float64 [m + 2, m + 2] and [m, m + 2] as `of_an_axis` gives: what belongs to the last point, to the last input
        and to the last output is zero.
    """
    *points, last = _POINTS[outputs]
    b, _, a = _toom_cook(tuple(points))
    factors = np.array([point - last for point in points] + [1.0])
    return np.pad(factors[:, None] * b, (0, 1)), np.pad(a, (0, 1))


def _toom_cook(points: tuple[float, ...]) -> tuple[Matrix, Matrix, Matrix]:
    """Bᵀ, G and Aᵀ whose points are `points`, then infinity."""
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
"""Channels that are transformed at a time: tiles of that many stay in a core's cache."""
