"""The model card of an export: what a user must know of the input, how to get features, what it was trained with."""

import os
from pathlib import Path

import yaml

from triptych.encoders.native import FAMILIES
from triptych.evaluation.card_arrays import arrays_facts, snippet
from triptych.modalities.image_processor import resized_extent
from triptych.training.checkpoint import best
from triptych.training.fields import asked


def card(
    config, family, model, backbone, checkpoint: Path, weights: str, name: str | None, license: str | None, stale=()
):
    """A valid model card: metadata, how to get features and to fine-tune, what it was trained with.

    `stale` names the heads that came with a checkpoint and were not trained along.
    """
    from huggingface_hub import ModelCard, ModelCardData

    objective, modality = config.objective["name"], config.modality["name"]
    start, data_set = config.run.init_from, str(config.data.name)
    metadata = ModelCardData(
        library_name="transformers",
        license=license,
        pipeline_tag=family.pipeline_tag(model, backbone),
        tags=["self-supervised", "feature-extraction", objective, modality],
        base_model=start if start and is_hub_id(start, checkpoint) else None,
        datasets=[data_set] if is_hub_id(data_set, checkpoint) and "/" in data_set else None,
    )
    used = yaml.safe_load((checkpoint / "config.yaml").read_text())
    settings = yaml.safe_dump(public({k: v for k, v in used.items() if k != "output_dir"}, checkpoint), sort_keys=False)
    columns = asked(config.data.column)[1:] if backbone.modality.stacks else []
    facts, parts = FACTS[modality](backbone.modality, columns)
    facts |= {"Data": f"`{public(data_set, checkpoint)}`", "Checkpoint": f"`{checkpoint.name}`"}
    if best(checkpoint.parent) == checkpoint:
        facts["Checkpoint"] += ", the best by the run's own probe (`keep: best`)"
    if start:
        facts["Started from"] = f"`{public(start, checkpoint)}`"
    if stale:
        facts["Stale"] = (
            f"`{'`, `'.join(stale)}` came with the checkpoint that training started from and was not trained along: "
            "the encoder has moved on since, so fine-tune it before you use what it says"
        )
    listed = "\n".join(f"- {title}: {text}" for title, text in facts.items())
    auto, processor = family.auto_classes.split(", ")
    template = parts.pop("snippet", None) or FEATURES[modality]
    names = {"folder": name or ".", "auto": auto, "processor": processor, "pooled": pooled(backbone), **parts}
    features = "## Features\n\n```python\n" + template.format(**names) + "```"
    goes_out_as = FAMILIES[model.config.model_type]
    tuning = "## Fine-tuning\n\n" + (FINE_TUNING if goes_out_as.classifier else NO_CLASSIFIER).format(**names)
    use = f"{features}\n\n{tuning}" if goes_out_as.whole else NOT_WHOLE
    text = f"""---
{metadata.to_yaml()}
---

# {Path(name).name if name else f"{modality} {objective}"}

An encoder pretrained without labels (objective `{objective}`, {weights} weights) as a native `{type(model).__name__}`.
No code beside `transformers` is needed.

{listed}

{use}

## Training

All settings:

```yaml
{settings}```
"""
    return ModelCard(text)


FINE_TUNING = """```python
from transformers import {auto}, {processor}

folder = "{folder}"
model = {auto}.from_pretrained(folder, num_labels=10, dtype="float32")
processor = {processor}.from_pretrained(folder)
```

The classification head is new: fine-tune it, with the encoder, on your labels. Until then what it says is random."""
NOT_WHOLE = """This class hides pieces at random, as in training: for features, export without `--keep_heads`."""
NO_CLASSIFIER = (
    "`transformers` has no classifier of this class: put a linear layer upon the features, and fine-tune both."
)


def image_facts(image, columns) -> tuple[dict[str, str], dict[str, str]]:
    """What a user must know of the input, and what is put into the snippet.

    `columns`: those that hold a channel each.
    """
    if image.arrays:
        return {"Window": window_of(image)} | arrays_facts(image, columns), {"snippet": snippet(image, columns)}
    low, high = (f"{value:.15g}" for value in image.ranges["integers"])
    colour = {1: "made grey by the model itself", 3: "RGB", 4: "RGBA; stock pipelines drop the alpha, so give arrays"}
    facts = {
        "Window": window_of(image),
        "Colours": f"{colour[image.channels]}. The processor puts transparent pixels over white; a stock pipeline "
        "shows what is below",
        "More than 8 bits a channel": f"{low} is black, {high} white. Pillow would cut at 255, so see below",
    }
    if columns:
        facts["Channels"] = (
            f"{', '.join(columns)}, in this order, a file each; `PIL.Image.merge` makes a picture of them"
        )
    return facts, {"low": low, "high": high, "mode": "RGBA" if image.channels == 4 else "RGB"}


