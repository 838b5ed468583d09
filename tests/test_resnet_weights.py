"""Published ResNet weights: every layout is read to the same network, exactly, and nothing in a file is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resnet_twin import TwinResNet, random_twin
from safetensors.torch import save_file
from torch import Tensor

from baselines.networks.resnet_weights import load_exactly, read_resnet_weights, transformers_name
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
WIDTH, DEPTHS = 8, (2, 1, 1, 1)


def _backbone(channels: int, width: int, depths: tuple[int, ...]) -> Any:
    from transformers import ResNetBackbone, ResNetConfig

    return ResNetBackbone(
        ResNetConfig(
            num_channels=channels,
            embedding_size=width,
            hidden_sizes=[4 * width * 2**stage for stage in range(4)],
            depths=list(depths),
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    ).eval()


def _small() -> TwinResNet:
    return random_twin(1, WIDTH, DEPTHS)


def _trunk(twin: TwinResNet) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in twin.state_dict().items() if not name.startswith("fc.")}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def test_resnet50_gives_the_same_features_at_all_stages() -> None:
    twin, backbone = random_twin(1), _backbone(1, 64, (3, 4, 6, 3))
    tensors = {transformers_name(name): tensor for name, tensor in _trunk(twin).items()}
    # 53 convolutions, and as many normalisations of four tensors (the counter left aside)
    assert load_exactly(backbone, tensors, "twin") == 53 + 4 * 53
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        for found, expected in zip(backbone(image).feature_maps, twin(image), strict=True):
            assert expected.std() > 0
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _moco(twin: TwinResNet, path: Path) -> None:
    """CEM500K's file: epoch, arch, state_dict, optimizer, norms."""
    other = random_twin(1, WIDTH, DEPTHS, seed=1).state_dict()
    weights = _prefixed("module.encoder_q.", twin.state_dict()) | _prefixed("module.encoder_k.", other)
    weights |= {"module.queue": torch.zeros(4, 8), "module.encoder_q.fc.0.weight": torch.zeros(2, 2)}
    optimizer = torch.optim.SGD(twin.parameters(), 0.1).state_dict()
    torch.save(
        {"epoch": 200, "arch": "resnet50", "state_dict": weights, "optimizer": optimizer, "norms": [0.57287, 0.1274]},
        path,
    )


def _swav(twin: TwinResNet, path: Path) -> None:
    heads = {"module.projection_head.0.weight": torch.zeros(2, 2), "module.prototypes.weight": torch.zeros(3, 2)}
    torch.save(_prefixed("module.", _trunk(twin)) | heads, path)


def _own_names(twin: TwinResNet, path: Path) -> None:
    """The file of ``microsoft/resnet-50``."""
    renamed = {f"resnet.{transformers_name(name)}": tensor for name, tensor in _trunk(twin).items()}
    save_file(renamed | {"classifier.1.weight": torch.zeros(2, 2)}, path)


