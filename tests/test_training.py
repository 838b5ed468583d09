"""Training runs: resumed equals uninterrupted, diverged keeps its checkpoint, and no folder is touched by mistake."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from baselines import cli_train as cli
from baselines import training
from baselines.early_stopping import Best
from baselines.model import load_model
from baselines.models.unet import UNet
from baselines.progress import Average, Progress
from baselines.recipe import Recipe
from baselines.run_folder import RunFolder
from baselines.streaming import StreamedCrops
from baselines.training import TrainingRequest, train
from baselines.validation import Validation
from em_bench_eval.errors import InputError
from em_bench_eval.rows import open_rows

torch.set_num_threads(1)


def _request(dataset: Path, out: Path, **changes: object) -> TrainingRequest:
    preset = load_model("unet").preset("smoke")
    recipe = dataclasses.replace(preset.recipe, steps=7, crop=32, warmup_steps=2)
    request = TrainingRequest(
        "unet", str(dataset), "wild", out, "smoke", preset.config, recipe, checkpoint_every=3, validate_every=4
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


class _Interrupted(Exception):
    pass


def _interrupt(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    """Make the training die within step ``at_step``, as a killed process would: nothing is cleaned up."""
    original = training._Loop.step

    def step(self, batch, fraction):
        if self.progress.step == at_step:
            raise _Interrupted
        return original(self, batch, fraction)

    monkeypatch.setattr(training._Loop, "step", step)


def test_resumed_equals_uninterrupted(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(_request(tiny_dataset, whole))

    with monkeypatch.context() as context:
        _interrupt(context, at_step=5)
        with pytest.raises(_Interrupted):
            train(_request(tiny_dataset, parts))
    assert RunFolder(parts).last_step == 3
    assert not RunFolder(parts).is_complete
    with pytest.raises(InputError, match="unfinished training"):
        train(_request(tiny_dataset, parts))
    torch.manual_seed(99)  # whatever happened in between
    train(_request(tiny_dataset, parts), resume=True)

    expected, found = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)
    logs = [[json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()] for run in (whole, parts)]
    for one, other in zip(*logs, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == other["loss"]
    assert [entry["step"] for entry in logs[0]] == [3, 4, 6, 7]
    assert "validation_dice_mito" in logs[0][-1]
    assert [path.name for path in RunFolder(whole).checkpoints] == ["step-000006", "step-000007"]


def test_dropout_and_sampled_losses_resume_as_well(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = load_model("transunet").preset("smoke")
    recipe = dataclasses.replace(preset.recipe, steps=4, batch_size=1, crop=32)
    request = dataclasses.replace(
        _request(tiny_dataset, tmp_path),
        model="transunet",
        architecture=preset.config,
        recipe=recipe,
        checkpoint_every=2,
    )
    train(dataclasses.replace(request, out=tmp_path / "whole"))
    with monkeypatch.context() as context:
        _interrupt(context, at_step=3)
        with pytest.raises(_Interrupted):
            train(dataclasses.replace(request, out=tmp_path / "parts"))
    train(dataclasses.replace(request, out=tmp_path / "parts"), resume=True)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_a_killed_training_goes_on_where_it_was(tiny_dataset: Path, tmp_path: Path) -> None:
    """A real process, a real SIGKILL, as soon as the first checkpoint has its name."""
    options = [
        *("--model", "unet", "--preset", "smoke", "--dataset", str(tiny_dataset), "--crop", "32", "--steps", "60"),
        *("--checkpoint-every", "3", "--validate-every", "1000", "--out"),
    ]
    command = [sys.executable, "-m", "baselines.train", *options, str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(training.__file__).parent.parent)
    while not RunFolder(tmp_path / "run").checkpoints:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert RunFolder(tmp_path / "run").last_step < 60
    assert cli.train([*options, str(tmp_path / "run"), "--resume"]) == 0
    assert cli.train([*options, str(tmp_path / "whole")]) == 0
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def test_several_passes_make_the_same_step(tiny_dataset: Path, tmp_path: Path) -> None:
    """Without Dice, whose pooling over the batch is what accumulation cannot do, gradients add up exactly."""
    request = _request(tiny_dataset, tmp_path / "one")
    recipe = dataclasses.replace(request.recipe, batch_size=4, steps=1, augment=True, optimizer="sgd", ema_decay=None)
    seen: dict[str, list[torch.Tensor]] = {}
    original = training._Loop.batch

    def batch(self, crops):
        found = original(self, crops)
        seen.setdefault(self.run.path.name, []).append(found["image"])
        return found

    with pytest.MonkeyPatch.context() as context:
        context.setattr(training._Loop, "batch", batch)
        train(dataclasses.replace(request, recipe=recipe))
        train(dataclasses.replace(request, recipe=recipe, out=tmp_path / "two", micro_batch=2))
    assert [len(part) for part in seen["one"]] == [4]
    assert [len(part) for part in seen["two"]] == [2, 2]
    torch.testing.assert_close(torch.cat(seen["two"]), seen["one"][0], rtol=0, atol=0)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    moved = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert moved < 0.1 * recipe.lr  # the two steps differ by the pooling of Dice alone
    with pytest.raises(InputError, match=r"a batch of 4 crops cannot be divided\n.*3 crops at a time"):
        train(dataclasses.replace(request, recipe=recipe, out=tmp_path / "three", micro_batch=3))


def test_patience_stops_and_keeps_the_best(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    weights: list[dict[str, torch.Tensor]] = []

    def dice(self, model, device):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"mito": next(scores)}

    monkeypatch.setattr(Validation, "dice", dice)
    request = _request(tiny_dataset, tmp_path / "run", validate_every=1)
    train(dataclasses.replace(request, recipe=dataclasses.replace(request.recipe, patience=2)))
    assert len(weights) == 4  # the fifth would have been the best
    found = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in weights[1].items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert (stored["steps"], stored["best_step"], stored["best_validation_dice"]) == (4, 2, 0.5)


def test_the_best_so_far_survives_an_interruption(tmp_path: Path) -> None:
    best = Best(patience=3)
    best.save(tmp_path)
    again = Best(patience=3)
    again.restore(tmp_path)
    assert not again.weights
    best.see(0.4, 10, {"w": torch.ones(2)})
    best.see(0.3, 20, {"w": torch.zeros(2)})
    best.save(tmp_path)
    again.restore(tmp_path)
    assert (again.dice, again.step, again.waited, again.is_over) == (0.4, 10, 1, False)
    torch.testing.assert_close(again.weights["w"], torch.ones(2))


def test_a_stream_trains_as_well(tiny_dataset: Path, tmp_path: Path) -> None:
    train(_request(tiny_dataset, tmp_path / "run", streaming=True))
    model = UNet.from_pretrained(tmp_path / "run")
    assert (
        model.config.trained_organelles
        == UNet.from_pretrained(train(_request(tiny_dataset, tmp_path / "two"))).config.trained_organelles
    )


def test_streamed_crops_are_balanced_and_each_process_has_its_own(tiny_dataset: Path) -> None:
    rows = open_rows(tiny_dataset, "wild", "train", streaming=True)
    recipe = Recipe(steps=1, batch_size=1, crop=32, lr=1.0, foreground=1.0)
    crops = StreamedCrops(rows, recipe, seed=0)
    first = list(itertools.islice(crops, 40))
    assert [int(crop["number"]) for crop in first] == list(range(40))
    assert np.mean([(crop["instances"] > 0).any() for crop in first]) > 0.8
    again = list(itertools.islice(crops, 3))
    for name in first[0]:
        np.testing.assert_array_equal(first[2][name], again[2][name])
    two = crops.for_process(1, 2, 100)
    assert [int(crop["number"]) for crop in itertools.islice(two, 3)] == [101, 103, 105]


def test_only_the_named_sources_are_trained_on(tiny_dataset: Path, tmp_path: Path) -> None:
    train(_request(tiny_dataset, tmp_path / "run", sources=("lucchipp",)))
    assert UNet.from_pretrained(tmp_path / "run").config.trained_organelles == ("mito",)
    with pytest.raises(InputError, match="did you mean 'lucchipp'"):
        train(_request(tiny_dataset, tmp_path / "other", sources=("luchipp",)))


def test_a_training_may_start_from_another(tiny_dataset: Path, tmp_path: Path) -> None:
    first = train(_request(tiny_dataset, tmp_path / "first"))
    recipe = dataclasses.replace(_request(tiny_dataset, first).recipe, lr=1e-12, ema_decay=None, weight_decay=0.0)
    train(_request(tiny_dataset, tmp_path / "second", start_from=str(first), recipe=recipe))
    expected, found = load_file(first / "model.safetensors"), load_file(tmp_path / "second" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="unet takes no encoder weights"):
        train(_request(tiny_dataset, tmp_path / "third", encoder_weights="resnet50.pth"))
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    "fault", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("not enough memory: x")]
)
def test_too_little_memory_says_what_helps(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(self, heads, batch):
        raise fault

    monkeypatch.setattr(UNet, "loss", fail)
    with pytest.raises(InputError, match=r"ran out of memory\n.*\n.*--micro-batch"):
        train(_request(tiny_dataset, tmp_path / "run"))


def test_a_tracker_that_is_not_installed_is_named(tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip install wandb"):
        train(_request(tiny_dataset, tmp_path / "run", trackers=("wandb",)))


def test_the_result_loads_and_knows_what_it_was_trained_on(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = train(_request(tiny_dataset, tmp_path / "run"))
    model = UNet.from_pretrained(folder)
    assert model.config.trained_organelles[0] == "mito"
    assert "golgi" not in model.config.trained_organelles  # no source of the dataset annotates it
    assert model.training_info["steps"] == 7
    assert model.training_info["crops"] == 14
    assert model.training_info["recipe"]["lr"] == 0.01


def test_a_finished_training_is_left_alone_unless_overwritten(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(_request(tiny_dataset, out))
    before = (out / "model.safetensors").stat().st_mtime_ns
    for resume in (False, True):
        train(_request(tiny_dataset, out), resume=resume)
        assert "holds this training, finished" in capsys.readouterr().err
    with pytest.raises(InputError, match="other settings"):
        train(_request(tiny_dataset, out, seed=1))
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    train(_request(tiny_dataset, out, seed=1), overwrite=True)
    assert (out / "model.safetensors").stat().st_mtime_ns != before
    assert json.loads((out / "settings.json").read_text())["seed"] == 1


def test_other_settings_and_foreign_folders_are_refused(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as context:
        _interrupt(context, at_step=4)
        with pytest.raises(_Interrupted):
            train(_request(tiny_dataset, out))
    with pytest.raises(InputError, match=r"other settings\n  found: seed: 5\n  expected: seed: 0"):
        train(_request(tiny_dataset, out, seed=5), resume=True)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds something else"):
            train(_request(tiny_dataset, photos), overwrite=overwrite)
    assert (photos / "holiday.jpg").read_bytes() == b"precious"


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = UNet.loss
    calls = []

    def loss(self, heads, batch):
        calls.append(1)
        parts = original(self, heads, batch)
        return {**parts, "loss": parts["loss"] * (float("nan") if len(calls) > 4 else 1.0)}

    monkeypatch.setattr(UNet, "loss", loss)
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"diverged.*\n.*loss nan.*\n.*checkpoint of step 3 .* is intact"):
        train(_request(tiny_dataset, out))
    assert RunFolder(out).last_step == 3
    assert not RunFolder(out).is_complete
    for tensor in load_file(RunFolder(out).checkpoints[-1] / "model.safetensors").values():
        assert bool(torch.isfinite(tensor).all())


def test_a_time_budget_ends_the_training(tiny_dataset: Path, tmp_path: Path) -> None:
    request = _request(tiny_dataset, tmp_path / "run", max_minutes=1.0 / 60)
    recipe = dataclasses.replace(request.recipe, steps=None)
    train(dataclasses.replace(request, recipe=recipe, checkpoint_every=1000))
    log = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert log[-1]["seconds"] >= 1.0
    assert log[-1]["lr"] < 0.05 * request.recipe.lr  # the cosine arrived where the time did


def test_a_training_that_was_never_saved_starts_again_with_resume(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        _interrupt(context, at_step=1)
        with pytest.raises(_Interrupted):
            train(_request(tiny_dataset, tmp_path / "run"))
    train(_request(tiny_dataset, tmp_path / "run"), resume=True)
    assert RunFolder(tmp_path / "run").is_complete


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.prepare({"seed": 0}, overwrite=False)
    run.partial_checkpoint(10).mkdir()
    assert run.checkpoints == []
    for step in (10, 20, 30):
        run.partial_checkpoint(step).mkdir(exist_ok=True)
        run.commit(step)
    assert [path.name for path in run.checkpoints] == ["step-000020", "step-000030"]


def test_the_log_forgets_steps_that_are_done_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (10, 20, 30):
        run.append_log({"step": step})
    with run.log.open("a") as file:
        file.write('{"step": 4')
    run.rewind_log(20)
    assert [json.loads(line)["step"] for line in run.log.read_text().splitlines()] == [10, 20]


def test_learning_rate_warms_up_and_falls() -> None:
    recipe = Recipe(steps=100, batch_size=1, crop=32, lr=1.0, warmup_steps=4)
    rates = [recipe.learning_rate(step, step / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates.index(max(rates)) == 4
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.02
    poly = dataclasses.replace(recipe, schedule="poly", warmup_steps=0)
    assert poly.learning_rate(50, 0.5) == pytest.approx(0.5**0.9)
    constant = dataclasses.replace(recipe, schedule="constant", warmup_steps=0)
    assert {constant.learning_rate(step, step / 100) for step in range(100)} == {1.0}


def test_average_of_constant_weights_is_the_weights_and_progress_survives(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    average = Average(model, 0.9)
    for step in range(5):
        average.update(model, step)
    torch.testing.assert_close(average.weights["weight"], model.weight.detach())
    with torch.no_grad():
        model.weight += 1.0
    average.update(model, 10**6)
    torch.testing.assert_close(average.weights["weight"], model.weight.detach() - 0.9)
    average.save(tmp_path)
    again = Average(model, 0.9)
    again.restore(tmp_path)
    torch.testing.assert_close(again.weights["weight"], average.weights["weight"])

    progress = Progress(10, None)
    progress.step, progress.crops = 4, 8
    progress.save(tmp_path)
    restored = Progress(10, None)
    restored.restore(tmp_path)
    assert (restored.step, restored.crops, restored.fraction(None)) == (4, 8, 0.4)
    assert restored.seconds >= progress.seconds - 60
    with pytest.raises(ValueError, match="steps or a time budget"):
        Progress(None, None)


def test_the_command_line_trains(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "unet", "--preset", "smoke", "--dataset", str(tiny_dataset), "--out", str(tmp_path / "run")]
    assert cli.train([*options, "--steps", "1", "--crop", "32"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["training"]["recipe"]["steps"] == 1
    with pytest.raises(InputError, match="did you mean 'unet'"):
        cli.train(["--model", "u-net", *options[2:]])
    with pytest.raises(InputError, match="--mixed-precision fp16 does not work here"):
        cli.train([*options[:-1], str(tmp_path / "half"), "--mixed-precision", "fp16"])
