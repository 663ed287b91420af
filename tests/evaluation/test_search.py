"""Search among vectors against written-out loops."""

import numpy as np
import pytest

from triptych.evaluation import search


@pytest.mark.parametrize("most, above", [(5, 0.5), (1000, 0.5), (5, -1), (5, 0.9999)])
def test_duplicates_are_those_of_a_loop_though_they_are_looked_for_in_parts(monkeypatch, most, above):
    monkeypatch.setattr(search, "AT_ONCE", 7)
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[31] = 2 * x[3]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [(i, j, unit[i] @ unit[j]) for i in range(40) for j in range(i + 1, 40)]
    pairs = sorted((pair for pair in pairs if pair[2] >= above), key=lambda pair: -pair[2])
    found, count = search.duplicates(x, above, most)
    assert count == len(pairs) and found[0][:2] == (3, 31)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in pairs[:most]]
    np.testing.assert_allclose([pair[2] for pair in found], [pair[2] for pair in pairs[:most]])
