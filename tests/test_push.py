"""``em-bench push`` against the Hub double: what arrives, what it says, and that everybody can load it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import submission_forms as forms
import torch
import yaml
from hub_double import HubDouble, online
from hub_double_repos import Entry

from baselines.hub import hub_model
from baselines.hub.hub_model import EVAL_RESULTS, Publication, write_model
from baselines.hub.training_sources import TrainedOn, licence_of_weights
from baselines.hub.transformers_export import EXPORTERS, SUBFOLDER, write_transformers
from baselines.model import Baseline, load_model
from baselines.models.unet import UNet
from baselines.prediction_settings import weights_digest
from baselines.pretrained import load_pretrained
from em_bench_eval import hub_upload
from em_bench_eval.cli_push import KINDS, push
from em_bench_eval.errors import InputError
from em_bench_eval.hub_metric import metric_files, siblings
from em_bench_eval.leaderboard.items import expected_items
from em_bench_eval.leaderboard.rescoring import rescore
from em_bench_eval.rows import decode_row, open_rows
from em_bench_eval.score_dataset import score_folder
from em_bench_eval.settings import DEFAULT_SETTINGS

torch.set_num_threads(1)
DATASET, MODEL, METRIC = "my-lab/em-organelle-wild", "my-lab/em-organelle-unet", "my-lab/em_bench_eval"
SPACE, SUBMISSIONS = "my-lab/em-organelle-leaderboard", "my-lab/em-organelle-submissions"
OPEN = ("vnc_sstem", "hela_sbfsem")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """The double, and this process as its client with a token and a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubDouble() as double, online(double, monkeypatch):
        yield double


