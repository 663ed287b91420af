"""Faults that are planted in the objectives that compare views: each must make the named check fail.

Each is a module, what stands there, what is planted instead, and the check; the changed module is made anew beside the
true one, in this process.
"""

import inspect
import types

import pytest
import test_clustering as clusters
import test_contrastive as contrasts
import test_dino as dinos
import test_distillation as distilled
import test_prototypes as assigned
import test_queue as queued

from triptych.objectives import clustering, contrastive, dino, distillation, prototypes, queue

PLANTED = {
    "SimSiam: no stopped gradient": (
        distillation,
        "self.predictor(projection), projection.detach()",
        "self.predictor(projection), projection",
        distilled.check_no_gradient_flows_through_the_other_view,
    ),
    "SimSiam: a view predicts itself": (
        distillation,
        "byol_loss(guess[0], target[1]) + byol_loss(guess[1], target[0])) / 4",
        "byol_loss(guess[0], target[0]) + byol_loss(guess[1], target[1])) / 4",
        distilled.check_simsiam,
    ),
    "SimSiam: twice the loss": (
        distillation,
        "byol_loss(guess[1], target[0])) / 4",
        "byol_loss(guess[1], target[0])) / 2",
        distilled.check_simsiam,
    ),
    "MoCo: the queue keeps the positive": (
        contrastive,
        "(identity[:, None] == self.queue.identity) | ~self.queue.filled()",
        "~self.queue.filled().expand(len(identity), -1)",
        contrasts.check_moco_s_negatives,
    ),
    "MoCo: empty slots are negatives": (
        contrastive,
        " | ~self.queue.filled()",
        "",
        contrasts.check_moco_s_negatives,
    ),
    "MoCo: keys of the student": (
        contrastive,
        'self.teacher[1](z["teacher"])',
        'self.projector(z["student"])',
        contrasts.check_moco_s_negatives,
    ),
    "MoCo: queries are not normalised": (
        contrastive,
        "query = F.normalize(query.float(), dim=-1)",
        "query = query.float()",
        contrasts.check_moco_is_lightly_s_with_gradient,
    ),
    "MoCo: a rank's own keys alone": (
        contrastive,
        "others, same = collectives.gather(key), identity[:, None] == collectives.gather(identity)",
        "others, same = key, identity[:, None] == identity",
        contrasts.check_moco_on_ranks,
    ),
    "queue: no wrap": (
        queue,
        "slot = slot % len",
        "slot = slot.clamp(max=len(self.values) - 1) + 0 * len",
        queued.check_queue,
    ),
    "queue: moves with a step that was not applied": (
        queue,
        "self.taken += applied * ",
        "self.taken += ",
        queued.check_queue,
    ),
    "SwAV: no view is left out": (
        prototypes,
        "(cross * others).sum()",
        "cross.sum()",
        assigned.check_swapped_loss,
    ),
    "Sinkhorn: of a rank alone": (
        prototypes,
        "collectives.total((made * weight[:, None]).sum(0))",
        "(made * weight[:, None]).sum(0)",
        assigned.check_sinkhorn_on_ranks,
    ),
    "Sinkhorn: empty slots are samples": (
        prototypes,
        "(made * weight[:, None]).sum(0)",
        "made.sum(0)",
        assigned.check_samples_of_weight_0_count_for_nothing,
    ),
    "prototypes: not normalised": (
        prototypes,
        "F.normalize(weight.float(), dim=-1)",
        "weight.float()",
        assigned.check_lengths_mean_nothing,
    ),
    "prototypes: never frozen": (
        prototypes,
        "self.weight * self.moves + self.weight.detach() * (1 - self.moves)",
        "self.weight",
        assigned.check_what_stands_still_stands_still,
    ),
    "SwAV: the queue takes part at once": (
        clustering,
        "self.queue is None or not self.queue_counts",
        "self.queue is None",
        clusters.check_a_queue_takes_part_when_it_is_time,
    ),
    "SwAV: every rank counts all of the queue": (
        clustering,
        "share = slice(collectives.rank(), None, collectives.ranks())",
        "share = slice(None)",
        clusters.check_swav_on_ranks,
    ),
    "SwAV: both views' assignments are the first's": (
        clustering,
        "self.assign(score[large].detach(), large)",
        "self.assign(score[0].detach(), 0)",
        clusters.check_swav_is_lightly_s,
    ),
    "DINO: centring off": (
        dino,
        "F.softmax((logits - centre.value) / self.sharpness, dim=-1)",
        "F.softmax(logits / self.sharpness, dim=-1)",
        dinos.check_dino_is_lightly_s,
    ),
    "DINO: the centre of a rank alone": (
        dino,
        "whole = collectives.total(torch.stack(sums).sum(0))",
        "whole = torch.stack(sums).sum(0)",
        dinos.check_dino_on_ranks,
    ),
    "DINO: the teacher is always as sharp": (dino, "(last - first) * risen", "0 * risen", dinos.check_the_schedule),
    "DINO: pieces' prototypes are never frozen": (
        dino,
        "for head in self.heads:",
        "for head in self.heads[:1]:",
        dinos.check_the_schedule,
    ),
    "iBOT: the student sees all": (
        dino,
        "student = self.backbone.encode(large, hide)",
        "student = self.backbone.encode(large)",
        dinos.check_ibot_is_lightly_s,
    ),
    "iBOT: visible pieces are predicted": (
        dino,
        "masking.hidden_index(large, hide, self.mask.ratio)",
        "masking.hidden_index(large, ~hide, self.mask.ratio)",
        dinos.check_ibot_is_lightly_s,
    ),
    "KoLeo: a sample is its own neighbour": (dino, ".masked_fill(same, -2)", "", dinos.check_koleo_is_lightly_s),
    "KoLeo: of a rank alone": (
        dino,
        "everyone, same = collectives.gather(unit), identity[:, None] == collectives.gather(identity)",
        "everyone, same = unit, identity[:, None] == identity",
        lambda module: dinos.check_dino_on_ranks(module, "koleo"),
    ),
}


def planted(module: types.ModuleType, good: str, bad: str) -> types.ModuleType:
    source = inspect.getsource(module)
    assert source.count(good) == 1, f"{module.__name__} has no single {good!r} any more: plant this fault elsewhere"
    made = types.ModuleType(module.__name__)
    made.__file__ = module.__file__
    exec(compile(source.replace(good, bad), module.__file__, "exec"), made.__dict__)
    return made


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(name):
    module, good, bad, check = PLANTED[name]
    with pytest.raises(AssertionError):
        check(planted(module, good, bad))
