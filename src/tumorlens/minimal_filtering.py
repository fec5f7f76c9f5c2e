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
    """Both axes' transforms at once, by Toom and Cook's construction.

    Parameters
    ----------
    outputs
        m, 2, 4 or 5: outputs of a tile along each side.

    Returns
    -------
    tuple
        Bᵀ⊗Bᵀ, G⊗G and Aᵀ⊗Aᵀ, float64 [(m + 2)², (m + 2)²], [(m + 2)², 9] and [m², (m + 2)²].
    """
    points, inputs = _POINTS[outputs], outputs + 2
    b, g, a = np.zeros((inputs, inputs)), np.zeros((inputs, 3)), np.zeros((outputs, inputs))
    for i, point in enumerate(points):
        others = [p for p in points if p != point]
        b[i, :-1] = np.poly(others)[::-1]
        g[i] = point ** np.arange(3) / np.prod([point - p for p in others])
        a[:, i] = point ** np.arange(outputs)
    b[-1] = np.poly(points)[::-1]
    g[-1, -1] = a[-1, -1] = 1
    return np.kron(b, b), np.kron(g, g), np.kron(a, a)
