"""A frozen teacher: its targets are those of the native class, the loss is the formula, the run holds none of it."""

import copy

import numpy as np
import pytest
import support
import torch
import transformers
from singles import assert_equal, assert_seen, backbone_of, batch_of, shaken
from torch.nn import functional as F

from triptych.encoders.native import make
from triptych.modalities import EVALUATION, Audio, Image, Text, View
from triptych.objectives import FrozenTeacher, Progress, frozen


def student_of(kind: str):
    """A student of another size than the teacher; of text, with the teacher's tokenizer."""
    if kind == "image":
        return backbone_of("image")  # 16 pixels, where the teacher has 8, and other statistics
    torch.manual_seed(0)
    if kind == "audio":
        modality = Audio(0.32, 16, (16, 4), mean=0.5, std=2.0)
    else:
        modality = Text(tokenizer=support.teacher("text"), max_length=16)
        modality.fit(None, "text")
    return shaken(make(modality, width=16, depth=2, heads=2))


def distilled(kind: str, **settings) -> FrozenTeacher:
    student = student_of(kind)
    settings = {"teacher": support.teacher(kind)} | settings
    return shaken(FrozenTeacher(student, **settings | FrozenTeacher.found(student.modality, **settings)))


def sample(modality) -> tuple[View, list[View]]:
    if not isinstance(modality, Text):
        view, _ = batch_of(modality)
        parts = [{k: v[i : i + 1] for k, v in view.tensors().items() if k != "position"} for i in range(len(view))]
        return view, [view.replace(**part) for part in parts]
    seed = torch.arange(5)
    made = [modality.view(modality.read(t), EVALUATION, 0) for t in support.cells("text", 5)[0]]
    alone = [modality.prepare(modality.collate([m], seed[i : i + 1])) for i, m in enumerate(made)]
    return modality.prepare(modality.collate(made, seed)), alone


def native_vectors(kind: str, modality, singles) -> np.ndarray:
    """What the stock class makes of the same samples, as its own processor would hand them over."""
    model = transformers.AutoModel.from_pretrained(support.teacher(kind)).eval()
    vectors = []
    for alone in singles:
        with torch.no_grad():
            if kind == "text":
                ids = [modality.first, *alone.data[0].tolist()]
                vectors.append(model(torch.tensor([ids])).last_hidden_state[0, 0])
                continue
            if kind == "image":
                processor = transformers.AutoImageProcessor.from_pretrained(support.teacher(kind))
                mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (processor.image_mean, processor.image_std))
                pixels = modality.uncut(alone) * 0.5 + 0.5
                pixels = F.interpolate(pixels, (8, 8), mode="bilinear", antialias=True)
                if pixels.shape[1] != mean.shape[1]:
                    mean, std = mean[:, :1], std[:, :1]
                vectors.append(model((pixels - mean) / std).last_hidden_state[0, 0])
                continue
            extractor = transformers.ASTFeatureExtractor.from_pretrained(support.teacher(kind))
            mels = modality.uncut(alone)[0, 0] * (2 * modality.std) + modality.mean  # [mels frames]
            wanted = extractor.max_length
            mels = F.pad(mels, (0, max(0, wanted - mels.shape[1])))[:, : model.config.max_length]
            values = ((mels - extractor.mean) / (2 * extractor.std)).T[None]
            vectors.append(model(values).last_hidden_state[0, :2].mean(0))
    return torch.stack(vectors).double().numpy()


def loop(objective, kind: str, singles) -> torch.Tensor:
    errors = []
    for alone, t in zip(singles, native_vectors(kind, objective.backbone.modality, singles), strict=True):
        s, t = objective.map(objective.backbone(alone))[0], torch.tensor(t).float()
        errors.append(1 - (s @ t) / (s.norm() * t.norm()))
    return torch.stack(errors).mean()


@pytest.mark.parametrize("kind", ["image", "audio", "text"])
def test_the_target_is_the_native_class_s_and_the_loss_the_formula(kind):
    objective = distilled(kind)
    view, singles = sample(objective.backbone.modality)
    other = copy.deepcopy(objective)
    assert_equal(objective, other, objective([view])["loss"], loop(other, kind, singles))


