"""Groups of near-duplicates: images that belong together, and that a fair split must not separate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tumorlens.data.near_duplicates import THRESHOLD, Ints, NearDuplicates


@dataclass(frozen=True, eq=False)
class Groups:
    """Images that belong together."""

    numbers: Ints
    """int64 [n]: number of each image's group, from 0 in order of first appearance."""
    oversized: int
    """Groups that were above the cap and were cut at a higher similarity."""
    cut_pairs: int
    """Pairs at or above the threshold that lie in different groups because of that."""
    version: str | None = None
    """Version of the frozen lists that they are from; None if they were searched for."""


def group_near_duplicates(twins: NearDuplicates, threshold: float = THRESHOLD, *, cap: int | None = None) -> Groups:
    """Connected components of twins, none larger than a cap unless all its thumbnails are identical.

    Links may chain images that are unlike each other. A component above the cap is therefore cut: the threshold
    inside it is raised halfway to a cosine of 1, again and again until all pieces fit. 0.99 is one of these
    steps, so that twins at that threshold are separated only if the groups of 0.99 separate them too.

    Parameters
    ----------
    twins
        The search, with a floor of at most `threshold`.
    threshold
        Cosine from which two images are linked, at least the floor of the search.
    cap
        Largest number of images in a group; None: 2 % of all images, at least 50.
    """
    n, d = len(twins.distinct), int(twins.distinct.max(initial=-1)) + 1
    cap = max(50, n // 50) if cap is None else cap
    similarity = twins.similarities.max(1, initial=-1)
    pairs = twins.pairs[similarity >= threshold]
    similarity = similarity[similarity >= threshold]
    label = _components(pairs, d)
    oversized, level = 0, threshold
    while level < 0.99999:
        large = np.flatnonzero(np.bincount(label[twins.distinct]) > cap)
        if not large.size:
            break
        oversized = oversized or int(large.size)
        level = min((1 + level) / 2, THRESHOLD if level < THRESHOLD else 1)
        inside = np.isin(label, large)
        links = pairs[inside[pairs[:, 0]] & (similarity >= level)]
        label[inside] = label.max() + 1 + _components(links, d)[inside]
        label = np.unique(label, return_inverse=True)[1].astype(np.int64)
    cut_pairs = int(np.sum(label[pairs[:, 0]] != label[pairs[:, 1]]))
    _, first, group = np.unique(label[twins.distinct], return_index=True, return_inverse=True)
    in_order = np.argsort(np.argsort(first))
    return Groups(in_order[group], oversized, cut_pairs)


def join_groups(near: Ints, patients: Sequence[str]) -> Ints:
    """Number of each image's group, int64 [n], joined by near-duplicates and by patients.

    Parameters
    ----------
    near
        int64 [n], groups of near-duplicates, from 0.
    patients
        Names, one for each image; images without a patient have an empty one.
    """
    named = np.array([bool(name) for name in patients])
    numbers = np.unique(np.array(patients)[named], return_inverse=True)[1].astype(np.int64)
    first = int(near.max(initial=-1)) + 1  # nodes are groups of near-duplicates, then patients
    pairs = np.stack([near[named], first + numbers], 1)
    label = _components(pairs, first + int(numbers.max(initial=-1)) + 1)[near]
    _, start, group = np.unique(label, return_index=True, return_inverse=True)
    in_order: Ints = np.argsort(np.argsort(start))
    return in_order[group]


def _components(pairs: Ints, n: int) -> Ints:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
