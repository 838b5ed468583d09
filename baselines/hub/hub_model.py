"""``em-bench push model``: a checkpoint with its card, scores, licences and, where it has one, transformers' layout."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.errors import InputError
from em_bench_eval.hub_push import (
    TOKEN_HELP,
    add_options,
    check_repo_id,
    check_tag,
    is_repo_id,
    send,
    show_files,
    tell,
    token_of,
)
from em_bench_eval.hub_upload import Repository, Uploaded

if TYPE_CHECKING:
    from baselines.hub.model_results import Measured
    from baselines.model import Baseline

EVAL_RESULTS = ".eval_results/em-organelle-wild.yaml"
HUB = "https://huggingface.co"
EXAMPLES = f"""examples:
  em-bench push model runs/unet --to my-lab/em-organelle-unet --dataset my-lab/em-organelle-wild --dry-run
  em-bench push model runs/unet --to my-lab/em-organelle-unet --dataset em-organelle-wild \\
      --dataset-id my-lab/em-organelle-wild --score predictions/unet/score.json --revision-tag v1 --public
  em-bench push model runs/unet --to my-lab/em-organelle-unet --dataset my-lab/em-organelle-wild \\
      --score result.json --predictions predictions/unet --leaderboard my-lab/em-organelle-leaderboard
then: UNet.from_pretrained("my-lab/em-organelle-unet")

{TOKEN_HELP}"""


@dataclass(frozen=True)
class Publication:
    """What is known beside the checkpoint."""

    dataset: str = ""  # that it was trained on: a folder, or <org>/<name> on the Hub
    dataset_id: str = ""  # its name on the Hub, if ``dataset`` is a folder
    score: Path | None = None  # score.json, or a result of the leaderboard
    predictions: Path | None = None  # the submission behind that result
    leaderboard: str = ""  # Space, <org>/<name>
    base_model: str = ""  # whose weights it started from, <org>/<name>
    limits: tuple[str, ...] = ()  # what else users should know

    @property
    def hub_dataset(self) -> str:
        """Name of the dataset on the Hub, or an empty string."""
        return self.dataset_id or (self.dataset if is_repo_id(self.dataset) and not Path(self.dataset).is_dir() else "")


UNKNOWN = Publication()


def write_model(
    model: Baseline, out: Path, repo_id: str, about: Publication, token: str | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Write a model repository; returns path in the repository -> local file, and what its publisher should know.

    Raises:
        InputError: scores of other weights, or a dataset that does not say what it holds.
    """
    import yaml

    from baselines.hub.model_card import CardFacts, card
    from baselines.hub.model_results import eval_results, read_measured
    from baselines.hub.training_sources import TASKS, dataset_text, licences_text, trained_on
    from baselines.hub.transformers_export import write_transformers
    from baselines.prediction_settings import weights_digest
    from baselines.pretrained import CARD, save_pretrained

    info, notes = model.training_info, []
    sources = None
    if about.dataset:
        sources = trained_on(about.dataset, info.get("config", "wild"), info.get("sources", ()), token)
    else:
        notes.append("without --dataset the card cannot name licences and citations of the training data")
    measured = None
    if about.score is not None:
        measured = read_measured(about.score, weights_digest(model), about.predictions)
    notes += _notes(model, about, measured)
    url = f"{HUB}/spaces/{about.leaderboard}" if about.leaderboard else None
    save_pretrained(model, out)
    facts = CardFacts(
        repo_id=repo_id,
        dataset_id=about.hub_dataset,
        sources=sources,
        base_model=about.base_model or _base_model(info),
        measured=measured,
        score_url=url or (f"{HUB}/datasets/{about.hub_dataset}" if about.hub_dataset else None),
        transformers_class=write_transformers(model, out),
        limits=about.limits,
    )
    (out / CARD).write_text(card(model, facts), encoding="utf-8")
    if sources is not None:
        (out / "LICENSES.md").write_text(licences_text(sources), encoding="utf-8")
    if measured is not None and about.hub_dataset:
        tasks = [task["id"] for task in yaml.safe_load(dataset_text(about.dataset, TASKS, token))["tasks"]]
        entries = eval_results(measured, about.hub_dataset, url, tasks)
        if entries:
            (out / EVAL_RESULTS).parent.mkdir()
            (out / EVAL_RESULTS).write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return files, notes