@pytest.mark.parametrize("hidden", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_piece_by_piece(kind, hidden):
    more = {"size": 16} if kind == "image" else {}
    objective = distilled(kind, target="pieces", hidden=hidden, **more)
    view, _ = sample(objective.backbone.modality)
    modality, teacher = objective.backbone.modality, objective.frozen()
    hide = frozen.masking.hide(view, hidden, "random", 1, modality.hideable(view)) if hidden else None
    s = objective.map(objective.backbone.encode(view, hide).pieces)
    with torch.no_grad():
        t = teacher.encode(modality.shown(view, teacher.modality)).pieces
    errors = []
    for row in range(len(s)):
        for piece in range(s.shape[1]):
            counts = hide[row, piece] if hidden else view.ordinary is None or view.ordinary[row, piece]
            if counts:
                a, b = s[row, piece], t[row, piece]
                errors.append(1 - (a @ b) / (a.norm() * b.norm()))
    torch.testing.assert_close(objective([view])["loss"], torch.stack(errors).mean(), atol=1e-5, rtol=1e-5)


def test_nothing_of_the_teacher_is_in_the_run():
    objective = distilled("image")
    view, _ = sample(objective.backbone.modality)
    objective([view])["loss"].backward()
    teacher = objective.held[0]
    held = {id(p) for p in teacher.parameters()}
    assert held and not held & {id(p) for p in objective.parameters()}
    assert not any("held" in name or "teacher" in name for name in objective.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters()) and not teacher.training
    bare = FrozenTeacher(student_of("image"), "gone", width=24, sha256=objective.sha256)
    assert bare.state_dict().keys() == objective.state_dict().keys()  # probed and exported without the teacher


def test_another_teacher_than_at_the_start_is_refused():
    objective = distilled("image")
    objective.sha256 = "0" * 64
    with pytest.raises(ValueError, match="its weights are not those that this run began with") as refused:
        objective.before_step(Progress(0, 1, 1))
    assert "\n" not in str(refused.value)


def test_reading_the_teacher_draws_no_random_numbers():
    objective = distilled("image")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    objective.before_step(Progress(0, 1, 1))
    assert torch.equal(torch.rand(3), expected)


REFUSED = {
    "none": ("image", {"teacher": None}, "objective.teacher is not given"),
    "not there": ("image", {"teacher": "/no/such/folder"}, "no such folder"),
    "of another kind": ("image", {"teacher": "text"}, "is of modality text"),
    "another grid": ("image", {"target": "pieces"}, "its pieces lie on a grid of 2×2, the student's on 4×4"),
    "no other size": ("text", {"size": 16}, "has one size only; leave objective.size out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_misfit_is_refused_in_a_line(name):
    kind, settings, words = REFUSED[name]
    if settings.get("teacher") == "text":
        settings = {"teacher": support.teacher("text")}
    with pytest.raises(ValueError, match=words) as refused:
        distilled(kind, **settings)
    assert "\n" not in str(refused.value)


def test_other_tokens_and_other_bins_are_refused():
    other = Text(vocab_size=300, max_length=16)
    other.fit(support.table_of("text", 20), "text")
    given = {"target": "pooled", "revision": None, "size": None}
    with pytest.raises(ValueError, match="its tokenizer is another one; give its own, modality.tokenizer"):
        frozen.read(other, teacher=support.teacher("text"), **given)
    long = Text(tokenizer=support.teacher("text"), max_length=40)
    long.fit(None, "text")
    with pytest.raises(ValueError, match="it has 16 places .* modality.max_length is 40; lower that to 16"):
        frozen.read(long, teacher=support.teacher("text"), **given)
    with pytest.raises(ValueError, match="it hears 16 mel bins, the student 32"):
        frozen.read(Audio(0.32, 32, (8, 8), mean=0.0, std=1.0), teacher=support.teacher("audio"), **given)


def is_right():
    test_the_target_is_the_native_class_s_and_the_loss_the_formula("image")


def as_it_comes(self, view, other, shown=Image.shown):
    """Under the student's statistics."""
    made = shown(self, view, other)
    return made.replace(data=made.data * 0.5 + 0.2)


PLANTED = {
    "the student's statistics": (Image, "shown", as_it_comes),
    "the teacher's sample is another": (
        Image,
        "shown",
        lambda self, view, other, shown=Image.shown: shown(self, view.replace(data=view.data.roll(1, 0)), other),
    ),
    "a distance that is not normalised": (frozen, "distance", lambda s, t: (s - t).square().mean(-1)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(name, monkeypatch):
    assert_seen(monkeypatch, is_right, *PLANTED[name])
