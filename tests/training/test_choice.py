"""The choice: what one word of data makes of sizes and recipe; that it keeps the user's word, and disturbs nothing."""

import json
import math
import os
import re

import datasets
import numpy as np
import pytest
import support
import torch
import yaml

from triptych.encoders.encoder import PRESETS
from triptych.modalities import MODALITIES
from triptych.modalities.survey import Survey
from triptych.training.choice import LADDER, left_open, options, warnings
from triptych.training.command_line import from_command_line, read
from triptych.training.errors import UserError
from triptych.training.kinds import modality_in
from triptych.training.settings import folder_for
from triptych.training.trial import Trial

CPU, GPU = 8e10, 5e13  # operations a second
PICTURES = {side: {"side": side, "aspect": 1.0, "alike": 1.0, "channels": 3} for side in (8, 28, 64, 176, 512, 2000)}
SOUNDS = {s: {"seconds": s, "most": s, "mean": s, "rate": 16_000} for s in (0.5, 1, 5, 30, 3600)}
TEXTS = {t: {"tokens": t, "most": 2 * t, "mean": t, "whole": 1e4 * t} for t in (12, 60, 300, 100_000)}
SETS = {"image": PICTURES, "audio": SOUNDS, "text": TEXTS}


def chosen(modality: str, measures: dict, speed: float = CPU, minutes: float = 20, rows: int = 10_000, **given):
    names = {"modality.name": modality} | ({} if "objective" in given else {"objective.name": "simclr"})
    config = read(names | {"minutes": minutes, "data": "digits"} | given)
    return options(config, Survey(rows, "", "", measures), speed)


@pytest.mark.parametrize(("speed", "minutes"), [(CPU, 10), (CPU, 600), (GPU, 600)])
@pytest.mark.parametrize("modality", MODALITIES)
def test_what_is_chosen_can_be_built_and_is_of_sane_size(modality, speed, minutes):
    for size, measures in SETS[modality].items():
        made = chosen(modality, measures, speed, minutes)
        config = read({"modality.name": modality, "objective.name": "simclr", **made, "max_steps": 1})
        adapter = config.build_modality()
        pieces = adapter.pieces_of(Survey(10_000, "", "", measures))
        assert 12 <= pieces <= 512, (size, made)
        if modality == "image" and size >= 28:
            assert 36 <= pieces <= 200 and min(adapter.extent) <= size
        assert (made["encoder.width"], made["encoder.depth"], made["encoder.heads"]) in LADDER
        assert 2 <= made["per_device_train_batch_size"] <= 1024


def test_more_work_makes_larger_encoders_more_pieces_and_lower_rates():
    small, large, huge = (chosen("image", PICTURES[512], *s, rows=10**6) for s in ((CPU, 10), (CPU, 600), (GPU, 3000)))
    sizes = [12 * m["encoder.width"] ** 2 * m["encoder.depth"] for m in (small, large, huge)]
    assert sizes == sorted(set(sizes)) and sizes[0] < 1e6 and sizes[2] > 2e7
    assert small["modality.image_size"] < huge["modality.image_size"] == 224
    assert small["learning_rate"] > huge["learning_rate"]
    assert small["per_device_train_batch_size"] < huge["per_device_train_batch_size"]
    assert {rung for rung in PRESETS.values() if rung[0] > 192} <= set(LADDER)


def test_little_data_makes_small_encoders_and_batches_and_is_said():
    made = chosen("image", PICTURES[28], GPU, 6000, rows=30)
    assert made["encoder.width"] == 128 and made["per_device_train_batch_size"] <= 7
    config = read({"modality.name": "audio", "minutes": 20, "data": "tones"})
    said = warnings(config, 30, 1080, Trial(1.0, 0))
    assert said[0].startswith("30 rows, 1,080 samples, 20 minutes: too few")
    assert "start from a published encoder: --init_from MIT/ast" in said[0]
    config.run.max_steps = 20
    (short,) = warnings(config, 200, 72_000, Trial(60.0, 0))
    assert short.startswith("20 steps are hardly enough") and "--minutes 330" in short
    assert "--minutes" not in warnings(config, 200, 72_000, Trial(0.1, 0))[0]  # so few for want of samples
    assert not warnings(read({"minutes": 20, "data": "digits"}), 5000, 5000, Trial(1.0, 0))