def push(
    model: Baseline,
    to: Repository,
    about: Publication = UNKNOWN,
    tag: str | None = None,
    token: str | None = None,
    **sending: Any,
) -> Uploaded:
    """Publish a model; see ``hub_upload.upload`` for what can go wrong, and ``write_model``."""
    with tempfile.TemporaryDirectory() as folder:
        files, notes = write_model(model, Path(folder), to.repo_id, about, token)
        for note in notes:
            print(f"mind: {note}", file=sys.stderr)
        return send(files, to, model.name, tag, token, **sending)


def push_model(argv: Sequence[str]) -> int:
    """Run ``em-bench push model``."""
    arguments = _parser().parse_args(argv)
    check_repo_id("--to", arguments.to, "my-lab/em-organelle-unet")
    for option in ("dataset_id", "leaderboard", "base_model"):
        if getattr(arguments, option):
            check_repo_id(f"--{option.replace('_', '-')}", getattr(arguments, option), "my-lab/name")
    tag = check_tag(arguments.revision_tag)
    if arguments.predictions is not None and arguments.score is None:
        raise InputError("--predictions belongs to a result", expected="--score RESULT.json as well")
    token = token_of(arguments)
    from baselines.pretrained import load_pretrained

    model = load_pretrained(arguments.checkpoint, token=token)
    about = Publication(
        arguments.dataset,
        arguments.dataset_id,
        arguments.score,
        arguments.predictions,
        arguments.leaderboard,
        arguments.base_model,
        tuple(arguments.limit),
    )
    to = Repository(arguments.to, "model", public=arguments.public)
    with tempfile.TemporaryDirectory() as folder:
        files, notes = write_model(model, Path(folder), to.repo_id, about, token)
        show_files(to, files)
        for note in notes:
            print(f"  mind     {note}")
        if arguments.dry_run:
            print("dry run: nothing was sent")
            return 0
        tell(send(files, to, model.name, tag, token))
    revision = f', revision="{tag}"' if tag else ""
    print(f'load it: {type(model).__name__}.from_pretrained("{to.repo_id}"{revision})')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench push model",
        description="Upload a checkpoint as a model repository: safetensors, configuration, and a card that says what "
        "it predicts, what it was trained on, how it scores and what it must not be used for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a folder that em-bench train wrote")
    add("--to", required=True, metavar="ORG/NAME", help="the model repository, made if not there")
    add("--dataset", default="", metavar="DATASET", help="what it was trained on: folder, or ORG/NAME on the Hub")
    add("--dataset-id", default="", metavar="ORG/NAME", help="its name on the Hub, if --dataset is a folder")
    add("--score", type=Path, metavar="FILE", help="score.json of em-bench score, or a result of the leaderboard")
    add("--predictions", type=Path, metavar="FOLDER", help="the submission that the result is of")
    add("--leaderboard", default="", metavar="ORG/NAME", help="the Space where that result is shown")
    add("--base-model", default="", metavar="ORG/NAME", help="the model on the Hub that the training started from")
    add("--limit", action="append", default=[], metavar="TEXT", help="what else users should know; repeatable")
    add_options(parser)
    return parser


def _base_model(info: dict[str, Any]) -> str:
    """The checkpoint on the Hub that the training says it started from."""
    name = str(info.get("started_from", "")).removeprefix("weights of ")
    return name if is_repo_id(name) else ""


def _notes(model: Baseline, about: Publication, measured: Measured | None) -> list[str]:
    info, notes = model.training_info, []
    started = info.get("started_from") or info.get("encoder_weights") or info.get("weights")
    if started and not (about.base_model or _base_model(info)):
        notes.append(f"it started from {started}: name it with --base-model, and see that its licence allows it")
    known = {Path(name).name for name in (about.dataset, about.hub_dataset) if name}
    trained = Path(str(info.get("dataset", ""))).name
    if known and trained and trained not in known:
        notes.append(f"it was trained on {trained}, and the card describes {', '.join(sorted(known))}")
    if about.dataset and not about.hub_dataset:
        notes.append("without --dataset-id the card links no dataset on the Hub, and its metadata hold no scores")
    if measured is not None and not measured.rescored:
        notes.append("scores of your own run are in the card; only re-scored ones become .eval_results")
    return notes
