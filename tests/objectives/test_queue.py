"""A queue is the latest values in the order in which they came, whatever its length."""

import pytest
import torch
from simulated import on_ranks

from triptych.objectives import Progress, queue


def check_queue(module=queue, length: int = 7, batch: int = 3, micro: int = 1):
    """Beside a list, over steps of which one was not applied; a length of no multiple wraps round."""
    made, known, values = module.Queue(length, 2), [], torch.arange(200.0).view(100, 2)
    for step in range(6):
        parts = list(values[step * batch * micro :][: batch * micro].split(batch))
        names = [part[:, 0].long() for part in parts]
        made.push(parts, names, Progress(step, 6, batch, torch.tensor(step != 3)))
        if step != 3:
            known += torch.cat(parts).tolist()
        assert made.taken == len(known) and made.filled().sum() == min(length, len(known))
        expected = [None] * length
        for at, value in enumerate(known):
            expected[at % length] = value
        for slot, filled, name, value in zip(made.values.tolist(), made.filled(), made.identity, expected, strict=True):
            assert filled == (value is not None)
            if filled:
                assert slot == value and name == value[0]


@pytest.mark.parametrize("length", [1, 3, 7, 12, 40])
@pytest.mark.parametrize("micro", [1, 2])
def test_it_holds_the_latest(length, micro):
    check_queue(queue, length, 3, micro)


@pytest.mark.parametrize("length", [5, 40])
def test_values_come_in_the_order_of_the_joined_micro_batches(length):
    """Two ranks with two micro-batches each hold what one process does."""
    values, names = torch.randn(12, 4), torch.arange(12)
    alone, ranks = queue.Queue(length, 4), [queue.Queue(length, 4) for _ in range(2)]
    alone.push(list(values.split(6)), list(names.split(6)), Progress(1, 9, 12))
    parts = [[torch.arange(6 * m + 3 * rank, 6 * m + 3 * rank + 3) for m in range(2)] for rank in range(2)]
    on_ranks(
        2, lambda r: ranks[r].push([values[i] for i in parts[r]], [names[i] for i in parts[r]], Progress(1, 9, 12))
    )
    for made in ranks:
        assert torch.equal(made.values, alone.values) and torch.equal(made.identity, alone.identity)
        assert made.taken == 12
