"""Every shipped configuration runs for two steps, on a tiny encoder and tiny data of its modality."""

import traceback

import pytest
import support
import yaml

CONFIGS = sorted((support.ROOT / "configs").glob("*.yaml"))


def settings(file) -> dict:
    from triptych.training.command_line import load_yaml, unfold

    return unfold(load_yaml(file))


def run_all(folder: str, files: list[str]) -> dict[str, str]:
    """By configuration: what went wrong, or nothing."""
    from triptych import train

    ended = {}
    for file in files:
        name = settings(file).get("modality", {}).get("name", "image")
        source = f"{folder}/{name}.parquet"
        support.table_of(name).to_parquet(source)
        where = f"{folder}/{file.rpartition('/')[2]}"
        argv = f"--config {file} --data {source} --output_dir {where} --device cpu --report_to none --max_steps 2"
        argv += " --per_device_train_batch_size 4 --encoder.width 32 --encoder.depth 1 --encoder.heads 2"
        argv += " --logging_steps 1 --dataloader_num_workers 0 --data.eval_fraction 0.2 --data.column " + name
        if name == "text":
            argv += " --modality.vocab_size 300"
        needed = support.needed(settings(file).get("objective", {}).get("name", "mae"), name)
        argv += "".join(f" --{key} {value}".replace(", ", ",") for key, value in needed.items())
        # The tiny encoder has no more blocks, and the run two steps.
        argv += "".join(f" --{key} 1" for key in ("train_last", "head_steps") if key in settings(file))
        try:
            train.main(argv.split())
            ended[file] = ""
        except (Exception, SystemExit):
            ended[file] = traceback.format_exc()
    return ended


@pytest.fixture(scope="module")
def ended(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    ran = launch(run_all, 1, folder=str(folder), files=[str(f) for f in CONFIGS])
    return folder, ran.results()[0]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_it_runs(ended, file):
    folder, said = ended
    assert not said[str(file)], said[str(file)]
    lines = support.metrics(folder / file.name)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["loss"] < 1e4 for line in lines)  # Barlow Twins' grows with the width


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
def test_its_head_says_what_it_is(file):
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    assert "Shows:" in text and "Expected:" in text and f"--config configs/{file.name}" in text
    assert yaml.safe_load(file.read_text())
    # A toy says so; what is of a size of use says what it takes.
    assert "Size: " in text or "GFLOP" in text or file.stem.startswith("continue_")


def test_there_is_one_for_each_cell_of_the_tables():
    from triptych.modalities import MODALITIES
    from triptych.objectives import OBJECTIVES

    shipped = {(s["modality"]["name"], s["objective"]["name"]) for s in map(settings, CONFIGS)}
    assert {(m, o) for m in MODALITIES for o in OBJECTIVES} <= shipped
