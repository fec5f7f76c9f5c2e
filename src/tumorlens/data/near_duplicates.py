"""Near-duplicates, or twins: pairs of images that show the same, directly, mirrored, flipped or rotated.

Two images are twins if their mean-centred, unit-length 32 x 32 grey thumbnails have a cosine of
at least a threshold in one of the eight orientations of a square. Centring and scaling make this
independent of brightness and contrast.

All eight orientations cost two products, not eight. In the orthonormal cosine transform a mirror
only changes the sign of coefficients of odd order (Rao and Yip, Discrete Cosine Transform, 1990,
section 2.2), so four partial products over even and odd orders, added with four patterns of signs,
give four orientations; the other four come from the transposed image in the same way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from tumorlens.core.cpu import usable_cores
from tumorlens.core.errors import DataError
from tumorlens.core.progress import Bar
from tumorlens.readers.pixels import THUMBNAIL, Pixels

#: How the second of a pair must be turned to match the first; the first four keep rows as rows.
TRANSFORMATIONS = (
    "direct", "mirrored", "flipped", "rotated 180", "transposed", "rotated 90", "rotated 270", "anti-transposed",
)  # fmt: skip
THRESHOLD = 0.99  # why: docs/audit.md, from recall per transformation and a look at pairs
COARSE = 0.95  # pairs from here on are kept: for the coarser grouping, used if patient identifiers are missing
_BLOCK = 768  # thumbnails; a block of products, 2.4 MB, stays in the second-level cache
_CHUNK = 4096  # pairs measured at a time
_MOST_PAIRS = 60_000_000  # 2.4 GB; beyond, the data set is nearly one image
#: Signs of the partial products (even-even, even-odd, odd-even, odd-odd; rows first) by orientation.
_SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=np.float32)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Result of a search among n images with d distinct thumbnails."""

    nearest: Ints
    """int64 [n]: the most similar reference image other than itself; -1 if there is none."""
    similarity: Floats
    """float32 [n], -1 to 1: cosine with it, in the orientation that fits best; NaN if there is none."""
    transformation: Ints
    """int64 [n]: that orientation, an index into TRANSFORMATIONS; -1 if there is none."""
    distinct: Ints
    """int64 [n]: number of each image's thumbnail, 0 to d - 1; images with the same one are twins."""
    pairs: Ints
    """int64 [m, 2], first < second: all pairs of distinct thumbnails with at least the search's floor."""
    similarities: Floats
    """float32 [m, 8]: their cosine in each orientation."""

    def having(self, reference: Bools, threshold: float = THRESHOLD, orientations: slice = slice(None)) -> Bools:
        """bool [n]: which images have a twin other than themselves in `reference`, bool [n], in some orientation.

        `threshold` is at least the floor of the search.
        """
        count = np.bincount(self.distinct[reference], minlength=self.distinct.max(initial=-1) + 1)
        close = (self.similarities[:, orientations] >= threshold).any(1)
        first, second = self.pairs[close].T
        linked = np.zeros(len(count), bool)
        linked[first[count[second] > 0]] = True
        linked[second[count[first] > 0]] = True
        return np.asarray(linked[self.distinct] | (count[self.distinct] > reference))


def find_near_duplicates(
    thumbnails: Pixels, reference: Bools, *, floor: float = COARSE, workers: int | None = None
) -> NearDuplicates:
    """Compare every image with every other in all eight orientations, exactly.

    Blocks of products are computed and reduced while they are in the processor's cache, so memory
    grows with the number of images and of pairs found, not with the square of it.

    Parameters
    ----------
    thumbnails
        uint8 [n, 32, 32], grey.
    reference
        bool [n]: images that count for `nearest`, usually those of Training.
    floor
        Pairs from this cosine on are kept, above 0 to 1.
    workers
        Threads; None: the number of cores.

    Raises
    ------
    DataError
        Pairs are too many to keep.
    """
    # Identical thumbnails are compared once: copies would fill the list of pairs with their square.
    distinct, place = _distinct(thumbnails)
    of_distinct = np.bincount(place, reference, len(distinct)) > 0
    best, where, found = _search(distinct, of_distinct, floor, workers or usable_cores())
    nearest, similarity = _to_images(reference, place, best, where)
    transformation = np.full(len(thumbnails), -1, np.int64)
    has = np.flatnonzero(nearest >= 0)
    measured = _cosines(distinct, place[has], place[nearest[has]])
    same = place[has] == place[nearest[has]]
    transformation[has] = np.where(same, 0, measured.argmax(1))
    similarity[has] = np.where(same, 1, np.minimum(measured.max(1), 1))
    similarities = np.minimum(_cosines(distinct, found[:, 0], found[:, 1]), 1)
    return NearDuplicates(nearest, similarity, transformation, place, found, similarities)


