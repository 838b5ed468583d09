"""R50+ViT files of others: written here as their formats say, loaded, and compared with the formula in numpy.

The twin works on NHWC arrays and one matrix per attention head; only the writers know how a format lays them out.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage, special

from baselines.models.transunet import Encoder, TransUNet, TransUNetConfig
from baselines.networks.transunet_names import GOOGLE, STATE_DICTS, TIMM, TRANSUNET, renamed
from baselines.networks.transunet_weights import load_into, read_encoder_weights
from baselines.networks.vit import resized_positions
from em_bench_eval.errors import InputError

torch.set_num_threads(1)
WIDTH, UNITS, HIDDEN, HEADS, MLP, LAYERS, GRID = 8, (1, 2, 1), 16, 2, 24, 2, 2
TINY = TransUNetConfig(
    image_size=16 * GRID,
    trunk_width=WIDTH,
    trunk_units=UNITS,
    hidden=HIDDEN,
    layers=LAYERS,
    heads=HEADS,
    mlp=MLP,
    decoder_inputs=8,
    decoder_channels=(8, 8, 8, 8),
    transfer="all_encoder",
    freeze="none",
)
Arrays = dict[str, np.ndarray[Any, Any]]


def _weights(seed: int = 0) -> dict[str, Any]:
    """What a network of this kind consists of, in no format: kernels (h, w, in, out), attention head by head."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 0.3) -> np.ndarray[Any, Any]:
        return generator.normal(0, scale, shape).astype(np.float32)

    def norm(channels: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        return 1 + normal(channels), normal(channels)

    stages, inputs = [], WIDTH
    for stage, count in enumerate(UNITS):
        units = []
        for unit in range(count):
            middle, outputs = WIDTH * 2**stage, 4 * WIDTH * 2**stage
            parts: dict[str, Any] = {
                "conv1": normal(1, 1, inputs, middle),
                "conv2": normal(3, 3, middle, middle),
                "conv3": normal(1, 1, middle, outputs),
                "norm1": norm(middle),
                "norm2": norm(middle),
                "norm3": norm(outputs),
            }
            if unit == 0:
                parts |= {"project": normal(1, 1, inputs, outputs), "project_norm": norm(outputs)}
            units.append(parts)
            inputs = outputs
        stages.append(units)
    head = HIDDEN // HEADS
    blocks = [
        {
            "norm1": norm(HIDDEN),
            "norm2": norm(HIDDEN),
            **{part: (normal(HIDDEN, HEADS, head), normal(HEADS, head)) for part in ("query", "key", "value")},
            "out": (normal(HEADS, head, HIDDEN), normal(HIDDEN)),
            "fc1": (normal(HIDDEN, MLP), normal(MLP)),
            "fc2": (normal(MLP, HIDDEN), normal(HIDDEN)),
        }
        for _ in range(LAYERS)
    ]
    return {
        "root": normal(7, 7, 3, WIDTH),
        "root_norm": norm(WIDTH),
        "stages": stages,
        "patch": (normal(1, 1, inputs, HIDDEN), normal(HIDDEN)),
        "positions": normal(1, 1 + GRID * GRID, HIDDEN),
        "blocks": blocks,
        "norm": norm(HIDDEN),
    }


# --- the formula ---------------------------------------------------------------------------------------------------


def _standardised(kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    kernel = kernel.astype(np.float64)
    return (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)


def _convolved(x: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any], stride: int, same: bool) -> np.ndarray[Any, Any]:
    """(h, w, in) to (h / stride, w / stride, out), kernel by kernel position."""
    k, size = kernel.shape[0], x.shape[0]
    if same:
        total = max((-(-size // stride) - 1) * stride + k - size, 0)
        before, after = total // 2, total - total // 2
    else:
        before = after = k // 2
    x = np.pad(x, ((before, after), (before, after), (0, 0)))
    count = (x.shape[0] - k) // stride + 1
    y = np.zeros((count, count, kernel.shape[3]))
    for i, j in itertools.product(range(count), repeat=2):
        window = x[i * stride : i * stride + k, j * stride : j * stride + k]
        y[i, j] = np.tensordot(window, kernel, axes=3)
    return y


def _group_normed(x: np.ndarray[Any, Any], norm: Any, groups: int, eps: float) -> np.ndarray[Any, Any]:
    y = np.empty_like(x)
    for channels in np.split(np.arange(x.shape[-1]), groups):
        part = x[..., channels]
        y[..., channels] = (part - part.mean()) / np.sqrt(part.var() + eps)
    return y * norm[0] + norm[1]


def _layer_normed(x: np.ndarray[Any, Any], norm: Any) -> np.ndarray[Any, Any]:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * norm[0] + norm[1]


def _twin(w: dict[str, Any], image: np.ndarray[Any, Any], google: bool) -> list[np.ndarray[Any, Any]]:
    """Features (tokens, hidden), then skips at 1/8, 1/4, 1/2, of a gray (h, w) image."""
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    gn = lambda x, norm: _group_normed(x, norm, min(32, x.shape[-1]), 1e-6)  # noqa: E731
    x = np.repeat(image[..., None].astype(np.float64), 3, axis=-1)
    x = relu(gn(_convolved(x, _standardised(w["root"]), 2, google), w["root_norm"]))
    skips = [x]
    size = x.shape[0] // 2
    padded = np.pad(x, ((0, 2), (0, 2), (0, 0)), constant_values=-np.inf)
    pooled = size if google else size - 1  # without padding the last window does not fit
    x = np.stack(
        [[padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(pooled)] for i in range(pooled)]
    )
    for stage, units in enumerate(w["stages"]):
        for number, unit in enumerate(units):
            stride = 2 if stage > 0 and number == 0 else 1
            short = x
            if "project" in unit:
                short = _convolved(x, _standardised(unit["project"]), stride, google)
                groups = 32 if google else short.shape[-1]
                short = _group_normed(short, unit["project_norm"], groups, 1e-5)
            y = relu(gn(_convolved(x, _standardised(unit["conv1"]), 1, google), unit["norm1"]))
            y = relu(gn(_convolved(y, _standardised(unit["conv2"]), stride, google), unit["norm2"]))
            x = relu(short + gn(_convolved(y, _standardised(unit["conv3"]), 1, google), unit["norm3"]))
        if stage < 2:
            missing = size // 2**stage - x.shape[0]
            skips.insert(0, np.pad(x, ((0, missing), (0, missing), (0, 0))))
    tokens = (x @ w["patch"][0][0, 0] + w["patch"][1]).reshape(-1, HIDDEN) + w["positions"][0, 1:]
    for block in w["blocks"]:
        y = _layer_normed(tokens, block["norm1"])
        mixed = block["out"][1].astype(np.float64)
        for head in range(HEADS):
            q, k, v = (y @ block[part][0][:, head] + block[part][1][head] for part in ("query", "key", "value"))
            attention = special.softmax(q @ k.T / np.sqrt(HIDDEN // HEADS), axis=-1)
            mixed = mixed + attention @ v @ block["out"][0][head]
        tokens = tokens + mixed
        y = _layer_normed(tokens, block["norm2"]) @ block["fc1"][0] + block["fc1"][1]
        y = 0.5 * y * (1 + special.erf(y / np.sqrt(2)))
        tokens = tokens + y @ block["fc2"][0] + block["fc2"][1]
    return [_layer_normed(tokens, w["norm"]), *skips]


# --- the formats ---------------------------------------------------------------------------------------------------


def _google(w: dict[str, Any]) -> Arrays:
    file: Arrays = {"conv_root/kernel": w["root"], "cls": np.zeros((1, 1, HIDDEN), np.float32)}
    pairs = {"gn_root": w["root_norm"], "Transformer/encoder_norm": w["norm"]}
    for s, units in enumerate(w["stages"], start=1):
        for u, unit in enumerate(units, start=1):
            place = f"block{s}/unit{u}/"
            for n in (1, 2, 3):
                file[f"{place}conv{n}/kernel"] = unit[f"conv{n}"]
                pairs[f"{place}gn{n}"] = unit[f"norm{n}"]
            if "project" in unit:
                file[f"{place}conv_proj/kernel"] = unit["project"]
                pairs[f"{place}gn_proj"] = unit["project_norm"]
    file["embedding/kernel"], file["embedding/bias"] = w["patch"]
    file["Transformer/posembed_input/pos_embedding"] = w["positions"]
    for b, block in enumerate(w["blocks"]):
        place = f"Transformer/encoderblock_{b}/"
        pairs |= {f"{place}LayerNorm_0": block["norm1"], f"{place}LayerNorm_2": block["norm2"]}
        for part in ("query", "key", "value", "out"):
            name = f"{place}MultiHeadDotProductAttention_1/{part}"
            file[f"{name}/kernel"], file[f"{name}/bias"] = block[part]
        for n in (0, 1):
            name = f"{place}MlpBlock_3/Dense_{n}"
            file[f"{name}/kernel"], file[f"{name}/bias"] = block[f"fc{n + 1}"]
    file |= {f"{name}/scale": pair[0] for name, pair in pairs.items()}
    file |= {f"{name}/bias": pair[1] for name, pair in pairs.items()}
    # the heads of the published file; not ours
    return file | {"head/kernel": np.zeros((HIDDEN, 3), np.float32), "head/bias": np.zeros(3, np.float32)}


def _torch(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))


def _kernel(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return _torch(np.moveaxis(array, (3, 2), (0, 1)))


def _heads_first(block: dict[str, Any], part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A torch Linear whose outputs are the heads' values one after the other."""
    weight = np.concatenate([block[part][0][:, head].T for head in range(HEADS)])
    return _torch(weight), _torch(block[part][1].reshape(-1))


def _timm(w: dict[str, Any]) -> dict[str, torch.Tensor]:
    trunk = "patch_embed.backbone."
    file = {trunk + "stem.conv.weight": _kernel(w["root"]), "cls_token": torch.zeros(1, 1, HIDDEN)}
    pairs = {trunk + "stem.norm": w["root_norm"], "norm": w["norm"]}
    for s, units in enumerate(w["stages"]):
        for u, unit in enumerate(units):
            place = f"{trunk}stages.{s}.blocks.{u}."
            for n in (1, 2, 3):
                file[f"{place}conv{n}.weight"] = _kernel(unit[f"conv{n}"])
                pairs[f"{place}norm{n}"] = unit[f"norm{n}"]
            if "project" in unit:
                file[f"{place}downsample.conv.weight"] = _kernel(unit["project"])
                pairs[f"{place}downsample.norm"] = unit["project_norm"]
    file["patch_embed.proj.weight"], file["patch_embed.proj.bias"] = _kernel(w["patch"][0]), _torch(w["patch"][1])
    file["pos_embed"] = _torch(w["positions"])
    for b, block in enumerate(w["blocks"]):
        parts = [_heads_first(block, part) for part in ("query", "key", "value")]
        file[f"blocks.{b}.attn.qkv.weight"] = torch.cat([weight for weight, _ in parts])
        file[f"blocks.{b}.attn.qkv.bias"] = torch.cat([bias for _, bias in parts])
        file[f"blocks.{b}.attn.proj.weight"] = _torch(block["out"][0].reshape(HIDDEN, HIDDEN).T)
        file[f"blocks.{b}.attn.proj.bias"] = _torch(block["out"][1])
        for n in (1, 2):
            pairs[f"blocks.{b}.norm{n}"] = block[f"norm{n}"]
            file[f"blocks.{b}.mlp.fc{n}.weight"] = _torch(block[f"fc{n}"][0].T)
            file[f"blocks.{b}.mlp.fc{n}.bias"] = _torch(block[f"fc{n}"][1])
    file |= {f"{name}.weight": _torch(pair[0]) for name, pair in pairs.items()}
    return file | {f"{name}.bias": _torch(pair[1]) for name, pair in pairs.items()}


def _transunet(w: dict[str, Any]) -> dict[str, torch.Tensor]:
    trunk = "transformer.embeddings.hybrid_model."
    file = {trunk + "root.conv.weight": _kernel(w["root"])}
    pairs = {trunk + "root.gn": w["root_norm"], "transformer.encoder.encoder_norm": w["norm"]}
    for s, units in enumerate(w["stages"], start=1):
        for u, unit in enumerate(units, start=1):
            place = f"{trunk}body.block{s}.unit{u}."
            for n in (1, 2, 3):
                file[f"{place}conv{n}.weight"] = _kernel(unit[f"conv{n}"])
                pairs[f"{place}gn{n}"] = unit[f"norm{n}"]
            if "project" in unit:
                file[f"{place}downsample.weight"] = _kernel(unit["project"])
                pairs[f"{place}gn_proj"] = unit["project_norm"]
    place = "transformer.embeddings."
    file[place + "patch_embeddings.weight"], file[place + "patch_embeddings.bias"] = (
        _kernel(w["patch"][0]),
        _torch(w["patch"][1]),
    )
    file[place + "position_embeddings"] = _torch(w["positions"][:, 1:])
    for b, block in enumerate(w["blocks"]):
        place = f"transformer.encoder.layer.{b}."
        pairs |= {f"{place}attention_norm": block["norm1"], f"{place}ffn_norm": block["norm2"]}
        for part in ("query", "key", "value"):
            file[f"{place}attn.{part}.weight"], file[f"{place}attn.{part}.bias"] = _heads_first(block, part)
        file[f"{place}attn.out.weight"] = _torch(block["out"][0].reshape(HIDDEN, HIDDEN).T)
        file[f"{place}attn.out.bias"] = _torch(block["out"][1])
        for n in (1, 2):
            file[f"{place}ffn.fc{n}.weight"] = _torch(block[f"fc{n}"][0].T)
            file[f"{place}ffn.fc{n}.bias"] = _torch(block[f"fc{n}"][1])
    file |= {f"{name}.weight": _torch(pair[0]) for name, pair in pairs.items()}
    file |= {f"{name}.bias": _torch(pair[1]) for name, pair in pairs.items()}
    decoder = {"decoder.conv_more.0.weight": torch.zeros(8, HIDDEN, 3, 3), "FinalDecoder.conv1.bias": torch.zeros(1)}
    return file | decoder | {"segmentation_head.0.bias": torch.zeros(2)}


def _write(form: str, w: dict[str, Any], folder: Path) -> Path:
    if form == "google":
        np.savez(folder / "R50+ViT-B_16.npz", **_google(w))
        return folder / "R50+ViT-B_16.npz"
    if form == "timm":
        save_file(_timm(w), folder / "timm.safetensors")
        return folder / "timm.safetensors"
    if form == "timm pickle":
        torch.save(_timm(w), folder / "timm.pth")
        return folder / "timm.pth"
    content = {f"module.{name}": tensor for name, tensor in _transunet(w).items()}
    torch.save({"state_dict": content}, folder / "pretrain_200.pth")
    return folder / "pretrain_200.pth"


# --- the tests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["google", "timm", "timm pickle", "retina"])
@pytest.mark.parametrize("google_numerics", [True, False])
def test_a_loaded_encoder_computes_what_the_format_means(form: str, google_numerics: bool, tmp_path: Path) -> None:
    w, image = _weights(), np.random.default_rng(1).normal(size=(16 * GRID, 16 * GRID))
    numerics = {"padding": "tf_same", "projection_groups": 32} if google_numerics else {}
    config = dataclasses.replace(TINY, **numerics)  # type: ignore[arg-type]
    encoder = Encoder(config).eval()
    said = load_into(encoder, read_encoder_weights(_write(form, w, tmp_path)), config)
    assert "trunk, embeddings and transformer blocks" in said
    with torch.no_grad():
        features, skips = encoder(torch.from_numpy(image.astype(np.float32))[None, None])
    found = [features[0].flatten(1).T, *(skip[0].permute(1, 2, 0) for skip in skips)]
    for ours, expected in zip(found, _twin(w, image, google_numerics), strict=True):
        np.testing.assert_allclose(ours.numpy(), expected, atol=2e-4, rtol=1e-3)


def test_the_two_paddings_differ(tmp_path: Path) -> None:
    w, image = _weights(), torch.randn(1, 1, 32, 32)
    outputs = []
    for config in (TINY, dataclasses.replace(TINY, padding="tf_same")):
        encoder = Encoder(config).eval()
        load_into(encoder, read_encoder_weights(_write("google", w, tmp_path)), config)
        outputs.append(encoder(image)[0])
    assert not torch.allclose(*outputs, atol=0.01)


def _published_names(form: str) -> set[str]:
    """Names of the published sizes: units 3, 4, 9 and 12 blocks."""
    global UNITS, LAYERS
    before = UNITS, LAYERS
    UNITS, LAYERS = (3, 4, 9), 12
    try:
        return set({"google": _google, "timm": _timm, "retina": _transunet}[form](_weights()))
    finally:
        UNITS, LAYERS = before


@pytest.mark.parametrize(("form", "rules"), [("google", GOOGLE), ("timm", TIMM), ("retina", TRANSUNET)])
def test_every_tensor_of_the_published_encoder_has_a_name_in_every_format(form: str, rules: Any) -> None:
    with torch.device("meta"):
        own = set(Encoder(TransUNetConfig()).state_dict())
    found = set(renamed(dict.fromkeys(_published_names(form)), rules))
    fused = {name.replace(part, "qkv") for name in found for part in ("query", "key", "value") if f".{part}." in name}
    rest = {name for name in found if not any(f".{part}." in name for part in ("query", "key", "value"))}
    assert fused | rest == own
    for other, others in STATE_DICTS.items():  # no format is taken for another
        if others is not rules:
            assert not renamed(dict.fromkeys(_published_names(form)), others), other


def test_the_architecture_is_read_from_the_shapes(tmp_path: Path) -> None:
    path = _write("retina", _weights(), tmp_path)
    fields = read_encoder_weights(path).architecture()
    assert fields == {"hidden": 16, "layers": 2, "mlp": 24, "trunk_width": 8, "trunk_units": (1, 2, 1)}
    assert read_encoder_weights(_write("google", _weights(), tmp_path)).architecture()["heads"] == HEADS
    wide = TransUNetConfig(image_size=32, heads=2, decoder_inputs=8, decoder_channels=(8, 8, 8, 8), transfer="vit")
    model = TransUNet(TransUNet.config_for_weights(wide, path))
    assert "pretrain_200.pth" in model.load_encoder_weights(path)


@pytest.mark.parametrize(("transfer", "freeze"), [("vit", "vit"), ("vit", "none"), ("all_encoder", "vit")])
def test_transfer_and_freeze_do_what_they_say(transfer: Any, freeze: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TransUNet(dataclasses.replace(TINY, transfer=transfer, freeze=freeze))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = _write("retina", _weights(), tmp_path)
    said = model.load_encoder_weights(path)
    stored = read_encoder_weights(path).tensors
    for name, tensor in model.state_dict().items():
        taken = name.startswith("encoder.vit." if transfer == "vit" else "encoder.")
        expected = stored[name.removeprefix("encoder.")] if taken else before[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if freeze == "vit" and n.startswith("encoder.vit.")}
    assert ("frozen" in said) == (freeze == "vit")
    assert str(tmp_path) not in said
    trained = {id(parameter) for group in model.parameter_groups() for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("before", "after"), [(4, (4, 4)), (3, (7, 5)), (14, (32, 32)), (5, (2, 3))])
def test_positions_are_resized_as_the_published_code_does(before: int, after: tuple[int, int]) -> None:
    grid = np.random.default_rng(0).normal(size=(before, before, 6)).astype(np.float32)
    expected = ndimage.zoom(grid, (after[0] / before, after[1] / before, 1), order=1)
    found = resized_positions(torch.from_numpy(grid).reshape(1, before * before, 6), after)
    np.testing.assert_allclose(found[0].numpy().reshape(*after, 6), expected, atol=1e-5)


def test_loading_into_another_grid_resizes_the_positions(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, image_size=80)
    encoder = Encoder(config)
    weights = read_encoder_weights(_write("timm", _weights(), tmp_path))
    assert "resized from 2 x 2 to 5 x 5" in load_into(encoder, weights, config)
    found = encoder.embedding.positions.detach()
    torch.testing.assert_close(found, resized_positions(weights.tensors["embedding.positions"], (5, 5)))


def test_a_folder_of_ours_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = TransUNet(TINY), TransUNet(TINY)
    source.save_pretrained(tmp_path / "run")
    assert "em-bench weights run" in target.load_encoder_weights(tmp_path / "run")
    for name, tensor in source.encoder.state_dict().items():
        torch.testing.assert_close(target.encoder.state_dict()[name], tensor, rtol=0, atol=0)


class _Trap:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_what_does_not_fit_or_may_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = TransUNet(dataclasses.replace(TINY, transfer="vit"))

    wide = _write("retina", _weights(), tmp_path)
    with pytest.raises(InputError, match=r"(?s)does not fit.*vit\.blocks\.0.*hidden 16, layers 2"):
        TransUNet(dataclasses.replace(TINY, hidden=32)).load_encoder_weights(wide)
    with pytest.raises(InputError, match="2 attention heads"):
        TransUNet(dataclasses.replace(TINY, heads=4)).load_encoder_weights(_write("google", _weights(), tmp_path))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"state_dict": _Trap()}))
    torch.save({"state_dict": _Trap()}, tmp_path / "trap2.pth")
    for name, message in (("trap.pth", "cannot be read"), ("trap2.pth", "is refused.*could run code")):
        with pytest.raises(InputError, match=message):
            model.load_encoder_weights(tmp_path / name)
    np.savez(tmp_path / "trap.npz", allow_pickle=True, **{"x/query/kernel": np.array([_Trap()], dtype=object)})
    with pytest.raises(InputError, match="cannot be read"):
        model.load_encoder_weights(tmp_path / "trap.npz")
    assert "code ran" not in capsys.readouterr().out

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.safetensors").write_bytes(b"no header")
    for name, message in (
        ("resnet.pth", "is no TransUNet encoder"),
        ("other.npz", "is no TransUNet encoder"),
        ("empty", "holds no encoder weights"),
        ("absent.pth", "there are no encoder weights"),
        ("damaged.safetensors", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            model.load_encoder_weights(tmp_path / name)
