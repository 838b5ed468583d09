"""The card of a model repository: metadata that the Hub reads, and what users must know before they trust a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from baselines.hub.model_results import Measured, model_index, table
from baselines.hub.training_sources import TrainedOn, licence_of_weights
from em_bench_eval.schema import ORGANELLES

if TYPE_CHECKING:
    from baselines.model import Baseline

LIBRARY = "em-organelle-wild"
METRIC = "em_bench_eval"


@dataclass(frozen=True)
class CardFacts:
    """What a checkpoint does not know of itself; all of it may be unknown."""

    repo_id: str = ""
    dataset_id: str = ""  # on the Hub
    sources: Sequence[TrainedOn] | None = None
    base_model: str = ""  # on the Hub
    measured: Measured | None = None
    score_url: str | None = None
    transformers_class: str = ""
    limits: Sequence[str] = field(default_factory=tuple)


def card(model: Baseline, facts: CardFacts) -> str:
    """Return ``README.md`` of a checkpoint."""
    import yaml

    header = yaml.safe_dump(metadata(model, facts), sort_keys=False, allow_unicode=True, width=100)
    chapters = [
        _what(model),
        _use(model, facts),
        _scores(facts),
        _training(model, facts),
        _limits(model, facts),
        _licence(facts),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(chapter for chapter in chapters if chapter) + "\n"


def metadata(model: Baseline, facts: CardFacts) -> dict[str, Any]:
    """Return the card's YAML header, as the Hub defines it."""
    licence = licence_of_weights(facts.sources)
    found: dict[str, Any] = {"library_name": LIBRARY, "license": licence}
    if licence == "other":
        link = "LICENSES.md" if facts.sources else "README.md"
        found |= {"license_name": "as-the-training-data", "license_link": link}
    found |= {
        "pipeline_tag": "image-segmentation",
        "tags": [
            *("electron-microscopy", "biology", "instance-segmentation", "organelles", model.name),
            *(["transformers"] if facts.transformers_class else []),
        ],
    }
    if facts.dataset_id:
        found["datasets"] = [facts.dataset_id]
    if facts.base_model:
        found["base_model"] = facts.base_model
    if facts.measured is not None:
        found["metrics"] = [METRIC]
        if facts.dataset_id:
            name = facts.repo_id.split("/")[-1] or model.name
            found["model-index"] = model_index(facts.measured, name, facts.dataset_id, facts.score_url)
    return found


def _what(model: Baseline) -> str:
    from baselines.model import count_parameters

    config = model.config
    trained = ", ".join(config.trained_organelles) or "none (not trained here)"
    kind = "gray volumes" if model.ndim == 3 else "gray images"
    return f"""# {model.name} for organelles in electron microscopy

{count_parameters(model):,} parameters. From {kind} at {config.pixel_size_nm:g} nm per pixel, normalised by
`{config.normalisation}`, to instances of: {trained}."""


def _use(model: Baseline, facts: CardFacts) -> str:
    where = facts.repo_id or "REPOSITORY_OR_FOLDER"
    cls = type(model).__name__
    text = f"""## Use

```python
from {type(model).__module__} import {cls}

model = {cls}.from_pretrained("{where}")
```

```shell
em-bench predict --checkpoint {where} --dataset {facts.dataset_id or LIBRARY} --split test --out predictions
```

The weights are safetensors and the configuration is JSON: loading runs no code from here."""
    if facts.transformers_class:
        stride = getattr(model.config, "stride", 1)
        pooled = f" and pooled {stride} by {stride}" if stride != 1 else ""
        text += f"""

Without this project, in transformers' own layout, with the same outputs:

```python
from transformers import {facts.transformers_class}

model = {facts.transformers_class}.from_pretrained("{where}", subfolder="transformers")
```

It takes images normalised as above{pooled}; padding, tiling and decoding to instances are left to you."""
    return text


