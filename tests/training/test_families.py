"""Every family of the table trains with each kind of objective, on two ranks, resumes, and goes out as what it is."""

import io
import shutil
from pathlib import Path

import pytest
import soundfile
import support
import torch
from PIL import Image as pillow
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from triptych.encoders.native import FAMILIES
from triptych.evaluation.load import from_run
from triptych.export import export
from triptych.modalities import EVALUATION
from triptych.training import checkpoint

KINDS = {"drop": "mae", "hide": "masked", "two views": "simclr"}
STAGES = (0, 3)
STEPS, SAVED = 4, 2
# The first is trained from nothing, by the family's name; the others continue what that one exported.
FIRST, *_ = KINDS.values()
# Those that differ most from the defaults of the other tests.
QUICK = {"dinov2_with_registers", "audio-spectrogram-transformer", "modernbert"}


def options(family: str, objective: str, source: str, data: str, folder: str, stage: int) -> dict:
    modality = FAMILIES[family].modality
    given = {
        "output_dir": folder,
        "data": data,
        "modality": {"name": modality},
        "objective": {"name": objective},
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0.0,
        "max_steps": STEPS,
        "save_steps": SAVED,
        "logging_steps": 1,
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "report_to": "none",
        "dataloader_num_workers": 0,
        "device": "cpu",
    }
    if objective == FIRST:
        sizes = support.TINY[modality] | ({"channels": 3} if modality == "image" else {})
        given |= {"family": family, "encoder": {"width": 32, "depth": 2, "heads": 2}}
        given["modality"] = given["modality"] | sizes
        given["objective"] = given["objective"] | {"decoder": support.SMALL["decoder"]}
        return given
    # Only the last block is trained in one of them, and the heads alone in its first step.
    restrained = {"train_last": 1, "head_steps": 1} if objective == "simclr" else {"train_last": None, "head_steps": 0}
    return given | restrained | {"init_from": source}


def train_family(family: str, data: str, folder: str) -> dict:
    """Each objective under each stage, and once more from the middle; what each run printed and did is returned."""
    import torch.distributed as dist

    from triptych.train import pretrain
    from triptych.training.loop import Loop

    steps, original = [], Loop._step

    def step(self, *arguments):
        steps.append(0)
        return original(self, *arguments)

    Loop._step = step
    made = {}
    for objective in KINDS.values():
        for stage in STAGES:
            run = Path(folder) / f"{objective}-{stage}"
            given = options(family, objective, f"{folder}/source", data, str(run), stage)
            figures = [pretrain(given)]
            steps.clear()
            dist.barrier()
            if stage and dist.get_rank() == 0:  # as if it had been killed after the checkpoint in the middle
                shutil.copytree(run, f"{run}-whole")
                shutil.rmtree(run / f"checkpoint-{STEPS}")
            dist.barrier()
            if stage:
                figures.append(pretrain(given))
            made[f"{objective}-{stage}"] = {"loss": [f["loss"] for f in figures], "resumed": len(steps)}
        if objective == FIRST:
            if dist.get_rank() == 0:
                export(run, to=f"{folder}/source")
            dist.barrier()
    return made


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_it_trains_resumes_and_goes_out(family, launch, tmp_path):
    data = str(tmp_path / "data.parquet")
    support.table_of(FAMILIES[family].modality).to_parquet(data)
    made, other = launch(train_family, 2, family=family, data=data, folder=str(tmp_path)).results()
    for objective in KINDS.values():
        alike = [made[f"{objective}-{stage}"]["loss"] for stage in STAGES]
        assert alike[1] == pytest.approx(alike[0] * 2, rel=1e-3), objective
        assert made[f"{objective}-3"]["resumed"] == other[f"{objective}-3"]["resumed"] == STEPS - SAVED
        run = tmp_path / f"{objective}-3"
        for file in ("model.safetensors", "optimizer.safetensors"):
            ended = [folder / f"checkpoint-{STEPS}" / file for folder in (run, Path(f"{run}-whole"))]
            assert ended[0].read_bytes() == ended[1].read_bytes(), (objective, file)
        assert moved(run, objective), objective
        assert far(export(run), run) < 3e-6, objective


def moved(run: Path, objective: str) -> bool:
    """The encoder is another than it was in the middle."""
    middle, last = (checkpoint.read(run / f"checkpoint-{n}")[0] for n in (SAVED, STEPS))
    return any(not torch.equal(middle[k], last[k]) for k in last if k.startswith("backbone.encoder"))


def far(folder: Path, run: Path) -> float:
    """Largest relative difference of a stock model's last hidden states from ours, each from the sample itself."""
    config, objective, _ = from_run(run)
    backbone, modality, worst = objective.backbone, config.modality["name"], 0.0
    adapter = backbone.modality
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    for cell in support.cells(modality, 3)[0]:
        sample = adapter.view(adapter.read(cell), EVALUATION, 0)
        view = adapter.prepare(adapter.collate([sample], torch.zeros(1, dtype=torch.long)))
        with torch.no_grad():
            encoded, theirs = backbone.encode(view), model(**INPUTS[modality](folder, cell)).last_hidden_state
        ours = torch.cat([encoded.leads.flatten(1, 2), encoded.pieces], dim=1)
        assert ours.shape == theirs.shape
        worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    return worst


def pixels(folder: Path, cell):
    return AutoImageProcessor.from_pretrained(folder)(pillow.open(io.BytesIO(cell["bytes"])), return_tensors="pt")


def filterbank(folder: Path, cell):
    wave, rate = soundfile.read(io.BytesIO(cell["bytes"]), dtype="float32")
    return AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=rate, return_tensors="pt")


def tokens(folder: Path, cell):
    return AutoTokenizer.from_pretrained(folder)(cell, truncation=True, return_tensors="pt")


INPUTS = {"image": pixels, "audio": filterbank, "text": tokens}
