"""The trial that is timed before a run."""

import pytest

from triptych.training.trial import together


@pytest.mark.parametrize(
    "readers, on_gpu, seconds",
    [
        (0, True, 5),  # nobody reads meanwhile
        (0, False, 5),
        (1, True, 4),  # a GPU waits for the one that reads
        (8, True, 1),
        (1, False, 5),  # and a CPU is taken from the one that computes
        (4, False, 2),
    ],
)
def test_reading_is_hidden_behind_a_gpu_and_not_on_a_cpu(readers, on_gpu, seconds):
    assert together(1, 4, readers, on_gpu) == seconds