def _spectra(thumbnails: Pixels) -> Floats:
    """Cosine transforms of centred unit-length thumbnails, float32 [4, n, 256], by parity of both orders.

    Computed whenever a block is needed: kept, they would take four times the memory of the thumbnails. A thumbnail
    of one grey level has no direction: it stays zero, and its cosine with any other is 0.
    """
    from scipy.fft import dctn  # part of the extra `study`: indexing a data set needs none of it

    x = thumbnails.astype(np.float32)
    x -= x.mean(axis=(1, 2), keepdims=True)
    x /= np.maximum(np.linalg.norm(x, axis=(1, 2), keepdims=True), 1e-6)
    c = dctn(x, axes=(1, 2), norm="ortho")
    return np.stack([c[:, row::2, column::2].reshape(len(x), -1) for row in (0, 1) for column in (0, 1)])


def _transposed(transformed: Floats) -> Floats:
    """The transforms of the transposed images."""
    side = THUMBNAIL // 2
    swapped = transformed[[0, 2, 1, 3]].reshape(4, -1, side, side).swapaxes(2, 3)
    return np.ascontiguousarray(swapped).reshape(transformed.shape)


def _search(thumbnails: Pixels, reference: Bools, floor: float, workers: int) -> tuple[Floats, Ints, Ints]:
    """Best cosine with a reference image, float32 [n], its index, int64 [n], and close pairs, int64 [m, 2]."""
    n = len(reference)
    best, where = np.full(n, -2, np.float32), np.full(n, -1, np.int64)
    found: list[Ints] = []
    starts = range(0, n, _BLOCK)
    with (
        Bar("Comparing images", n * (n + 1) // 2, "pairs") as bar,
        threadpool_limits(1, "blas"),  # type: ignore[no-untyped-call]
        ThreadPoolExecutor(workers) as pool,
    ):
        # Not named: if the loop ends early, the iterator goes and cancels what has not begun.
        for start, (values, indices, pairs) in zip(
            starts, pool.map(lambda start: _block_row(thumbnails, reference, start, floor), starts), strict=True
        ):
            better = values > best[start:]
            best[start:][better], where[start:][better] = values[better], indices[better]
            found.append(pairs)
            if sum(map(len, found)) > _MOST_PAIRS:
                raise DataError(
                    f"More than {_MOST_PAIRS:,} pairs of images are near-duplicates (cosine {floor} or more).",
                    cure="Look at the images: most of them show the same. Or raise the similarity.",
                )
            rows = min(_BLOCK, n - start)
            bar.advance(rows * (n - start) - rows * (rows - 1) // 2)
    return best, where, np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _block_row(thumbnails: Pixels, reference: Bools, start: int, floor: float) -> tuple[Floats, Ints, Ints]:
    """Compare the block of images from `start` with itself and all later ones.

    Returns best cosine and index as `_search` does, of the images from `start` on, and close pairs.
    """
    n = len(reference)
    stop = min(start + _BLOCK, n)
    best, where = np.full(n - start, -2, np.float32), np.full(n - start, -1, np.int64)
    pairs = []
    own = _spectra(thumbnails[start:stop])
    for at in range(start, n, _BLOCK):
        end = min(at + _BLOCK, n)
        products = _best_orientation(own, _spectra(thumbnails[at:end]))
        if at == start:
            np.fill_diagonal(products, -2)
        else:
            later = slice(at - start, end - start)
            _improve(best[later], where[later], products.T, start, reference[start:stop])
        first = slice(0, stop - start)
        _improve(best[first], where[first], products, at, reference[at:end])
        i, j = np.nonzero(products >= floor)
        keep = i + start < j + at
        pairs.append(np.stack([i[keep] + start, j[keep] + at], 1))
    return best, where, np.concatenate(pairs)


def _improve(best: Floats, where: Ints, products: Floats, first: int, usable: Bools | None = None) -> None:
    """Update `best` and `where`, [rows], with the largest of the usable products of each row, [rows, columns].

    The first column is image number `first`. The first of equals counts.
    """
    if usable is not None and not usable.all():
        products = np.where(usable, products, np.float32(-2))
    indices = products.argmax(1)
    values = products[np.arange(len(products)), indices]
    better = values > best
    best[better], where[better] = values[better], indices[better] + first


def _best_orientation(one: Floats, two: Floats) -> Floats:
    """float32 [a, b]: the largest cosine over all eight orientations of each pair of two blocks."""
    best: Floats | None = None
    for other in (two, _transposed(two)):
        ee, eo, oe, oo = (one[k] @ other[k].T for k in range(4))
        # max(p + q, p - q) = p + |q|, once for each sign of the even-odd part
        for p, q in ((ee + eo, oe + oo), (np.subtract(ee, eo, out=ee), np.subtract(oe, oo, out=oe))):
            np.add(p, np.abs(q, out=q), out=p)
            best = p if best is None else np.maximum(best, p, out=best)
    assert best is not None
    return best


def _distinct(thumbnails: Pixels) -> tuple[Pixels, Ints]:
    """Each thumbnail once, uint8 [d, 32, 32], and the place of every image's among them, int64 [n]."""
    rows = np.ascontiguousarray(thumbnails).reshape(len(thumbnails), -1)
    as_bytes = rows.view(f"V{rows.shape[1]}").ravel()  # compared whole: far faster than column by column
    _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
    return thumbnails[first], place.astype(np.int64)


def _to_images(reference: Bools, place: Ints, best: Floats, where: Ints) -> tuple[Ints, Floats]:
    """Nearest reference image and its cosine for every image, from those of distinct thumbnails."""
    n = len(place)
    lowest, highest = np.full(len(best), n, np.int64), np.full(len(best), -1, np.int64)
    of_reference = np.flatnonzero(reference)
    np.minimum.at(lowest, place[of_reference], of_reference)
    np.maximum.at(highest, place[of_reference], of_reference)
    nearest = np.where(where >= 0, lowest[where], -1)[place]
    similarity = np.where(where >= 0, best, np.nan).astype(np.float32)[place]
    for other in (highest[place], lowest[place]):  # a copy is nearer than anything else
        copy = (other >= 0) & (other < n) & (other != np.arange(n))
        nearest[copy], similarity[copy] = other[copy], 1
    return nearest, similarity


def _cosines(thumbnails: Pixels, first: Ints, second: Ints) -> Floats:
    """float32 [m, 8]: cosine of each pair in each orientation."""
    out = np.empty((len(first), 8), np.float32)
    for start in range(0, len(first), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        a, b = _spectra(thumbnails[first[chunk]]), _spectra(thumbnails[second[chunk]])
        out[chunk, :4] = np.einsum("kmd,kmd->mk", a, b) @ _SIGNS.T
        out[chunk, 4:] = np.einsum("kmd,kmd->mk", a, _transposed(b)) @ _SIGNS.T
    return out


def nearest_reference(thumbnails: Pixels, chosen: Bools, reference: Bools) -> tuple[Ints, Ints]:
    """For each chosen image the reference image with the most similar thumbnail, int64 [chosen] twice.

    The first result compares images as they are, the second in the better of both left-right orientations.
    The first of equals counts.
    """
    of, among = np.flatnonzero(chosen), np.flatnonzero(reference)
    found = np.zeros((2, len(of)), np.int64)
    best = np.full((2, len(of)), -np.inf, np.float32)
    for row in range(0, len(of), _BLOCK):
        rows = slice(row, row + _BLOCK)
        one = _spectra(thumbnails[of[rows]])
        for column in range(0, len(among), _BLOCK):
            two = _spectra(thumbnails[among[column : column + _BLOCK]])
            ee, eo, oe, oo = (one[k] @ two[k].T for k in range(4))
            even, odd = ee + oe, eo + oo  # by the order across columns, which a left-right mirror negates
            for k, products in enumerate((even + odd, even + np.abs(odd))):
                _improve(best[k, rows], found[k, rows], products, column)
    return among[found[0]], among[found[1]]
