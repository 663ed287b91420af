"""Search among vectors by their cosine: nearest neighbours of a query, and near duplicates. Exact, by scikit-learn."""

import numpy as np

SAME = 1e-6  # of a cosine, by which rounding may part equal vectors
AT_ONCE = 256  # vectors whose duplicates are looked for together


def neighbours(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query `[q d]` the numbers `[q k]` of the nearest vectors `[n d]`, the nearest first, and their cosines.

    k is `count`, or n where there are fewer.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    distance, index = search.kneighbors(queries, min(count, len(vectors)))
    return index, 1 - distance


def duplicates(vectors: np.ndarray, above: float, most: int) -> tuple[list[tuple[int, int, float]], int]:
    """Pairs of vectors `[n d]` whose cosine is at least `above`, and how many there are.

    A pair is (number, larger number, cosine). The `most` nearest are returned, the nearest first: of vectors that are
    all alike there are n² / 2.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors)
    kept, count = np.zeros((3, 0)), 0
    for start in range(0, len(vectors), AT_ONCE):
        distances, indices = search.radius_neighbors(vectors[start : start + AT_ONCE], 1 - above + SAME)
        one = np.repeat(np.arange(start, start + len(indices)), [len(found) for found in indices])
        other, cosine = np.concatenate(indices), 1 - np.concatenate(distances)
        new = np.stack([one, other, cosine])[:, one < other]
        count += new.shape[1]
        kept = np.concatenate([kept, new], 1)
        if kept.shape[1] > most:  # all are not sorted
            kept = kept[:, kept[2] >= np.partition(kept[2], -most)[-most]]
        kept = kept[:, np.lexsort((kept[1], kept[0], -kept[2]))[:most]]
    return [(int(i), int(j), float(c)) for i, j, c in kept.T], count
