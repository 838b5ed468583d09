"""What of a dataset folder may be published, and publishing it: from the folder to ``load_dataset``."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import fake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_double import HubDouble, online

from dataset_builder import publishable
from dataset_builder.build import Job, build
from dataset_builder.cli_publish import publish as publish_command
from dataset_builder.licences import redistributable
from dataset_builder.publish import planned
from dataset_builder.publishable import verdicts
from dataset_builder.recipes import row_fingerprints
from dataset_builder.split_file import read_split_file
from dataset_builder.splits import SplitPolicy
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row, open_rows

NAME = "my-lab/em-organelle-wild"
OPEN = ("vnc_sstem", "hela_sbfsem")  # lucchipp may not be redistributed
KINDS = ["image", "instances", "ignore"]


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_dataset, tmp_path / "built" / "em-organelle-wild"))


@pytest.fixture(scope="module")
def published(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that would be uploaded, as a folder."""
    return materialised(tiny_dataset, tmp_path_factory.mktemp("published") / "em-organelle-wild")


def materialised(dataset: Path, out: Path, *without: str) -> Path:
    with planned(dataset, without) as plan:
        for name, path in plan.files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    assert not list(dataset.parent.glob(".*")), "nothing is left beside the dataset"
    return out


def rows_of(dataset: Path | str, config: str = "wild", **options: Any) -> list[dict[str, Any]]:
    """All rows of a configuration, images still encoded."""
    found = datasets.load_dataset(str(dataset), config, **options)
    rows = []
    for fold in found.values():
        for column in set(KINDS) & set(fold.column_names):
            fold = fold.cast_column(column, datasets.Image(decode=False))
        rows += list(fold)
    return rows