@pytest.mark.parametrize(
    ("modality", "given"),
    [
        ("image", {"modality.image_size": 96}),
        ("image", {"modality.patch_size": 32}),
        ("image", {"modality.channels": 1, "encoder.width": 96, "encoder.heads": 3}),
        ("audio", {"modality.tile": [64, 2], "learning_rate": 0.1}),
        ("audio", {"modality.seconds": 2.5, "objective": "mae"}),
        ("audio", {"modality.mel_bins": 64, "per_device_train_batch_size": 8}),
        ("text", {"modality.max_length": 99, "objective": "masked"}),
        ("text", {"modality.vocab_size": 999, "encoder": "small"}),
    ],
)
def test_what_is_given_is_kept_and_the_rest_fits_it(modality, given):
    for measures in SETS[modality].values():
        made = chosen(modality, measures, **given)
        flat = set(given) | {f"{key}.name" for key in given}
        assert not flat & made.keys()
        if "encoder" in given:  # a preset
            assert not any(k.startswith("encoder") for k in made)
        names = {"modality.name": modality} | ({} if "objective" in given else {"objective.name": "simclr"})
        read(names | {"max_steps": 1} | made | given).build_modality()


@pytest.mark.parametrize(
    "given", [{"width": 256}, {"width": 100}, {"depth": 1}, {"heads": 8}, {"heads": 6}, {"eps": 1e-6}]
)
def test_one_size_of_the_encoder_leaves_the_others_to_the_choice(given):
    """`--encoder.heads 8` alone made 12 blocks, those of a preset that nobody had named; a width of 256 was refused."""
    free, given = chosen("image", PICTURES[28]), {f"encoder.{key}": value for key, value in given.items()}
    made = chosen("image", PICTURES[28], **given) | given
    architecture = read({"modality.name": "image", "objective.name": "simclr", "max_steps": 1} | made)
    encoder = architecture.build_objective(architecture.build_modality()).backbone.encoder.architecture
    assert encoder.depth == given.get("encoder.depth", free["encoder.depth"])
    near = given.get("encoder.width", free["encoder.width"])
    assert near <= encoder.width < near + 32 and 1 <= encoder.heads <= 8


def test_the_rate_of_an_encoder_that_is_named_is_that_of_its_width():
    named, alike = (chosen("image", PICTURES[28], **e) for e in ({"encoder": "small"}, {"encoder.width": 384}))
    assert named["learning_rate"] == alike["learning_rate"] < 1e-3


@pytest.mark.parametrize(
    ("modality", "more", "is_open"),
    [
        ("audio", "", True),
        ("audio", "--modality.silence 40", True),
        ("audio", "--modality.rate 8000 --modality.hop 1", True),
        ("audio", "--modality.seconds 2", False),
        ("image", "--modality.channels 1 --modality.patch_size 2", True),
        ("image", "--modality.image_size 64", False),
        ("text", "--modality.vocab_size 500", True),
        ("text", "--modality.max_length 32", False),
    ],
)
def test_a_view_s_size_is_chosen_whatever_else_is_asked_of_it(modality, more, is_open):
    """`--modality.silence 40 --max_steps 9` took windows of ten seconds for sounds of one, without a word."""
    made = from_command_line(["--data", "mine", "--max_steps", "9", "--modality", modality, *more.split()])
    assert left_open(made) == is_open


def test_few_sounds_keep_level_and_pitch():
    few, many = (chosen("audio", SOUNDS[5], rows=rows) for rows in (320, 3200))
    assert few["modality.gain"] == few["modality.frequency_scale"] == 0 and few["objective.scale"] == (0.3, 0.6)
    assert "modality.gain" not in many and "objective.scale" not in many
    assert "objective.scale" not in chosen("audio", SOUNDS[5], rows=320, objective="mae")
    kept = chosen("audio", SOUNDS[5], rows=320, **{"modality.gain": 0.5, "objective.scale": [0.5, 1.0]})
    assert not {"modality.gain", "objective.scale"} & kept.keys()


def test_wide_pictures_have_wide_views():
    wide = {"side": 128, "aspect": 4.0, "alike": 1.0, "channels": 1}
    made = chosen("image", wide)
    height, width = made["modality.image_size"]
    assert width == 4 * height and made["modality.channels"] == 1
    assert chosen("image", wide | {"aspect": 0.25})["modality.image_size"] == (width, height)
    assert isinstance(chosen("image", wide | {"alike": 0.5})["modality.image_size"], int)


# What a source is of.


