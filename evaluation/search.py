"""Search among vectors by their cosine: nearest neighbours of a query, and near duplicates. Exact, by scikit-learn."""

import numpy as np

SAME = 1e-6  # of a cosine, by which rounding may part equal vectors


def neighbours(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query `[q d]` the numbers `[q k]` of the nearest vectors `[n d]`, the nearest first, and their cosines.

    k is `count`, or n where there are fewer.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    distance, index = search.kneighbors(queries, min(count, len(vectors)))
    return index, 1 - distance


def duplicates(vectors: np.ndarray, above: float) -> list[tuple[int, int, float]]:
    """Pairs of vectors `[n d]` whose cosine is at least `above`: (number, larger number, cosine), the nearest first."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    distances, indices = search.radius_neighbors(vectors, 1 - above + SAME)
    pairs = [
        (i, int(j), float(1 - distance))
        for i, (found, far) in enumerate(zip(indices, distances, strict=True))
        for j, distance in zip(found, far, strict=True)
        if i < j
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))
