"""Classes without labels: DIET's loss is the one written out, and a run knows how many classes there are."""

import math
import re
import shutil

import numpy as np
import pytest
import support
import torch

from triptych.encoders.native import make
from triptych.modalities import Image, View
from triptych.objectives import DIET, Progress, clustering

BATCH, WIDTH, CLASSES = 5, 8, 11


def given(classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    row = torch.tensor([3, 0, 10, 3, 7])
    return torch.randn(BATCH, WIDTH, generator=random), torch.randn(classes, WIDTH, generator=random), row


def written_out(z, classes, row, temperature: float, smoothing: float) -> torch.Tensor:
    """DIET's cross-entropy, sample by sample and class by class, in float64."""
    z, classes = z.double(), classes.double()
    losses = []
    for i in range(len(z)):
        logits = [z[i] @ c / z[i].norm() / c.norm() / temperature for c in classes]
        whole = sum(logit.exp() for logit in logits)
        label = [(1 - smoothing) * (c == row[i]) + smoothing / len(classes) for c in range(len(classes))]
        losses.append(-sum(p * (logit - whole.log()) for p, logit in zip(label, logits, strict=True)))
    return sum(losses) / len(losses)


def compare(module) -> None:
    """With all classes, with all of them drawn, and with the own one drawn several times."""
    for smoothing in (0.0, 0.8):
        for drawn in (None, torch.arange(CLASSES), torch.arange(CLASSES).repeat(3)):
            found = []
            for loss in (written_out, module.diet_loss):
                z, classes, row = given()
                more = {"drawn": drawn} if loss is module.diet_loss else {}
                value = loss(z.requires_grad_(), classes.requires_grad_(), row, 0.1, smoothing, **more)
                value.backward()
                found.append((value.float().detach(), z.grad, classes.grad))
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_is_the_loss_written_out_with_gradient():
    compare(clustering)


PLANTED = [
    ("logits = product(z, F.normalize(classes.float(), dim=-1).T)", "logits = product(z, classes.float().T)"),
    ("label_smoothing=smoothing", "label_smoothing=0"),
    (".masked_fill(~other, -torch.inf)", ""),  # the own class is its own negative
    ("(others + math.log(share))", "others"),  # of a part of the classes only the part counts
    ("(others * other)", "others"),
]


@pytest.mark.parametrize(("good", "bad"), PLANTED)
def test_a_planted_fault_is_seen(good, bad):
    with pytest.raises(AssertionError):
        compare(support.planted(clustering, good, bad))


def test_known_values():
    """What is alike to all classes costs the logarithm of their number; a smoothed label's own odds are the optimum."""
    classes, row, smoothing = torch.eye(6), torch.arange(3), 0.5
    z = torch.ones(3, 6)
    assert clustering.diet_loss(z, classes, row, 0.1, smoothing).item() == pytest.approx(math.log(6), rel=1e-6)
    odds = math.log((1 - smoothing + smoothing / 6) / (smoothing / 6))  # of cosine 1 against 0
    z = torch.eye(6)[:3].requires_grad_()
    at = clustering.diet_loss(z, classes, row, 1 / odds, smoothing)
    assert all(at < clustering.diet_loss(z, classes, row, t, smoothing) for t in (0.9 / odds, 1.1 / odds))


def test_the_drawn_sum_is_the_whole_sum_in_mean():
    z, classes, row = given()
    whole = (torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(classes).T / 0.5).exp().sum(1)
    seen = []
    for step in range(400):
        drawn = clustering.mix(torch.tensor(step), clustering.NEGATIVE, torch.arange(6)) % CLASSES
        loss = torch.stack(
            [clustering.diet_loss(z[i : i + 1], classes, row[i : i + 1], 0.5, 0.0, drawn) for i in range(5)]
        )
        own = torch.nn.functional.cosine_similarity(z, classes[row]) / 0.5
        seen.append((loss + own).exp())
    torch.testing.assert_close(torch.stack(seen).mean(0), whole, rtol=0.05, atol=0)


def views(count: int = 4) -> list[View]:
    number = torch.arange(count)
    values = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return [View(**Image(8, 4, channels=1).cut(values), seed=number, identity=number, row=number)]


def test_past_so_many_classes_they_are_drawn_anew_in_each_step():
    torch.manual_seed(0)
    made = DIET(make(Image(8, 4, channels=1), width=16, depth=1, heads=1), samples=50, negatives=10)
    losses = []
    for step in (0, 1, 0):
        made.before_step(Progress(step, 10, 4))
        made.zero_grad()
        out = made(views())
        out["loss"].backward()
        losses.append(out["loss"].item())
        touched = made.classes.grad.abs().sum(1) > 0
        assert touched[:4].all() and 4 < touched.sum() <= 14
    assert losses[0] == losses[2] != losses[1]


def test_without_the_number_of_samples_it_says_so():
    with pytest.raises(ValueError, match="objective.samples is not known"):
        DIET(make(Image(8, 4, channels=1), width=16, depth=1, heads=1))(views())


def train(argv: list[str]) -> None:
    from triptych import train

    train.main(argv)


def test_a_run_counts_its_samples_and_is_read_without_the_data(launch, tmp_path):
    """Texts are cut into windows: there are more samples than rows, and some are held out."""
    from triptych.evaluation.load import from_run
    from triptych.export import export

    folder, data = tmp_path / "run", tmp_path / "texts.txt"
    random = np.random.default_rng(0)
    data.write_text("\n".join(" ".join(random.choice(support.NOUNS, 60)) for _ in range(20)))
    argv = f"--modality text --objective diet --data {data} --data.eval_fraction 0.2 --output_dir {folder} --device cpu"
    argv += " --modality.vocab_size 300 --modality.max_length 16 --encoder.width 32 --encoder.depth 1 --encoder.heads 2"
    argv += " --per_device_train_batch_size 8 --max_steps 2 --save_steps 1 --logging_steps 1 --report_to none"
    ran = launch(train, 1, argv=argv.split())
    ran.results()
    count = int(re.search(r"([\d,]+) samples to train on", ran.output())[1].replace(",", ""))
    assert count > 20
    assert not any("eval_loss" in line for line in support.metrics(folder))
    shutil.rmtree(folder / "checkpoint-2")
    launch(train, 1, argv=argv.split()).results()  # continues
    data.unlink()
    config, made, _ = from_run(folder)
    assert len(made.classes) == config.objective["samples"] == count and config.origin["objective.samples"] == "data"
    assert (export(folder, to=tmp_path / "exported") / "config.json").is_file()


def test_another_number_of_samples_is_refused():
    from triptych.training.errors import UserError

    config = support.config("image", "diet", "unused")
    config.count(200)
    with pytest.raises(UserError, match="objective.samples 200 was given, but the run trains on 39"):
        support.config("image", "diet", "unused").count(39)
    plain = support.config("image", "mae", "unused")
    plain.count(39)
    assert "samples" not in plain.objective
