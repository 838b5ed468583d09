"""Checkpoints: what is saved is what is loaded, and what cannot be loaded says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from baselines.model import Baseline
from baselines.models.unet import UNet, UNetConfig
from baselines.pretrained import CONFIG, WEIGHTS, load_pretrained
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
TINY = UNetConfig(width=4, depth=1, norm_groups=2, trained_organelles=("mito",))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = UNet(TINY)
    model.training_info = {"dataset": "em-organelle-wild", "steps": 3}
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def _edit(folder: Path, change: dict[str, object]) -> None:
    stored = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**stored, **change}))


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    torch.manual_seed(0)
    original, loaded = UNet(TINY), UNet.from_pretrained(saved)
    assert loaded.config == TINY
    assert loaded.training_info == {"dataset": "em-organelle-wild", "steps": 3}
    assert not loaded.training
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    assert type(load_pretrained(saved)) is UNet
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_the_card_has_the_hubs_metadata(saved: Path) -> None:
    import yaml

    _, metadata, text = (saved / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(metadata)["pipeline_tag"] == "image-segmentation"
    assert "unet" in yaml.safe_load(metadata)["tags"]
    assert "| dataset | em-organelle-wild |" in text


def test_saving_again_replaces_the_weights(saved: Path) -> None:
    torch.manual_seed(1)
    UNet(TINY).save_pretrained(saved)
    torch.manual_seed(1)
    expected = UNet(TINY).state_dict()["head.weight"]
    torch.testing.assert_close(UNet.from_pretrained(saved).state_dict()["head.weight"], expected)


class _Other(Baseline):
    name = "other"
    config_class = UNetConfig


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match=r"another model\n  found: unet\n  expected: other"):
        _Other.from_pretrained(saved)
    _edit(saved, {"model": "unnet"})
    with pytest.raises(InputError, match="did you mean 'unet'"):
        load_pretrained(saved)


def test_another_number_of_classes_is_refused(saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text())["config"]
    _edit(saved, {"config": {**config, "organelles": ["mito", "nucleus"]}})
    with pytest.raises(InputError, match="other classes"):
        load_pretrained(saved)


def test_weights_that_do_not_fit_and_unknown_settings_are_refused(saved: Path) -> None:
    config = json.loads((saved / CONFIG).read_text())["config"]
    _edit(saved, {"config": {**config, "width": 8}})
    with pytest.raises(InputError, match="do not fit"):
        load_pretrained(saved)
    _edit(saved, {"config": {**config, "attention": True}})
    with pytest.raises(InputError, match="does not know\n  found: \\['attention'\\]"):
        load_pretrained(saved)


def test_damaged_files_are_named(saved: Path) -> None:
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_pretrained(saved)
    (saved / CONFIG).write_text("{")
    with pytest.raises(InputError, match=r"config\.json does not describe a baseline"):
        load_pretrained(saved)


def test_pickles_are_never_read(tmp_path: Path, saved: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="can run code"):
        load_pretrained(tmp_path / "model.pth")
    (saved / WEIGHTS).unlink()
    torch.save({"weights": 1}, saved / "pytorch_model.bin")
    with pytest.raises(InputError, match="can run code"):
        load_pretrained(saved)


def test_what_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint"):
        load_pretrained(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="--resume"):
        load_pretrained(tmp_path / "empty")