def test_the_modality_is_told_by_the_files(tmp_path):
    def told(name):
        return (modality_in(str(tmp_path / name)) or [None])[0]

    support.write_pictures(tmp_path / "pictures" / "a", 3)
    (tmp_path / "pictures" / "caption.txt").write_text("words")
    for name in MODALITIES:
        support.table_of(name).to_parquet(tmp_path / f"{name}.parquet")
        support.table_of(name).save_to_disk(tmp_path / f"{name}_saved")
        assert told(f"{name}.parquet") == told(f"{name}_saved") == name
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.FLAC").write_bytes(b"x")
    (tmp_path / "names.csv").write_text("file,label\na/b.wav,dog\n")
    (tmp_path / "words.csv").write_text("text,label\nhello there,1\n")
    # Words that name a file by the way.
    lines = ["see www.abc.net.au", "a photo.jpg", *["no more than words"] * 9]
    said = {
        "reviews.csv": "text,label\n" + "".join(f"{line},1\n" for line in lines),
        "reviews.jsonl": "".join(json.dumps({"text": line}) + "\n" for line in lines),
        "captions.json": json.dumps([{"meta": {"by": "me"}, "file": f"{i}.jpg"} for i in range(5)], indent=1),
    }
    for name, content in said.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    found = {n: told(n) for n in ("pictures", "sounds", "names.csv", "words.csv", *said, "empty", "nowhere")}
    assert found == {
        "pictures": "image",
        "sounds": "audio",
        "names.csv": "audio",
        "words.csv": "text",
        "reviews.csv": "text",
        "reviews.jsonl": "text",
        "captions.json": "image",
        "empty": None,
        "nowhere": None,
    }
    assert modality_in("tones")[0] == "audio"
    config = from_command_line(["--data", str(tmp_path / "sounds"), "--modality.seconds", "3"])
    assert config.modality["name"] == "audio" and config.origin["modality.name"] == "chosen"
    # An option of another modality says more than the files do, and so does a name.
    assert from_command_line(["--data", "tones", "--modality.image_size", "32"]).modality["name"] == "image"
    assert from_command_line(["--data", "tones", "--modality", "text"]).modality["name"] == "text"


def test_folders_are_called_by_the_data():
    names = {
        "shared/clothing/train.parquet": "clothing",
        "my set/": "my-set",
        "user/set": "set",
        "a.csv": "a",
        "(in memory)": "in-memory",
        "data": "data",
    }
    assert {name: folder_for(name, "mae") for name in names} == {k: f"runs/{v}-mae" for k, v in names.items()}
    assert from_command_line(["--data", "tones"]).run.output_dir == "runs/tones-simclr"


def test_the_objective_that_is_chosen_has_its_options():
    """The table that a run prints says `simclr`: its options can be given with nothing else."""
    simclr = from_command_line(["--data", "tones", "--objective.temperature", "0.5", "--objective.head.out", "16"])
    assert simclr.objective["name"] == "simclr" and simclr.origin["objective.name"] == "chosen"
    assert (simclr.objective["temperature"], simclr.objective["head"]["out"]) == (0.5, 16)
    # Another's option says more, and so does a name.
    assert from_command_line(["--data", "tones", "--objective.mask.ratio", "0.5"]).objective["name"] != "simclr"
    named = from_command_line(["--data", "tones", "--objective.name", "byol"])
    assert named.objective["name"] == "byol" and named.origin["objective.name"] == "command line"
    assert read({"data": "tones", "minutes": 5, "objective": {"temperature": 0.5}}).objective["name"] == "simclr"


def test_two_lengths_are_refused():
    with pytest.raises(UserError, match="minutes 3 and max_steps both say how long"):
        read({"minutes": 3, "max_steps": 5})
    file = from_command_line(["--config", "image_mae", "--minutes", "3"])  # its epochs give way
    assert file.run.minutes == 3 and file.objective["name"] == "mae"


# A whole run.


def run(argv: list[str]) -> None:
    from triptych import train

    train.main(argv)


