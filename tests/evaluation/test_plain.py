"""Plain data: what stands beside encoders without being one, for each modality and each kind of labels."""

import numpy as np
import pytest
import support
import torch
from finished import finished
from scipy.sparse import issparse

from triptych.evaluation import plain
from triptych.evaluation.features import extract
from triptych.evaluation.probe_table import verdict
from triptych.evaluation.tasks import Classes, Numbers, Several
from triptych.modalities import EVALUATION, Audio, Image


def prepared(modality, cells):
    made = [modality.view(modality.read(cell), EVALUATION, 0) for cell in cells]
    return modality.prepare(modality.collate(made, torch.zeros(len(made), dtype=torch.long)))


@pytest.mark.parametrize("name", ["image", "audio", "text"])
def test_a_split_has_it_beside_the_features(name, tmp_path):
    _, objective = finished(name, "masked" if name == "text" else "mae", tmp_path)
    rows = support.rows_of(name, objective.backbone.modality, 8)
    x = extract(objective.backbone, rows, plain=True)
    made, again = plain.taken(rows, rows, x, extract(objective.backbone, rows, plain=True))
    assert made.shape[0] == 8 and issparse(made) == (name == "text") and abs(made - again).max() == 0
    assert x.x.keys() == {"native", "mean"}


def test_pixels_are_few_and_those_of_the_view():
    modality = Image(image_size=64, patch_size=8, channels=3, mean=0.5, std=0.5)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32] = 255
    made = modality.plain(prepared(modality, [modality.cell(picture)]))
    assert made.shape == (1, 3 * 18 * 18)
    assert made[0, 0] == 1 and made[0, -1] == -1
    small = Image(image_size=8, patch_size=4, channels=1, mean=0.5, std=0.5)
    view = prepared(small, [small.cell(picture[..., 0])])
    assert torch.equal(small.plain(view), small.uncut(view).flatten(1))


def test_of_a_sound_the_padding_is_not_heard():
    modality = Audio(seconds=1.0, mel_bins=16, tile=(8, 4), mean=-4.0, std=4.0)
    short, long = (modality.cell((support.tone(seconds), 16_000)) for seconds in (0.4, 1.0))
    made = modality.plain(prepared(modality, [short, long]))
    assert made.shape == (2, 32)
    torch.testing.assert_close(made[0], made[1], atol=0.05, rtol=0.05)


def test_words_are_those_of_the_rows_to_learn_from_in_any_script():
    one, other = plain.counted(["a red sun", "a blue sea", "赤い 太陽"], ["red SEA", "nothing known", ""])
    assert one.shape == (3, 9) and other.shape == (3, 9)
    assert other.getnnz(1).tolist() == [2, 0, 0]
    np.testing.assert_allclose(np.linalg.norm(one.toarray(), axis=1), 10**0.5, rtol=1e-6)
    assert plain.counted(["!!!", "..."], ["?"]) is None


def test_labels_of_all_kinds_are_learned_from_words():
    random = np.random.RandomState(0)
    y = np.arange(120) % 2
    texts = [" ".join(random.choice(["sun", "sky"] if c else ["mud", "dirt"], 6)) for c in y]
    x, t = plain.counted(texts[:80], texts[80:])
    labels = {Classes(["a", "b"]): y, Several(["a", "b"]): np.eye(2, dtype=int)[y], Numbers(["n"]): 3.0 + y}
    for task, values in labels.items():
        for kind in ("linear", "knn"):
            output = task.fit(kind, x, values[:80], t)
            assert task.values(task.decides, output, values[80:]).mean() > 0.95, (task.name, kind)


def test_the_verdict_is_of_the_best_linear_cell_of_each_number_of_labels():
    def row(labels, probe, pooling, accuracy, **sure):
        above = {o: {"mean": 5.0, "error": 1.0, "sure": it} for o, it in sure.items()}
        made = {"encoder": "pretrained", "labels": labels, "probe": probe, "pooling": pooling, "measure": "accuracy"}
        return made | {"accuracy": accuracy, "task": "classes", "above": above | {"largest class": {}}}

    rows = [row("2", "linear", "native", 40.0, random=False, plain=False)]
    rows += [row("2", "linear", "mean", 50.0, random=True, plain=True)]
    rows += [row("2", "knn", "mean", 90.0, random=False, plain=False)]
    rows += [row("all", "linear", "mean", 70.0, random=True, plain=False)]
    (good, first), (look, second) = verdict(rows)
    assert (good, look) == ("good", "look") and first.startswith(
        "Linear probe of 2 labels a class, accuracy 50.0: above"
    )
    assert "NOT" not in first and "all labels" in second
    assert (
        "above the untrained encoder (+5.0 ± 1.0); NOT surely above plain data (+5.0 ± 1.0): the data itself" in second
    )