def run(*arguments: object) -> int:
    return push([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model() -> Baseline:
    return make("unet")


def make(name: str, **changed: Any) -> Baseline:
    declared = load_model(name)
    torch.manual_seed(0)
    config = replace(declared.preset("smoke").config, trained_organelles=("mito",), **changed)
    built = declared.build(config).eval()
    built.training_info = {"dataset": "em-organelle-wild", "config": "wild", "sources": [], "steps": 3}
    return built


@pytest.fixture
def checkpoint(model: Baseline, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "runs" / "unet")
    return tmp_path / "runs" / "unet"


# --- the command -----------------------------------------------------------------------------------------------------


def test_what_can_be_pushed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    shown = capsys.readouterr().out
    assert all(f"  {kind} " in shown for kind in KINDS)
    assert run("modle") == 2
    assert "did you mean 'model'" in capsys.readouterr().err
    for kind in KINDS:
        with pytest.raises(SystemExit) as stopped:
            run(kind, "--help")
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert "example" in shown
        assert "--dry-run" in shown
        assert "--public" in shown


def test_unusable_arguments(checkpoint: Path) -> None:
    for arguments, message in (
        (("metric", "--to", "my-lab/metric"), "only in a Space of the metric's name"),
        (("metric", "--to", "em_bench_eval"), "ORG/NAME"),
        (("model", checkpoint, "--to", MODEL, "--revision-tag", "main"), "name of the branch"),
        (("model", checkpoint, "--to", MODEL, "--predictions", "x"), "belongs to a result"),
        (("model", checkpoint, "--to", MODEL, "--dataset", "nowhere"), "does not say what the model was trained on"),
        (("leaderboard", "--to", SPACE, "--submissions", DATASET, "--dataset", DATASET), "repository of their own"),
        (("dataset", ".", "--to", DATASET, "--labels-to", DATASET), "second repository"),
    ):
        with pytest.raises(InputError, match=message):
            run(*arguments)


def test_dry_runs_list_files_and_send_nothing(
    hub: HubDouble, checkpoint: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaderboard = ("--to", SPACE, "--submissions", SUBMISSIONS, "--dataset", DATASET)
    for arguments, file in (
        (("metric", "--to", METRIC), "em_bench_eval.py"),
        (("model", checkpoint, "--to", MODEL, "--dataset", tiny_dataset), "model.safetensors"),
        (("leaderboard", *leaderboard), "ci/leaderboard.yml"),
        (("dataset", tiny_dataset, "--to", DATASET), "stats.json"),
    ):
        assert run(*arguments, "--dry-run") == 0
        shown = capsys.readouterr().out
        assert f"B  {file}" in shown
        assert "dry run: nothing was sent" in shown
    assert not hub.log


# --- the metric ------------------------------------------------------------------------------------------------------


def test_the_space_holds_what_evaluate_and_its_page_import_and_no_more() -> None:
    from em_bench_eval import hub_metric

    files = set(metric_files())
    assert {"em_bench_eval.py", "app.py", "__init__.py", "README.md", "requirements.txt", "demo.py"} <= files
    assert not {"cli.py", "cli_score.py", "hub_metric.py", "report.py", "row.py"} & files
    for name in files - {"README.md", "requirements.txt"}:
        assert {f"{sibling}.py" for sibling in siblings(hub_metric.FOLDER / name)} <= files


ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [entry for entry in sys.path if entry and entry != sys.argv[2]]
try:
    import em_bench_eval
except ImportError:
    pass
else:
    raise SystemExit("our package is still there")
import evaluate
metric = evaluate.load(sys.argv[1])
labels = [[1, 1, 0], [0, 2, 2]]
found = metric.compute(predictions=[labels], references=[labels], organelle="mito", voxel_size_nm=[8, 8])
print("pq", found["mito/pq"], found["mito/n_reference"])
"""


def environment(hub: HubDouble, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "PYTHONPATH")}
    switched = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    own = {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_DEBUG": "1"}
    return {**known, **switched, **own, **({"HF_TOKEN": token} if token else {})}


def process(code: str, *arguments: object, env: Mapping[str, str], cwd: Path, isolated: bool = False) -> str:
    command = [sys.executable, *(["-I"] if isolated else []), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf_writer" not in done.stdout + done.stderr
    return done.stdout


def test_the_metric_loads_where_nothing_of_ours_is_installed(hub: HubDouble, project: Path, tmp_path: Path) -> None:
    assert run("metric", "--to", METRIC, "--revision-tag", "v1") == 0
    files = hub.files("space", METRIC, "v1")
    assert set(files) == set(metric_files())
    assert f'evaluate.load("{METRIC}")' in files["README.md"].decode()
    assert hub.repo("space", METRIC).sdk == "gradio"
    assert hub.repo("space", METRIC).private
    there = environment(hub, tmp_path / "home")
    shown = process(ALONE, METRIC, project, env=there, cwd=tmp_path, isolated=True)
    assert shown.splitlines()[-1] == "pq 1.0 2"


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_in_one_line(
    hub: HubDouble, checkpoint: Path, model: Baseline, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = ("--dataset", tiny_dataset, "--dataset-id", DATASET)
    assert run("model", checkpoint, "--to", MODEL, *about, "--revision-tag", "v1") == 0
    assert set(hub.files("model", MODEL)) == {"README.md", "LICENSES.md", "config.json", "model.safetensors"}
    assert hub.repo("model", MODEL).private
    for revision in (None, "v1", "main"):
        loaded = UNet.from_pretrained(MODEL, revision=revision)
        assert weights_digest(loaded) == weights_digest(model)
    log = len(hub.log)
    assert run("model", checkpoint, "--to", MODEL, *about, "--revision-tag", "v1") == 0
    assert not [entry for entry in hub.log[log:] if "/commit/" in entry[1]], "nothing is sent twice"

    def refusal(token: str | None, **options: Any) -> str:
        shutil.rmtree(os.environ["HF_TEST_CACHE"], ignore_errors=True)
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError) as caught:
            UNet.from_pretrained(MODEL, **options)
        assert "hf_" not in str(caught.value)
        return str(caught.value)

    from huggingface_hub import constants

    monkeypatch.setenv("HF_TEST_CACHE", constants.HF_HUB_CACHE)
    assert "this revision" in refusal("hf_writer", revision="v7")
    assert "private" in refusal("hf_stranger")
    assert "hf auth login" in refusal(None)
    assert "refuses the token" in refusal("hf_nobody")
    assert weights_digest(UNet.from_pretrained(MODEL, token="hf_reader")) == weights_digest(model)
    hub.repo("model", MODEL).private, hub.repo("model", MODEL).gated = False, True
    assert "accept the terms" in refusal("hf_stranger")
    hub.repo("model", MODEL).accepted.add("igor")
    assert weights_digest(UNet.from_pretrained(MODEL)) == weights_digest(model)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    hub.repo("model", MODEL).commit("main", {"config.json": None}, "oops", None)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        UNet.from_pretrained(MODEL)


def test_push_to_hub_from_python(hub: HubDouble, model: Baseline) -> None:
    address = model.push_to_hub(MODEL, revision_tag="v2")
    assert address.endswith(f"{MODEL}/tree/v2")
    assert hub.repo("model", MODEL).private
    assert type(load_pretrained(MODEL, revision="v2")) is UNet


TRANSFORMERS = {
    "mask2former": ("AutoModelForUniversalSegmentation", {}),
    "upernet": ("AutoModelForSemanticSegmentation", {"norm_groups": None}),
    "sam": ("AutoModel", {}),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_own_architectures_load_without_us(name: str, hub: HubDouble, tmp_path: Path) -> None:
    import transformers

    auto, changed = TRANSFORMERS[name]
    model, repo = make(name, **changed), f"my-lab/em-{name}"
    hub_model.push(model, hub_upload.Repository(repo, "model"))
    assert {f"{SUBFOLDER}/config.json", f"{SUBFOLDER}/model.safetensors"} <= set(hub.files("model", repo))
    theirs = getattr(transformers, auto).from_pretrained(repo, subfolder=SUBFOLDER, cache_dir=tmp_path / "cache").eval()
    image = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        if name == "mask2former":
            ours, output = model(image), theirs(pixel_values=image)
            pairs = [(ours["class"], output.class_queries_logits), (ours["mask"], output.masks_queries_logits)]
            assert list(theirs.config.id2label.values()) == list(model.config.organelles)
        elif name == "upernet":
            pairs = [(model(image)["semantic"], theirs(pixel_values=image).logits)]
            assert list(theirs.config.id2label.values()) == ["background", *model.config.organelles]
        else:
            pixels = torch.randn(1, 3, 64, 64)
            pairs = [(model.network.get_image_embeddings(pixels), theirs.get_image_embeddings(pixels))]
    for ours, other in pairs:
        torch.testing.assert_close(other, ours, rtol=1e-5, atol=1e-6)
    assert f'subfolder="{SUBFOLDER}"' in hub.files("model", repo)["README.md"].decode()


def test_architectures_that_transformers_has_not(tmp_path: Path) -> None:
    assert "unet" not in EXPORTERS
    assert write_transformers(make("upernet"), tmp_path) == "", "group normalisation"
    assert not list(tmp_path.iterdir())


def card_of(model: Baseline, out: Path, about: Publication) -> tuple[Any, str, dict[str, Path]]:
    from huggingface_hub import ModelCard

    out.mkdir(parents=True)
    files, _ = write_model(model, out, MODEL, about)
    return ModelCard.load(out / "README.md").data, (out / "README.md").read_text(), files


def test_the_card_says_what_users_must_know(model: Baseline, tiny_dataset: Path, tmp_path: Path) -> None:
    about = Publication(str(tiny_dataset), dataset_id=DATASET, base_model="facebook/dino", limits=("Not for plants.",))
    data, text, _ = card_of(model, tmp_path / "a", about)
    assert data.library_name == "em-organelle-wild"
    assert (data.license, data.license_link) == ("other", "LICENSES.md")
    assert (data.pipeline_tag, data.datasets, data.base_model) == ("image-segmentation", [DATASET], "facebook/dino")
    assert f'UNet.from_pretrained("{MODEL}")' in text
    assert "CC-BY-NC-SA-3.0: non-commercial use only, share alike" in text
    assert "annotated nowhere in the training data, so never predicted" in text
    assert "`er`" in text.split("## Limits")[1]
    assert "Not for plants." in text
    assert "```bibtex\n@" in text
    assert "None were published" in text
    assert data.eval_results is None
    data, text, _ = card_of(model, tmp_path / "b", Publication())
    assert data.license == "other"
    assert "not looked up" in text


def test_licences_of_weights() -> None:
    def trained(*licences: str) -> str:
        return licence_of_weights([TrainedOn("a", "A", licence, "", "", {}, 1) for licence in licences])

    assert trained("CC0-1.0", "CC-BY-4.0", "MIT (their page)") == "apache-2.0"
    for licence in (
        "CC-BY-NC-4.0",
        "CC-BY-SA-4.0",
        "CC-BY-ND-4.0",
        "none stated",
        "CC0-1.0 (images), GPL-3.0 (labels)",
    ):
        assert trained("CC0-1.0", licence) == "other"
    assert licence_of_weights(None) == "other"


@pytest.fixture(scope="module")
def submission(tiny_dataset: Path, model: Baseline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of these weights, as its prediction.json says."""
    found = [forms.damaged(decode_row(row)) for row in open_rows(tiny_dataset, "wild", "test")]
    folder = tmp_path_factory.mktemp("team") / "unet"
    forms.write(folder, "parquet", found, expected_items(tiny_dataset, "wild", "test"))
    path = folder / "prediction.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_sha256": weights_digest(model)}))
    return folder