def window_of(image) -> str:
    """What of a picture the evaluation view shows."""
    resized, wanted = (f"{height}×{width} pixels" for height, width in (resized_extent(image), image.extent))
    if image.aspect == "crop":
        return f"the middle {wanted} of the picture, resized so that its shorter side has {resized_extent(image)[0]}"
    if image.aspect == "pad":
        part = "" if resized == wanted else f", of which the middle {wanted}"
        return f"the whole picture in its aspect, in the middle of black of {resized}{part}"
    if resized != wanted:
        return f"the middle {wanted} of the picture, squeezed to {resized}"
    return f"the whole picture, squeezed to {wanted}"


def audio_facts(audio, _) -> tuple[dict[str, str], dict[str, str]]:
    facts = {
        "Rate": f"{audio.rate:,} Hz, mono, {audio.mel_bins} mel bins from 20 to {audio.rate // 2:,} Hz. The processor "
        "refuses other rates: sounds were resampled (`torchaudio`), as the lines below do",
        "Window": f"{audio.window} samples, {audio.seconds:g} s. The processor takes the head of a longer "
        "sound and pads a shorter one; to hear all of it, see below",
        "Pipelines": "`audio-classification` runs, with a head that is new; for features see below",
    }
    return facts, {"window": str(audio.window)}


def text_facts(text, _) -> tuple[dict[str, str], dict[str, str]]:
    first, last = text.tokenizer.cls_token, text.tokenizer.sep_token
    facts = {"Window": f"{text.max_length} tokens, with `{first}` and `{last}`; to read all of a text, see below"}
    return facts, {"window": str(text.max_length - 2)}


FACTS = {"image": image_facts, "audio": audio_facts, "text": text_facts}


def pooled(backbone) -> str:
    """What the native head reads of the hidden states, as code."""
    leads = backbone.embedding.leads
    return {
        "lead": "hidden[:, 0]",
        "leads": f"hidden[:, :{leads}].mean(1)",
        "pieces": f"hidden[:, {leads}:].mean(1)",
        "lead+pieces": f"torch.cat([hidden[:, 0], hidden[:, {leads}:].mean(1)], dim=1)",
        "tokens": "hidden.mean(1)",
    }[backbone.pooling]


# How a user gets the features that `probe.py` judges, with nothing of ours. A test runs them.
FEATURES = {
    "image": """import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import AutoModel, {processor}

folder = "{folder}"  # of these files, or their name on the hub
processor, model = {processor}.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype="float32")


def features(picture):
    picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":  # more than 8 bits a channel
        values = (np.asarray(picture, dtype=float) - {low}) * (255 / ({high} - {low}))
        picture = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    if "{mode}" == "RGBA":
        picture = picture.convert("RGBA")
    with torch.no_grad():
        hidden = model(**processor(picture, return_tensors="pt")).last_hidden_state
    return {pooled}[0]


print(features(Image.effect_noise((320, 240), 64)).shape)  # of yours: features(Image.open("picture.png"))
""",
    "audio": """import torch
import torchaudio
from transformers import AutoModel, {processor}

folder = "{folder}"  # of these files, or their name on the hub
processor, model = {processor}.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype="float32")
window = {window}  # samples


def features(wave, rate):
    # The mean over all windows of a wave [samples] or [samples, channels]; the last one is moved back.
    wave = torch.as_tensor(wave, dtype=torch.float32)
    wave = wave.mean(1) if wave.ndim > 1 else wave
    wave = torchaudio.functional.resample(wave, rate, processor.sampling_rate).numpy()
    starts = [*range(0, len(wave) - window, window), max(0, len(wave) - window)]
    windows = [wave[start : start + window] for start in starts]
    with torch.no_grad():
        inputs = processor(windows, sampling_rate=processor.sampling_rate, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state
    return {pooled}.mean(0)


print(features(torch.randn(100_000, 2) / 10, 44_100).shape)  # of yours: features(*soundfile.read("sound.wav"))
""",
    "text": """import torch
from transformers import AutoModel, {processor}

folder = "{folder}"  # of these files, or their name on the hub
tokenizer, model = {processor}.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype="float32")
window = {window}  # tokens


def features(text):
    # The mean over all windows of a text; the last one is shorter.
    text = text.replace("\\ufeff", "").replace("\\r\\n", "\\n").replace("\\r", "\\n").strip()
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    vectors = []
    for start in range(0, len(ids), window):
        part = [tokenizer.cls_token_id, *ids[start : start + window], tokenizer.sep_token_id]
        with torch.no_grad():
            hidden = model(torch.tensor([part])).last_hidden_state
        vectors.append({pooled}[0])
    return torch.stack(vectors).mean(0)


print(features("Any text, of any length.").shape)
""",
}


def is_hub_id(name: str, near: Path) -> bool:
    """True for what can only be a repository's name: it looks like one, and no file here bears it, nor near a run."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not is_local(name, near)


def is_local(name: str, near: Path) -> bool:
    """True for a path: absolute, or of a file here or near a run, wherever the export is called from."""
    if name and any(os.path.exists(parent / name) for parent in near.resolve().parents):
        return True
    return name.startswith(("/", "~", ".")) or os.path.exists(name)  # `Path` refuses long words


def public(value, near: Path):
    """Settings as a card may show them: of a path on this machine, the last part."""
    if isinstance(value, dict):
        return {key: public(item, near) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and is_local(value, near) else value