def edit_json(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def run(*arguments: object) -> int:
    return publish_command([str(argument) for argument in arguments])


# --- what may be published -------------------------------------------------------------------------------------------


def test_the_published_part_is_the_dataset_of_its_sources_built_alone(
    published: Path, tiny_dataset: Path, tiny_raw: Path, tmp_path: Path
) -> None:
    """The builder itself is the other way to the same folder."""
    alone = tmp_path / "alone" / "em-organelle-wild"
    build([Job.of(name, tiny_raw, {}) for name in OPEN], alone, read_split_file(tiny_dataset / "splits.json"))
    assert rows_of(published, "volumes") == rows_of(alone, "volumes")
    same = [path.relative_to(alone) for pattern in ("data/*/*", "volumes/**/c/**/*") for path in alone.glob(pattern)]
    for path in same:
        assert (alone / path).is_dir() or (alone / path).read_bytes() == (published / path).read_bytes(), path
    ours, theirs = (json.loads((folder / "stats.json").read_text()) for folder in (published, alone))
    assert ours == theirs
    headers = [yaml.safe_load((folder / "README.md").read_text().split("---")[1]) for folder in (published, alone)]
    for header in headers:
        for config in header["configs"]:
            assert config.pop("description").startswith("content ")
    assert headers[0] == headers[1], "configurations and counts"


def test_rows_of_open_sources_are_all_there_and_unchanged(published: Path, tiny_dataset: Path) -> None:
    dataset = tiny_dataset
    assert redistributable(dataset) == {"lucchipp": False, "vnc_sstem": True, "hela_sbfsem": True}
    expected = [row for row in rows_of(dataset) if row["source"] in OPEN]
    assert rows_of(published) == expected
    with pytest.raises(InputError, match="check --config"):
        open_rows(published, "homogeneous", "test")  # nothing of it may be published
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    for row in rows_of(published, "volumes"):
        ours, theirs = (zarr.open_group(str(folder / row["zarr"]), mode="r") for folder in (published, dataset))
        np.testing.assert_array_equal(ours["s0"][:], theirs["s0"][:])
    instances = pq.read_table(published / "instances.parquet").to_pylist()
    kept = {row["volume_id"] for row in expected}
    assert instances == [
        row for row in pq.read_table(dataset / "instances.parquet").to_pylist() if row["volume_id"] in kept
    ]


def test_nothing_of_a_withheld_source_leaks(published: Path, tiny_dataset: Path) -> None:
    closed = [row for row in rows_of(tiny_dataset) if row["source"] == "lucchipp"]
    assert closed
    everything = b"".join(path.read_bytes() for path in sorted(published.rglob("*")) if path.is_file())
    for row in closed:
        assert row["image"]["bytes"] not in everything
        assert row["instances"]["bytes"] not in everything
    assert not list(published.glob("volumes/lucchipp*"))
    for path in published.rglob("*.parquet"):
        assert b"lucchi" not in path.read_bytes()
    assert "lucchipp" in (published / "LICENSES.md").read_text()
    assert "Supervoxel-Based Segmentation" in (published / "CITATION.bib").read_text(), "who rebuilds it cites it"


def test_all_that_the_builder_writes_is_known(tiny_dataset: Path) -> None:
    volumes = publishable.all_volumes(tiny_dataset)
    written = {path.relative_to(tiny_dataset).as_posix() for path in tiny_dataset.rglob("*") if path.is_file()}
    assert set(publishable.known_files(tiny_dataset, volumes)) == written, "a new kind of file: may it be published?"


def test_only_files_that_the_builder_wrote_are_taken(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (".env", "notes.txt", "quality.html", "data/wild.csv", "volumes/old.zarr/c/0", "figures/me.webp"):
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_text("HF_TOKEN=hf_writer")
    with planned(dataset) as plan:
        assert not any(path.read_bytes() == b"HF_TOKEN=hf_writer" for path in plan.files.values())
    assert run(dataset, "--to", NAME, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "notes.txt: 1 files, 18 B (em-bench build did not write it)" in shown
    assert "volumes/old.zarr" in shown


def test_figures_are_drawn_again_without_withheld_sources(dataset: Path, tmp_path: Path) -> None:
    from dataset_builder.figures import render

    render(dataset)
    before = {path.name: path.read_bytes() for path in (dataset / "figures").iterdir()}
    out = materialised(dataset, tmp_path / "em-organelle-wild")
    after = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert not set(before.values()) & set(after.values())
    named = re.findall(r"\]\((figures/[^)]+)\)", (out / "README.md").read_text())
    assert named
    assert all((out / name).is_file() for name in named)


def test_shards_with_rows_of_both_kinds_are_divided(dataset: Path, tmp_path: Path) -> None:
    """``--without`` of a source that shares a shard with another one."""
    out = materialised(dataset, tmp_path / "em-organelle-wild", "hela_sbfsem")
    assert rows_of(out) == [row for row in rows_of(dataset) if row["source"] == "vnc_sstem"]
    for name in ("LICENSES.md", "README.md", "splits.json", "sources.json", "stats.json", "CITATION.bib"):
        assert "hela" not in (out / name).read_text().lower(), "dropped means dropped: not even a recipe"
    for path in out.glob("data/*/*.parquet"):
        assert pq.read_schema(path).equals(pq.read_schema(next(dataset.glob("data/*/*.parquet"))), check_metadata=True)


def test_the_same_dataset_gives_the_same_files(dataset: Path, tmp_path: Path) -> None:
    first, second = (materialised(dataset, tmp_path / name) for name in ("1", "2"))
    for path in first.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_a_recipe_makes_the_same_rows(
    published: Path,
    tiny_raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command lines of the recipe, run as written in the published folder."""
    published = Path(shutil.copytree(published, tmp_path / "downloaded"))
    recipe = json.loads((published / "recipes" / "lucchipp.json").read_text())
    assert recipe["rows_fingerprint"] in (published / "README.md").read_text()
    assert recipe["made_with"]["em-organelle-wild"]
    fetch, make, check = (shlex.split(command) for command in recipe["commands"])
    assert fetch == ["em-bench", "fetch", "lucchipp", "--raw", "raw"]
    monkeypatch.chdir(published)
    Path("raw").symlink_to(tiny_raw)
    assert main(make[1:]) == 0
    capsys.readouterr()
    assert run(*check[2:]) == 0
    shown = capsys.readouterr().out
    assert f"rows fingerprint {recipe['rows_fingerprint']}" in shown
    assert f"{recipe['rows']} rows" in shown
    rebuilt = open_rows("rebuilt-lucchipp", "wild", "test")
    assert {row["source"] for row in rebuilt} == {"lucchipp"}


def test_another_pixel_is_another_fingerprint(tiny_dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    raw = fake.lucchipp(tmp_path / "raw", seed=9).parent
    build([Job.of("lucchipp", raw, {})], other, SplitPolicy())
    assert row_fingerprints(other, ["lucchipp"])["lucchipp"] != row_fingerprints(tiny_dataset, ["lucchipp"])["lucchipp"]


# --- refuse rather than leak -----------------------------------------------------------------------------------------


def test_the_strictest_word_counts(dataset: Path) -> None:
    edit_json(dataset / "sources.json", lambda content: content["sources"]["lucchipp"].update(redistributable=True))
    (verdict,) = (verdict for verdict in verdicts(dataset) if verdict.source == "lucchipp")
    assert not verdict.as_pixels, "the installed source still says no, and so does its licence"
    edit_json(dataset / "sources.json", lambda content: content["sources"]["vnc_sstem"].update(redistributable=False))
    assert [verdict.source for verdict in verdicts(dataset) if verdict.as_pixels] == ["hela_sbfsem"]


def _set_licence(dataset: Path, licence: str) -> None:
    path = dataset / "volumes.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("licence")
    values = [
        licence if source == "vnc_sstem" else old
        for source, old in zip(table["source"].to_pylist(), table["licence"].to_pylist(), strict=True)
    ]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values)), path)


def _forget(name: str) -> Any:
    return lambda dataset: edit_json(dataset / "sources.json", lambda content: content["sources"].pop(name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda dataset: (dataset / "sources.json").unlink(), "no sources.json"),
        (lambda dataset: (dataset / "sources.json").write_text("{}"), "does not say what its sources allow"),
        (_forget("vnc_sstem"), "not clear what the licence of source vnc_sstem"),
        (lambda dataset: _set_licence(dataset, "proprietary"), "not clear what the licence of source vnc_sstem"),
        (lambda dataset: (dataset / "stats.json").unlink(), "not a dataset folder"),
        (lambda dataset: (dataset / "README.md").unlink(), "no README.md"),
        (lambda dataset: edit_json(dataset / "stats.json", lambda content: content.pop("version")), "no 'version'"),
    ],
)
def test_what_is_not_clear_is_refused(dataset: Path, damage: Any, message: str) -> None:
    damage(dataset)
    with pytest.raises(InputError, match=message), planned(dataset):
        pass


def test_a_private_source_is_published_or_refused_but_never_a_recipe(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [name for name in publishable.source_names() if name != "vnc_sstem"]
    monkeypatch.setattr(publishable, "source_names", lambda: known)
    assert next(verdict for verdict in verdicts(dataset) if verdict.source == "vnc_sstem").as_pixels
    edit_json(dataset / "sources.json", lambda content: content["sources"]["vnc_sstem"].update(redistributable=False))
    with pytest.raises(InputError, match=r"nobody else could rebuild it[\s\S]*--without vnc_sstem"):
        verdicts(dataset)
    dropped = verdicts(dataset, ["vnc_sstem"])
    assert [verdict.source for verdict in dropped if verdict.dropped] == ["vnc_sstem"]


def test_nothing_left_to_publish(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everything = [part for name in OPEN for part in ("--without", name)]
    with pytest.raises(InputError, match=r"no source of .* may be redistributed"):
        run(dataset, "--to", NAME, *everything)
    assert run(dataset, "--to", NAME, *everything, "--dry-run") == 0
    assert "upload   0 files" in capsys.readouterr().out


def test_dropping_every_source_is_refused(dataset: Path) -> None:
    everything = [part for name in ("lucchipp", *OPEN) for part in ("--without", name)]
    with pytest.raises(InputError, match=r"--without leaves no source of[\s\S]*leave out fewer"):
        run(dataset, "--to", NAME, *everything, "--dry-run")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--to", NAME], "there is no folder"),
        ([".", "--to", NAME], "not a dataset folder"),
        (["{}", "--to", "em-organelle-wild"], "ORG/NAME"),
        (["{}", "--to", "a/../b"], "ORG/NAME"),
        (["{}", "--to", NAME, "--revision-tag", "main"], "name of the branch"),
        (["{}", "--to", NAME, "--revision-tag", "v 1"], "is a name"),
        (["{}", "--to", NAME, "--without", "vnc"], "did you mean 'vnc_sstem'"),
        (["{}", "--to", NAME, "--token-file", "nowhere"], "cannot read the token file"),
    ],
)
def test_unusable_arguments(arguments: list[str], message: str, tiny_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(*(argument.format(tiny_dataset) for argument in arguments))


def test_nowhere_to_write(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publishable, "write_parquet", full)
    with pytest.raises(InputError, match=r"cannot write .*em-organelle-wild.publishable"), planned(tiny_dataset):
        pass
    assert not list(tiny_dataset.parent.glob(".*"))


def test_two_runs_at_once(dataset: Path) -> None:
    with planned(dataset), pytest.raises(InputError, match="another run is publishing"), planned(dataset):
        pass


def test_faults_of_the_hub_reach_the_user_as_advice(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("hf_nobody\n")
    with HubDouble() as hub, online(hub, monkeypatch):
        with pytest.raises(InputError, match="does not know who you are") as caught:
            run(dataset, "--to", NAME, "--token-file", token)
        token.write_text("hf_stranger\n")
        with pytest.raises(InputError, match="does not let you write there"):
            run(dataset, "--to", NAME, "--token-file", token)
        assert not hub.repos
    shown = capsys.readouterr()
    assert "hf_nobody" not in str(caught.value) + shown.out + shown.err
    assert not list(dataset.parent.glob(".*"))


# --- end to end, each side in its own process ------------------------------------------------------------------------

PUBLISH = "import sys; from dataset_builder.cli_publish import publish; sys.exit(publish(sys.argv[1:]))"
READ = """
import hashlib, json, sys
import datasets
name, revision = sys.argv[1:]
found = {}
def digest(rows):
    for column in ("image", "instances", "ignore"):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return [hashlib.sha256(repr(sorted((k, {**v, "path": None} if k in ("image", "instances", "ignore") and v else v)
            for k, v in row.items())).encode()).hexdigest() for row in rows]
for streaming in (True, False):
    rows = datasets.load_dataset(name, "wild", split="test", streaming=streaming, revision=revision)
    found[str(streaming)] = digest(rows)
found["default"] = {split: len(rows) for split, rows in datasets.load_dataset(name, revision=revision).items()}
volumes = datasets.load_dataset(name, "volumes", split="volumes", revision=revision)
found["volumes"] = volumes["volume_id"][:]
try:
    import zarr
    image = zarr.open_group(f"hf://datasets/{name}@{revision}/{volumes[0]['zarr']}", mode="r")["s0"]
    found["crop"] = image[2:5, 10:20, 30:40].tolist()
except ImportError:
    found["crop"] = None
print(json.dumps(found))
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[HubDouble, dict[str, str]]]:
    with HubDouble() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_DEBUG": "1"}
        home = {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_writer"}
        yield hub, {**os.environ, **online, **home}


def process(code: str, *arguments: object, env: Mapping[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_from_the_folder_to_load_dataset_and_zarr(
    tiny_dataset: Path, published: Path, tmp_path: Path, client: tuple[HubDouble, dict[str, str]]
) -> None:
    (hub, environment), dataset = client, tiny_dataset
    told = process(PUBLISH, dataset, "--to", NAME, "--revision-tag", "v1", env=environment, cwd=tmp_path)
    assert "compared: every file there" in told.stdout
    local = {path.relative_to(published).as_posix(): path for path in published.rglob("*") if path.is_file()}
    there = hub.files("dataset", NAME, "v1")
    assert {name: path.read_bytes() for name, path in local.items()} == there
    assert hub.repo("dataset", NAME).private

    read = process(READ, NAME, "v1", env=environment, cwd=tmp_path)
    found = json.loads(read.stdout.splitlines()[-1])
    names: dict[str, Any] = {}
    exec(READ.split("for streaming")[0].replace("name, revision = sys.argv[1:]", ""), names)
    expected = names["digest"](datasets.load_dataset(str(published), "wild", split="test"))
    assert found["True"] == found["False"] == expected
    assert len(expected) == sum(row["fold"] == "test" and row["source"] in OPEN for row in rows_of(dataset))
    assert found["default"] == {"wild": len(rows_of(published))}
    volume = rows_of(published, "volumes")[0]
    assert found["volumes"][0] == volume["volume_id"]
    if found["crop"] is not None:
        import zarr

        image = zarr.open_group(str(dataset / volume["zarr"]), mode="r")["s0"]
        assert found["crop"] == image[2:5, 10:20, 30:40].tolist()

    stranger = {**environment, "HF_TOKEN": "hf_stranger", "HF_HOME": str(tmp_path / "other")}
    with pytest.raises(AssertionError, match="doesn't exist on the Hub or cannot be accessed"):
        process(READ, NAME, "v1", env=stranger, cwd=tmp_path)
    # the token was in the environment and with HF_DEBUG the client tells a lot; it is printed and stored nowhere
    for text in (told.stdout, told.stderr):
        assert "hf_writer" not in text
    for path in [*tmp_path.rglob("*"), *(tmp_path / "hf").rglob("*")]:
        assert not path.is_file() or b"hf_writer" not in path.read_bytes(), path


def test_kill_9_while_publishing_and_the_same_command_continues(
    dataset: Path, published: Path, tmp_path: Path, client: tuple[HubDouble, dict[str, str]]
) -> None:
    hub, environment = client
    arguments = [str(dataset), "--to", NAME, "--revision-tag", "v1"]
    meet = hub.fail("POST", "/commit/", hold=True, skip=1, cut=True)
    child = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert meet.seen.wait(120)
    child.kill()
    child.wait(30)
    meet.release.set()
    assert meet.done.wait(30)
    assert hub.files("dataset", NAME) == {}, "nothing is visible"
    assert list(dataset.parent.glob(".*")), "what the killed run could not clear up"
    large = hub.count("PUT", "/lfs/")
    told = process(PUBLISH, *arguments, env=environment, cwd=tmp_path)
    names = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert set(hub.files("dataset", NAME, "v1")) == names
    assert f"sent now: {len(names) - 64}," in told.stdout, "the first commit of 64 files had arrived"
    assert hub.count("PUT", "/lfs/") == large
    assert not list(dataset.parent.glob(".*"))


def test_decoded_rows_are_those_of_the_dataset(published: Path, tiny_dataset: Path) -> None:
    ours = decode_row(open_rows(published, "wild", "test")[0])
    (theirs,) = (
        image for image in map(decode_row, open_rows(tiny_dataset, "wild", "test")) if image.record_id == ours.record_id
    )
    np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(ours.instances, theirs.instances)
