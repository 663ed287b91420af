"""What the loop knows at its edges."""

import json
from types import SimpleNamespace

import pytest

from triptych.training.bad_samples import Clipped
from triptych.training.loop import Loop


@pytest.mark.parametrize("held, ranks", [(1, 1), (1, 2)])
def test_of_one_held_out_sample_what_compares_samples_has_no_loss(held, ranks):
    """VICReg's would be NaN, SimCLR's 0."""
    loop = SimpleNamespace(
        run=SimpleNamespace(per_device_train_batch_size=8),
        eval_table=range(held),
        engine=SimpleNamespace(ranks=ranks),
        objective=SimpleNamespace(evaluates=True),
        compares=True,
    )
    assert Loop.evaluate(loop) == {}


def test_a_resume_knows_which_samples_were_clipped():
    team = SimpleNamespace(gather=lambda value: [value])
    made, again = Clipped(team), Clipped(team)
    made.new = {3: ("a.png", 0.1), 1: ("b.png", 0.4)}
    assert made.share() is not None
    again.load(json.loads(json.dumps(made.state())))
    assert again.summary() == made.summary() and "2 samples" in made.summary() and "0.4 of b.png" in made.summary()
    again.new = {1: ("b.png", 0.4), 5: ("c.png", 0.2)}
    assert again.share() is None and "3 samples" in again.summary()  # it was said before
    empty = Clipped(team)
    empty.load(json.loads(json.dumps(Clipped(team).state())))
    assert not empty.known