def _scores(facts: CardFacts) -> str:
    measured = facts.measured
    if measured is None:
        return "## Scores\n\nNone were published with this checkpoint."
    prompted = ""
    if measured.prompts != "none":
        prompted = f" Prompts were taken from the reference ({measured.prompts}): not comparable with automatic models."
    return f"""## Scores

On `{measured.config}`, split `{measured.split}`, of {facts.dataset_id or measured.dataset}: {measured.images} images,
metric {METRIC} {measured.metric_version}, settings `{measured.settings_hash}`; {measured.how}.{prompted}

{table(measured)}

`em-bench explain macro/dice__instance` and so on define every number."""


def _training(model: Baseline, facts: CardFacts) -> str:
    info = model.training_info
    rows = [(key, value) for key, value in info.items() if not isinstance(value, (Mapping, list, tuple))]
    lines = ["| training | |", "| --- | --- |"]
    lines += [f"| {key.replace('_', ' ')} | {_text(value)} |" for key, value in rows]
    parts = ["## Training\n", "\n".join(lines)] if rows else ["## Training\n", "Not trained by this project."]
    if facts.base_model:
        parts.append(f"\nStarted from [{facts.base_model}](https://huggingface.co/{facts.base_model}).")
    if isinstance(info.get("recipe"), Mapping):
        parts.append(f"\nRecipe:\n\n```json\n{json.dumps(info['recipe'], indent=1)}\n```")
    architecture = {
        key: value
        for key, value in dataclasses.asdict(model.config).items()
        if key not in ("organelles", "trained_organelles")
    }
    parts.append(f"\nArchitecture:\n\n```json\n{json.dumps(architecture)}\n```")
    if facts.sources is not None:
        rows_of = [
            f"| {source.name} | {_text(source.title)} | {source.images:,} | "
            f"{'; '.join(f'{organelle}: {kind}' for organelle, kind in source.annotated.items())} | {source.licence} |"
            for source in facts.sources
        ]
        head = "| source | data set | images | annotated | licence |\n| --- | --- | --- | --- | --- |"
        parts.append(f"\nTraining data:\n\n{head}\n" + "\n".join(rows_of))
        citations = list(dict.fromkeys(source.citation.strip() for source in facts.sources if source.citation.strip()))
        if citations:
            parts.append("\nWhoever uses the model cites the data:\n\n```bibtex\n" + "\n\n".join(citations) + "\n```")
    return "\n".join(parts)


def _limits(model: Baseline, facts: CardFacts) -> str:
    never = [name for name in ORGANELLES if name not in model.config.trained_organelles]
    entries = []
    if model.config.trained_organelles and never:
        entries.append(
            f"{', '.join(f'`{name}`' for name in never)}: annotated nowhere in the training data, so never predicted. "
            "That says nothing about whether there are any."
        )
    for name in model.config.trained_organelles if facts.sources is not None else ():
        having = [source.name for source in facts.sources or () if name in source.annotated]
        if len(having) == 1 and len(facts.sources or ()) > 1:
            entries.append(f"`{name}` was learnt from a single source, {having[0]}.")
    if facts.sources is not None and len(facts.sources) == 1:
        entries.append(f"Trained on a single source, {facts.sources[0].name}: expect less elsewhere.")
    machine = [
        source.name
        for source in facts.sources or ()
        if any(word in kind for kind in source.annotated.values() for word in ("model", "synthetic", "lpa"))
    ]
    if machine:
        entries.append(f"Labels of {', '.join(machine)} are in part made by machines or simulated.")
    entries += [f"{limit}" for limit in facts.limits]
    entries.append("Research use; not validated for any diagnosis.")
    return "## Limits\n\n" + "\n".join(f"* {entry}" for entry in entries)


def _licence(facts: CardFacts) -> str:
    text = "## Licence\n\nThe code is under Apache-2.0. "
    if facts.sources is None:
        return text + (
            "The licences of the training data were not looked up when this card was written: before you use the "
            "weights for anything but trying them, look at the data."
        )
    asking = [source for source in facts.sources if source.conditions]
    if not asking:
        return text + "All training data ask for attribution at most: the weights are under Apache-2.0; cite the data."
    listed = "; ".join(f"{source.name} ({source.licence}: {source.conditions})" for source in asking)
    return text + (
        f"The weights were trained on data with further conditions: {listed}. Use the weights as if these applied to "
        "them; `LICENSES.md` lists all."
    )


def _text(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