LAYOUTS: dict[str, tuple[str, Callable[[TwinResNet, Path], None]]] = {
    "torchvision": ("resnet50.pth", lambda twin, path: torch.save(twin.state_dict(), path)),
    "old_torch": (
        "resnet50.pth",
        lambda twin, path: torch.save(twin.state_dict(), path, _use_new_zipfile_serialization=False),
    ),
    "moco": ("cem500k_mocov2_resnet50_200ep.pth.tar", _moco),
    "swav": ("swav_800ep_pretrain.pth.tar", _swav),
    "cem1.5m": ("cem1.5m.pth.tar", lambda twin, path: torch.save({"state_dict": _trunk(twin), "norms": [0.5]}, path)),
    "safetensors": ("model.safetensors", lambda twin, path: save_file(twin.state_dict(), path)),
    "transformers": ("model.safetensors", _own_names),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_network(layout: str, tmp_path: Path) -> None:
    twin, (name, write) = _small(), LAYOUTS[layout]
    write(twin, tmp_path / name)
    weights, backbone = read_resnet_weights(tmp_path / name), _backbone(1, WIDTH, DEPTHS)
    load_exactly(backbone, weights.tensors, name)
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for found, expected in zip(backbone(image).feature_maps, twin(image), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert weights.about.startswith(f"{name} (")
    assert ("MoCo" in weights.about) == (layout == "moco")
    assert "sha256" in weights.about


def test_the_counter_of_old_files_may_be_absent() -> None:
    backbone = _backbone(1, WIDTH, DEPTHS)
    counted = {transformers_name(name): tensor for name, tensor in _trunk(_small()).items()}
    old = {name: tensor for name, tensor in counted.items() if "num_batches" not in name}
    assert len(old) < len(counted)
    assert load_exactly(backbone, old, "old") == load_exactly(backbone, counted, "new") == len(old)


def test_colours_are_summed_to_what_a_repeated_gray_image_gives() -> None:
    twin, backbone = random_twin(3, WIDTH, DEPTHS), _backbone(1, WIDTH, DEPTHS)
    load_exactly(backbone, {transformers_name(name): t for name, t in _trunk(twin).items()}, "colour")
    gray = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        for found, expected in zip(backbone(gray).feature_maps, twin(gray.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "depths", "found", "expected"),
    [
        (WIDTH, (3, 1, 1, 1), r"stages\.0\.layers\.2\.\S+ \(8, 32, 1, 1\)", r"layers\.2\.\S+ absent"),
        (WIDTH, (1, 1, 1, 1), r"stages\.0\.layers\.1\.\S+ absent", r"layers\.1\.\S+ \(8, 32, 1, 1\)"),
        (4, DEPTHS, r"convolution\.weight \(4, 1, 7, 7\)", r"convolution\.weight \(8, 1, 7, 7\)"),
    ],
    ids=["deeper", "shallower", "narrower"],
)
def test_another_resnet_does_not_fit(width: int, depths: tuple[int, ...], found: str, expected: str) -> None:
    backbone = _backbone(1, WIDTH, DEPTHS)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    tensors = {transformers_name(name): t for name, t in _trunk(random_twin(1, width, depths)).items()}
    with pytest.raises(
        InputError, match=rf"file\.pth does not fit[^\n]*\n  found: .*{found}.*\n  expected: .*{expected}"
    ):
        load_exactly(backbone, tensors, "file.pth")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_layers_that_a_plain_resnet_has_not_do_not_fit() -> None:
    """Such as squeeze-and-excitation: to leave them out silently would be another network."""
    tensors = {
        transformers_name(n): t for n, t in (_trunk(_small()) | {"layer1.0.se.fc1.weight": torch.zeros(1)}).items()
    }
    with pytest.raises(InputError, match=r"found: layer1\.0\.se\.fc1\.weight \(1,\)"):
        load_exactly(_backbone(1, WIDTH, DEPTHS), tensors, "file.pth")


class _Dangerous:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_a_file_that_could_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth.tar", tmp_path / "it-ran"
    torch.save({"state_dict": _small().state_dict(), "hook": _Dangerous(trace)}, path)
    with pytest.raises(InputError, match=r"could run code\n  found: GLOBAL \w+\.mkdir"):
        read_resnet_weights(path)
    assert not trace.exists()


def test_torch_without_a_safe_reader_refuses_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(_small().state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(InputError, match=r"CVE-2025-32434.*\n  expected: torch 2\.6 or newer, or a \.safetensors"):
        read_resnet_weights(tmp_path / "weights.pth")
    save_file(_small().state_dict(), tmp_path / "weights.safetensors")
    assert read_resnet_weights(tmp_path / "weights.safetensors").tensors


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(_small().state_dict(), whole)
    contents = {
        "cut.pth": (whole.read_bytes()[:5000], "cut.pth cannot be read"),
        "text.pth": (b"<html>not found</html>", "text.pth cannot be read"),
        "empty.pth": (b"", "empty.pth cannot be read"),
        "cut.safetensors": (b"1234567890", "cut.safetensors cannot be read"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_resnet_weights(tmp_path / name)
    with pytest.raises(InputError, match=r"found: no such file\n  expected: a file \.safetensors, \.pth or \.pth\.tar"):
        read_resnet_weights(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="found: a folder"):
        read_resnet_weights(tmp_path)


def test_what_is_no_resnet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"vit.cls_token": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"holds no ResNet\n  found: 1 tensors: vit\.cls_token"):
        read_resnet_weights(path)
    torch.save({"epoch": 3, "lr": 0.1}, path)
    with pytest.raises(InputError, match=r"holds no weights\n  found: keys epoch, lr"):
        read_resnet_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match=r"holds no weights\n  found: <class 'list'>"):
        read_resnet_weights(path)
