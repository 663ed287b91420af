"""The quick start runs from one end to the other, in every modality, with a few steps each."""

import importlib.util

import pytest
import support


@pytest.fixture
def quickstart(monkeypatch):
    spec = importlib.util.spec_from_file_location("quickstart", support.ROOT / "examples" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DRAWS", 2)
    monkeypatch.setattr(module, "STEPS", dict.fromkeys(module.STEPS, 2))
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


def test_every_modality_has_its_config(quickstart):
    for name in quickstart.CONFIGS.values():
        assert (support.ROOT / "configs" / f"{name}.yaml").is_file()
    assert quickstart.CONFIGS.keys() == quickstart.TOOLS.keys() == quickstart.STEPS.keys()