def test_scores_only_of_these_very_weights(
    model: Baseline, submission: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    info = json.loads((submission / "prediction.json").read_text())
    score, _ = score_folder(submission, str(tiny_dataset), "wild", "test", DEFAULT_SETTINGS, info)
    path = tmp_path / "score.json"
    path.write_text(json.dumps(score))
    about = Publication(str(tiny_dataset), DATASET, path)
    data, text, files = card_of(model, tmp_path / "a", about)
    key = "macro/dice__instance"
    (macro,) = (entry for entry in data.eval_results if entry.metric_args["key"] == key)
    assert macro.metric_value == round(score["groups"]["all"][key], 4)
    assert macro.metric_args["settings"] == score["settings_hash"]
    assert "by whoever published" in macro.metric_args["provenance"]
    assert f"{score['groups']['all'][key]:.3f}" in text
    assert str(tiny_dataset.parent) not in text, "where it lay on somebody's disk is nobody's business"
    assert EVAL_RESULTS not in files, "never self-reported"

    other = make("unet")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(InputError, match="not about these weights"):
        card_of(other, tmp_path / "b", about)
    path.write_text(json.dumps({**score, "prediction": {**info, "weights_sha256": None}}))
    with pytest.raises(InputError, match="it names no weights"):
        card_of(model, tmp_path / "c", about)
    scores = score["groups"] | {"all": score["groups"]["all"] | {key: 1.7}}
    path.write_text(json.dumps({**score, "groups": scores}))
    with pytest.raises(InputError, match="cannot be a score"):
        card_of(model, tmp_path / "d", about)


def test_rescored_results_become_eval_results(
    model: Baseline, submission: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    result = rescore(submission, tiny_dataset, progress=False)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="nothing connects"):
        card_of(model, tmp_path / "a", Publication(str(tiny_dataset), DATASET, path))
    about = Publication(str(tiny_dataset), DATASET, path, submission, "my-lab/board")
    data, text, files = card_of(model, tmp_path / "b", about)
    assert data.eval_results[0].source_url.endswith("spaces/my-lab/board")
    assert "re-scored by the leaderboard" in text
    entries = yaml.safe_load(files[EVAL_RESULTS].read_text())
    tasks = {task["id"] for task in yaml.safe_load((tiny_dataset / "eval.yaml").read_text())["tasks"]}
    assert {entry["dataset"]["task_id"] for entry in entries} <= tasks
    assert {entry["dataset"]["id"] for entry in entries} == {DATASET}
    (macro,) = (entry for entry in entries if entry["dataset"]["task_id"] == "wild_macro")
    assert macro["value"] == round(result["scores"]["all"]["macro/dice__instance"], 4)
    assert result["settings_hash"] in macro["notes"]
    damaged = Path(shutil.copytree(submission, tmp_path / "damaged"))
    (damaged / "submission.yaml").write_text((damaged / "submission.yaml").read_text() + "notes: mine\n")
    with pytest.raises(InputError, match="is not the result of"):
        card_of(model, tmp_path / "c", Publication(str(tiny_dataset), DATASET, path, damaged))


# --- the dataset, with private labels --------------------------------------------------------------------------------

READ = """
import datasets, sys
rows = datasets.load_dataset(sys.argv[1], "wild", split="test", streaming=True)
found = [(row["volume_id"], row["image"].size, row["instances"], row["objects"]) for row in rows]
assert found and all(instances is None and objects == [] for *_, instances, objects in found)
train = datasets.load_dataset(sys.argv[1], "wild", split="train", streaming=True)
assert next(iter(train))["instances"].size == next(iter(train))["image"].size
labels = datasets.load_dataset(sys.argv[1] + "-labels", "wild", split="test", streaming=True)
assert [(row["volume_id"], row["instances"].size) for row in labels] == [(name, size) for name, size, _, _ in found]
from em_bench_eval.leaderboard.items import expected_items, split_hash
public, private = (expected_items(sys.argv[1] + end, "wild", "test") for end in ("", "-labels"))
assert split_hash(public.items.values()) == split_hash(private.items.values())
print(len(found))
"""


def test_the_test_labels_stay_private(
    hub: HubDouble, tiny_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("dataset", tiny_dataset, "--to", DATASET, "--private-labels", "test")
    assert run(*arguments, "--public", "--revision-tag", "v1") == 0
    assert not hub.repo("dataset", DATASET).private
    assert hub.repo("dataset", f"{DATASET}-labels").private
    count = process(READ, DATASET, env=environment(hub, tmp_path / "home"), cwd=tmp_path)
    assert int(count.splitlines()[-1]) > 0

    everything = b"".join(hub.files("dataset", DATASET).values())
    for row in open_rows(tiny_dataset, "wild", "test"):
        assert row["instances"]["bytes"] not in everything
    told = capfd.readouterr()
    assert "hf_writer" not in told.out + told.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_writer" not in path.read_bytes(), path


def test_labels_that_were_shown_cannot_be_hidden_again(hub: HubDouble, tiny_dataset: Path) -> None:
    from huggingface_hub import HfApi

    from dataset_builder.disclosure import check_history
    from em_bench_eval.hub_upload import Repository

    api, to = HfApi(endpoint=hub.url), Repository(DATASET, "dataset")
    check_history(api, to, ["test"])
    api.create_repo(DATASET, repo_type="dataset", private=True)
    repo = hub.repo("dataset", DATASET)
    check_history(api, to, ["test"])
    shard, hidden = Entry.of(b"PAR1 labels"), Entry.of(b'{"private_labels": ["test"]}')
    pull = repo.discuss("an upload that was cut off", "", "maria", pull_request=True)
    repo.commit(f"refs/pr/{pull.num}", {"data/a/test-00000-of-00001.parquet": shard}, "part", None)
    pull.status = "closed"
    with pytest.raises(InputError, match="pull request 1"):
        check_history(api, to, ["test"])
    pull.status = "merged"
    check_history(api, to, ["test"])
    repo.commit("main", {"data/a/test-00000-of-00001.parquet": shard}, "all", None)
    with pytest.raises(InputError, match="main branch"):
        check_history(api, to, ["test"])
    repo.commit("main", {"stats.json": hidden}, "hidden", None)
    check_history(api, to, ["test"])
    with pytest.raises(InputError, match=r"keeps labels of test private[\s\S]*--private-labels test"):
        check_history(api, to, [])
    repo.commit("main", {"data/a/validation-0.parquet": shard}, "all", None)
    with pytest.raises(InputError, match="labels of test, validation are in"):
        check_history(api, to, ["test", "validation"])


# --- the leaderboard -------------------------------------------------------------------------------------------------


def test_the_leaderboard_is_set_up_and_never_overwritten(hub: HubDouble, tmp_path: Path) -> None:
    arguments = ("leaderboard", "--to", SPACE, "--submissions", SUBMISSIONS, "--dataset", DATASET)
    assert run(*arguments, "--labels", f"{DATASET}-labels") == 0
    assert hub.repo("space", SPACE).sdk == "static"
    assert set(hub.files("space", SPACE)) == {"README.md", "index.html"}
    files = hub.files("dataset", SUBMISSIONS)
    workflow = yaml.safe_load(files["ci/leaderboard.yml"])
    steps = workflow["jobs"]["update"]["steps"]
    assert f"--reference {DATASET}-labels" in steps[-1]["run"]
    assert steps[-1]["env"]["HF_TOKEN"] == "${{ secrets.HF_TOKEN }}"
    assert "which are private" in files["README.md"].decode()
    for text in (files["README.md"], hub.files("space", SPACE)["README.md"]):
        assert isinstance(yaml.safe_load(text.decode().split("---\n")[1]), dict)

    added = {"submissions/a/unet/predictions.parquet": Entry.of(b"PAR1"), "results.json": Entry.of(b"[]")}
    hub.repo("dataset", SUBMISSIONS).commit("main", added, "merged", None)
    hub.repo("space", SPACE).commit(
        "main", {"index.html": Entry.of(b"<p>built"), "a/b.html": Entry.of(b"")}, "page", None
    )
    assert run(*arguments) == 0
    assert hub.files("space", SPACE)["index.html"] == b"<p>built"
    assert "a/b.html" in hub.files("space", SPACE)
    assert hub.files("dataset", SUBMISSIONS)["results.json"] == b"[]"
    assert "which are private" not in hub.files("dataset", SUBMISSIONS)["README.md"].decode()

    page = tmp_path / "site"
    page.mkdir()
    with pytest.raises(InputError, match=r"no index\.html"):
        run(*arguments, "--page", page)
    (page / "index.html").write_text("<p>new")
    (page / ".env").write_text("HF_TOKEN=hf_writer")
    with pytest.raises(InputError, match="belong to no page"):
        run(*arguments, "--page", page)
    (page / ".env").unlink()
    assert run(*arguments, "--page", page) == 0
    assert hub.files("space", SPACE)["index.html"] == b"<p>new"


def test_the_update_command_of_the_texts_exists() -> None:
    from em_bench_eval.leaderboard.hub_space import names_of

    cli = pytest.importorskip("em_bench_eval.cli_leaderboard")
    words = names_of(SPACE, SUBMISSIONS, DATASET, None)["update"].split()
    assert words[:3] == ["em-bench", "leaderboard", "update"]
    with pytest.raises(SystemExit) as stopped:  # --help comes last: argparse has read all others
        cli.leaderboard([*words[2:], "--help"])
    assert stopped.value.code == 0


# --- the double itself -----------------------------------------------------------------------------------------------


def test_large_files_arrive_in_parts(hub: HubDouble, tmp_path: Path) -> None:
    hub.part_bytes = 1000
    (tmp_path / "a.parquet").write_bytes(os.urandom(4321))
    from em_bench_eval.hub_push import send

    files = {"a.parquet": tmp_path / "a.parquet"}
    hub.fail("PUT", "/part/3", status=503)
    done = send(files, hub_upload.Repository("my-lab/parts", "dataset"), "parts", waits_s=(0,))
    assert done.lfs_files == 1
    assert hub.count("PUT", "/part/") == 6
    assert hub.files("dataset", "my-lab/parts") == {"a.parquet": (tmp_path / "a.parquet").read_bytes()}


def test_requests_that_submissions_need(hub: HubDouble) -> None:
    from huggingface_hub import CommitOperationAdd, HfApi

    owner, stranger = (HfApi(endpoint=hub.url, token=token) for token in ("hf_writer", "hf_stranger"))
    repo = {"repo_id": SUBMISSIONS, "repo_type": "dataset"}
    owner.create_repo(**repo)
    made = stranger.create_commit(
        **repo, operations=[CommitOperationAdd("submissions/a/b.yaml", b"x: 1")], commit_message="b", create_pr=True
    )
    (pull,) = stranger.get_repo_discussions(**repo, discussion_type="pull_request", discussion_status="open")
    details = owner.get_discussion_details(**repo, discussion_num=pull.num)
    assert made.pr_num == pull.num
    assert "diff --git a/submissions/a/b.yaml" in (details.diff or "")
    assert "submissions/a/b.yaml" in owner.list_repo_files(**repo, revision=f"refs/pr/{pull.num}")
    comment = owner.comment_discussion(**repo, discussion_num=pull.num, comment="scored")
    owner.edit_discussion_comment(**repo, discussion_num=pull.num, comment_id=comment.id, new_content="scored again")
    owner.merge_pull_request(**repo, discussion_num=pull.num)
    details = owner.get_discussion_details(**repo, discussion_num=pull.num)
    assert [event.content for event in details.events if event.type == "comment"][-1] == "scored again"
    assert details.status == "merged"
    assert next(commit.title for commit in owner.list_repo_commits(**repo)).startswith("b (#")
    assert [found.id for found in owner.list_datasets(author="my-lab")] == [SUBMISSIONS]
    owner.create_branch(**repo, branch="old")
    owner.delete_branch(**repo, branch="old")
    owner.delete_repo(**repo)
    assert not hub.repos
