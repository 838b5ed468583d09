"""Engines of ``em-bench sam``: SAM on transformers (the core), or by the packages of its authors (the extra ``sam``).

An engine is a ``Sam``: ``baselines.sam.predict`` tiles, prompts, stitches and records it like the core's. The packages
need torchvision of the same build as torch, and bring a graphical interface with them, so they live in an environment
of their own (scripts/test_sam.sh makes one; docs/sam.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines.sam.predict import SamSettings
from em_bench_eval.errors import InputError, unknown_name

if TYPE_CHECKING:
    from baselines.sam.segment_anything_runner import SegmentAnything

INSTALL = (
    "use an environment of its own: python3 -m venv .venv-sam; .venv-sam/bin/pip install torch torchvision; "
    '.venv-sam/bin/pip install -e ".[sam]" (in a checkout, bash scripts/test_sam.sh makes and tests one)'
)


@dataclass(frozen=True)
class Engine:
    """Where an engine is, and what it needs."""

    packages: tuple[str, ...]  # modules that must be importable
    where: str  # module:class
    has_decoder: bool = False


SAM = ("torchvision", "segment_anything")
MICRO_SAM = (*SAM, "micro_sam")
ENGINES: Mapping[str, Engine] = {
    "segment-anything": Engine(SAM, "baselines.sam.segment_anything_runner:SegmentAnything"),
    "micro-sam-amg": Engine(MICRO_SAM, "baselines.sam.micro_sam_runner:MicroSamAmg"),
    "micro-sam-ais": Engine(MICRO_SAM, "baselines.sam.micro_sam_runner:MicroSamAis", has_decoder=True),
    "micro-sam-apg": Engine(MICRO_SAM, "baselines.sam.micro_sam_runner:MicroSamApg", has_decoder=True),
}
DISTRIBUTIONS = ("torchvision", "segment-anything", "segment-anything-py", "micro-sam", "torch-em")


@dataclass(frozen=True)
class EngineSettings(SamSettings):
    """``SamSettings`` of an engine; made by ``engine_settings``."""

    engine: str = "segment-anything"
    own: dict[str, Any] = field(default_factory=dict)  # the engine's own settings, for the record

    def recorded(self) -> dict[str, Any]:
        """What ``prediction.json`` says of them, with the versions of the packages."""
        common = super().recorded()
        if ENGINES[self.engine].has_decoder:
            common.pop("grid", None)
        elif "drop_background" in self.own:
            common["grid"] = {**common["grid"], **self.own}
        own = self.own if ENGINES[self.engine].has_decoder else {}
        return {**common, "engine": {"name": self.engine, **own, "packages": installed()}}


def load_engine(
    name: str,
    weights: str,
    *,
    decoder: str | None = None,
    decoder_settings: Mapping[str, Any] = {},
    drop_background: bool = True,
) -> SegmentAnything:
    """Load weights (all that ``baselines.sam.weights.load_sam`` takes) into an engine.

    ``decoder`` is the file of micro-SAM's segmentation decoder, by default ``weights`` itself; it and
    ``decoder_settings``, fields of ``micro_sam_runner.DecoderSettings``, belong to AIS and APG; ``drop_background`` to
    micro-SAM's mask generator. Raises ``InputError`` for an absent package, for weights that do not fit, and for
    pickles of more than tensors.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    engine = ENGINES[name]
    require(name)
    from baselines.sam.weights import load_sam

    module, cls = engine.where.split(":")
    build = getattr(import_module(module), cls)
    core = load_sam(weights)
    if engine.has_decoder:
        from baselines.sam.micro_sam_runner import DecoderSettings, read_decoder

        path = Path(decoder or weights)
        if not path.is_file():
            raise InputError(
                f"{name} needs the weights of micro-SAM's decoder",
                found=f"no file {path}",
                remedy="name its file with --decoder",
            )
        model = build(core, read_decoder(path), DecoderSettings(**decoder_settings))
        model.training_info["decoder"] = path.name
    else:
        if decoder is not None:
            raise InputError(f"{name} has no decoder", found=decoder, remedy="leave --decoder away")
        model = build(core) if name == "segment-anything" else build(core, drop_background=drop_background)
    result: SegmentAnything = model
    return result


def engine_settings(model: SegmentAnything, settings: SamSettings) -> EngineSettings:
    """Turn the core's settings into an engine's; a mode that it does not have is an ``InputError``.

    micro-SAM takes the background out itself, or has none, so it is not taken out again afterwards.
    """
    if settings.mode == "prompted" and not model.takes_prompts:
        raise InputError(
            f"{model.engine} is an automatic mode",
            expected="--mode automatic",
            remedy="prompt micro-SAM's weights with --engine segment-anything, or without --engine",
        )
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(SamSettings)}
    if not model.takes_prompts:
        values["grid"] = dataclasses.replace(settings.grid, drop_background=False)
    return EngineSettings(**values, engine=model.engine, own=model.recorded())


def require(name: str) -> None:
    """Import an engine's packages; ``InputError`` with the installation if one is absent or broken."""
    for package in ENGINES[name].packages:
        try:
            import_module(package)
        except (ImportError, RuntimeError, OSError) as error:  # torchvision of another build: RuntimeError, or OSError
            raise InputError(
                f"the engine {name} needs {package}, which cannot be imported",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else package}",
                expected="the extra `sam`, with torchvision of the same build as torch",
                remedy=INSTALL,
            ) from error


def installed() -> dict[str, str]:
    """Versions of the packages that an engine's result depends on, those that are there."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