def test_one_word_is_enough_and_the_same_word_continues(launch, tmp_path):
    """And the choice disturbs nothing: what it stored makes the same weights, bit for bit, when it is given."""
    from safetensors.torch import load_file

    random = np.random.default_rng(0)
    cells = [{"bytes": support.picture(random, 20), "path": None} for _ in range(60)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(tmp_path / "small.parquet")
    more = "--device cpu --report_to none --report false --logging_steps 1 --dataloader_num_workers 0".split()
    word = [
        "--data",
        str(tmp_path / "small.parquet"),
        "--minutes",
        "0.02",
        "--output_dir",
        str(tmp_path / "run"),
        *more,
    ]
    first = launch(run, 1, argv=word)
    first.results()
    said = first.output()
    for wanted in ("60 rows: 20×20 px, in colour", "--modality.image_size", "--encoder.width 128", "--minutes 0.02"):
        assert wanted in said
    assert re.search(r"\d+ samples, 0.02 minutes: too few", said)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["origin"]["max_steps"] == stored["origin"]["modality.image_size"] == "chosen"
    assert stored["modality"]["image_size"] <= 20 and stored["max_steps"] >= 1
    again = launch(run, 1, argv=word)
    again.results()
    assert "is finished" in again.output() and "chosen from" not in again.output()
    given = {k: v for k, v in stored.items() if k not in ("origin", "minutes")} | {
        "output_dir": str(tmp_path / "given")
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(given))
    launch(run, 1, argv=["--config", str(tmp_path / "given.yaml")]).results()
    one, other = (
        load_file(next((tmp_path / name).glob("checkpoint-*")) / "model.safetensors") for name in ("run", "given")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_ranks_are_told(launch, tmp_path):
    support.table_of("text", 60).to_parquet(tmp_path / "text.parquet")
    word = ["--data", str(tmp_path / "text.parquet"), "--minutes", "0.02", "--output_dir", str(tmp_path / "run")]
    ended = launch(run, 2, argv=[*word, "--device", "cpu", "--report_to", "none", "--report", "false"])
    ended.results()
    assert ended.output().count("chosen from the data") == 1
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["modality"]["name"] == "text" and stored["modality"]["max_length"] == 32
    assert math.log2(stored["per_device_train_batch_size"]).is_integer()


def of_few_sounds(argv: list[str], folder: str) -> None:
    os.chdir(folder)
    run(argv)


def test_of_few_sounds_an_objective_without_negatives_is_chosen_and_continued(launch, tmp_path):
    """Its folder is called by it, so the same word finds it; a name or an option of another goes before."""
    (tmp_path / "barks").mkdir()
    for i in range(12):
        (tmp_path / "barks" / f"{i}.wav").write_bytes(support.encoded(support.tone(0.3, pitch=200 + 50 * i)))
    more = "--device cpu --report_to none --report false --dataloader_num_workers 0 --save_steps 1".split()
    word = ["--data", "barks", "--minutes", "0.02", *more]
    first = launch(of_few_sounds, 1, argv=word, folder=str(tmp_path))
    first.results()
    assert "--objective byol" in first.output() and [p.name for p in (tmp_path / "runs").iterdir()] == ["barks-byol"]
    stored = yaml.safe_load((tmp_path / "runs/barks-byol/config.yaml").read_text())
    assert stored["objective"]["name"] == "byol" and stored["origin"]["objective.name"] == "chosen"
    assert stored["objective"]["scale"] == [0.3, 0.6] and stored["objective"]["predictor_rate"] == 10
    again = launch(of_few_sounds, 1, argv=word, folder=str(tmp_path))
    again.results()
    assert "is finished" in again.output()
    for given, name in ((["--objective", "simclr"], "simclr"), (["--objective.temperature", "0.5"], "simclr")):
        other = launch(of_few_sounds, 1, argv=[*word, *given, "--output_dir", given[-1]], folder=str(tmp_path))
        other.results()
        assert yaml.safe_load((tmp_path / given[-1] / "config.yaml").read_text())["objective"]["name"] == name


def test_a_text_of_middle_length_is_whole_whatever_the_budget():
    def window(middle: int, most: int) -> int:
        measures = {"tokens": middle, "most": most, "mean": middle, "whole": 1e6}
        return chosen("text", measures, minutes=5)["modality.max_length"]

    assert [window(*x) for x in ((28, 50), (58, 100), (242, 700), (1e5, 2e5), (20, 900))] == [64, 64, 256, 256, 64]


@pytest.mark.parametrize(
    ("text", "tokens"), [("a word or two more. ", 5), ("我们学习文字", 3), ("ことばをまなぶ。", 3.75)]
)
def test_tokens_of_a_text_are_estimated_in_any_writing(text, tokens):
    """Byte-level BPE of 8,192 words makes a token of 4.1 to 4.5 letters, and of 2.1 to 2.5 ideographs or kana."""
    found = MODALITIES["text"]().survey(datasets.Dataset.from_dict({"text": [100 * text]}), "text")
    assert found.measures["mean"] == pytest.approx(100 * tokens)
