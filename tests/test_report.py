"""The leaderboard row, the choice of images, and the page."""

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from em_bench_eval import cli, rows
from em_bench_eval.cli_report import choose_images, read_score, report, write_together
from em_bench_eval.cli_score import score as score_command
from em_bench_eval.errors import InputError
from em_bench_eval.report import Example, render_page
from em_bench_eval.report_tables import strip, summary_table
from em_bench_eval.row import ROW_FORMAT, SCORE_FORMAT, build_row, check_row, dataset_name, read_row, to_json, utc_date
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction

EVIL = """</title></style><script>alert(1)</script>"'><img src=x onerror=alert(2)>${model}&amp;"""


def group(**dice):
    """Scores of a group: organelle=Dice; every other organelle is undefined."""
    values = {}
    for name in ORGANELLES:
        value = dice.get(name)
        values[f"{name}/dice__instance"] = values[f"{name}/pq"] = value
        values[f"{name}/iou__instance"] = None if value is None else value / (2 - value)
        values.update({f"{name}/{key}": int(value is not None) for key in ("n_reference", "n_prediction", "n_matched")})
    for metric in ("dice__instance", "iou__instance", "pq"):
        defined = [values[f"{name}/{metric}"] for name in dice]
        values[f"macro/{metric}"] = sum(defined) / len(defined)
    return values


def document(**changes):
    """A score document as ``em-bench score`` writes it."""
    inside, outside = group(mito=0.8), group(mito=0.7, nucleus=0.9)
    return {
        "format": SCORE_FORMAT,
        "metric_version": "1",
        "settings": {"min_size_nm": 0.0, "iou_threshold": 0.5, "reference_ids": "volume"},
        "settings_hash": "0123456789ab",
        "prediction": {"model": "unet", "checkpoint": "runs/unet", "settings": {"tile": 256}, "versions": {"x": "1"}},
        "dataset": {"path": "/home/somebody/em-organelle-wild", "config": "wild", "split": "test"},
        "images": 2,
        "groups": {
            "all": group(mito=0.75, nucleus=0.9),
            "domain=in": inside,
            "domain=out": outside,
            "source=a": inside,
            "source=b": outside,
        },
        "per_image": {"a/z/00000": inside, "b/z/00000": outside},
    } | changes


FACTS = {"a/z/00000": ("a", "in"), "b/z/00000": ("b", "out")}


# -- the row


def test_row_holds_the_headline_and_how_it_was_made(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    row = build_row(document())
    assert row["format"] == ROW_FORMAT
    assert row["date"] == "1970-01-02T00:00:00Z"
    assert row["dataset"]["path"] == "em-organelle-wild"  # no folder of the submitter
    assert row["reference_ids"] == "volume"
    assert row["scores"]["domain=out"]["nucleus/dice__instance"] == 0.9
    assert row["scores"]["domain=in"]["nucleus/dice__instance"] is None
    assert set(row["scores"]) == {"all", "domain=in", "domain=out"}
    assert len(row["scores"]["all"]) == 3 * (1 + len(ORGANELLES))
    assert row["software"]["report"]["numpy"] == np.__version__
    assert build_row(document()) == row


def test_row_survives_a_round_trip(tmp_path):
    row = build_row(document())
    (tmp_path / "row.json").write_text(to_json(row), encoding="utf-8")
    assert read_row(tmp_path / "row.json") == row


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mito/pq", 1.2, "cannot be a score"),
        ("mito/pq", -0.1, "cannot be a score"),
        ("mito/pq", "0.5", "cannot be a score"),
        ("mito/pq", True, "cannot be a score"),
        ("mito/pq", float("nan"), "cannot be a score"),
        ("mito/iou__instance", 0.9, "impossible"),
    ],
)
def test_row_refuses_impossible_scores(key, value, message):
    broken = document()
    broken["groups"]["all"][key] = value
    with pytest.raises(InputError, match=message):
        build_row(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "a JSON list"),
        ('{"format": "other"}', "not a leaderboard row"),
        ('{"images": NaN}', "NaN is not JSON"),
    ],
)
def test_read_row_refuses_other_files(tmp_path, text, message):
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_row(tmp_path / "row.json")
    with pytest.raises(InputError, match="cannot read"):
        read_row(tmp_path / "absent.json")


def test_row_needs_every_field():
    row = build_row(document())
    for key in row:
        with pytest.raises(InputError):
            check_row({name: value for name, value in row.items() if name != key}, "row")


def test_dataset_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "data").mkdir(parents=True)
    assert dataset_name("lab/em-organelle-wild") == "lab/em-organelle-wild"
    assert dataset_name("runs/data") == "data"
    assert dataset_name(str(tmp_path / "runs" / "data")) == "data"
    assert dataset_name("./lab/x/") == "x"


def test_date_must_be_seconds(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH"):
        utc_date()


# -- the choice of images


def many(count):
    dice = {f"{'abc'[i % 3]}/z/{i:05d}": (i * 37 % count) / count for i in range(count)}
    return dice, {record: (record[0], "out" if record[0] == "c" else "in") for record in dice}


def test_choice_has_best_median_worst_and_spreads():
    dice, facts = many(60)
    chosen = choose_images(dice, facts, 9)
    roles = {role: record for record, names in chosen.items() for role in names}
    assert dice[roles["worst"]] == min(dice.values())
    assert dice[roles["best"]] == max(dice.values())
    assert dice[roles["median"]] == sorted(dice.values())[29]
    sources = [facts[record][0] for record in chosen]
    assert sorted(sources.count(name) for name in "abc") == [3, 3, 3]
    assert chosen == choose_images(dict(reversed(dice.items())), facts, 9)  # the order of the rows does not matter
    for source in "abc":  # no two neighbours from a source of twenty slices
        slices = sorted(int(record[-5:]) for record in chosen if record[0] == source)
        assert min(np.diff(slices)) > 3


@pytest.mark.parametrize("count", range(7))
def test_choice_gives_as_many_as_there_are(count):
    dice, facts = many(5)
    assert len(choose_images(dice, facts, count)) == min(count, 5)


def test_choice_with_undefined_scores():
    dice, facts = many(4)
    assert set(choose_images(dict.fromkeys(dice), facts, 3).values()) == {()}
    one = {**dict.fromkeys(dice), next(iter(dice)): 0.5}
    assert choose_images(one, facts, 4)[next(iter(dice))] == ("worst", "best", "median")


# -- the page


class Page(HTMLParser):
    """Collects text, tags and attributes, and checks that tags close in order."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(score, facts=FACTS, examples=()):
    return render_page(score, build_row(score), facts, examples)


def test_page_is_well_formed_and_self_contained():
    text = page_of(document())
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "link" not in page.tags
    urls = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert urls
    assert all(url.startswith(("data:image/png;base64,", "#")) for url in urls)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_page_escapes_every_name():
    record, source = f"{EVIL}/z/00000", EVIL
    score = document(
        prediction={"model": EVIL, "checkpoint": EVIL, "settings": {EVIL: EVIL}, "versions": {EVIL: EVIL}},
        dataset={"path": f"lab/{EVIL.replace('/', '')}", "config": EVIL, "split": EVIL},
        settings_hash=EVIL,
        metric_version=EVIL,
        per_image={record: group(mito=0.5)},
    )
    score["groups"][f"source={EVIL}"] = group(mito=0.5)
    example = Example(record, source, EVIL, (), {Organelle.MITO: (1, 1, 1)}, (5.0, 5.0), small_picture())
    text = page_of(score, {record: (source, EVIL)}, [example])
    harmless = Page(page_of(document(), FACTS, [example_of("a/z/00000")]))
    page = Page(text)
    assert page.tags.count("script") == harmless.tags.count("script") == 1
    assert "onerror" not in {name for _, name, _ in page.attributes}
    assert all(value.startswith("data:") for tag, name, value in page.attributes if (tag, name) == ("img", "src"))
    assert "".join(page.words).count("<script>alert(1)</script>") >= 10  # shown as the text that it is
    assert "<script>alert" not in text


def small_picture():
    from em_bench_eval.colours import instance_colours
    from em_bench_eval.comparison import Drawing, Mark
    from em_bench_eval.pictures import draw

    instances = np.pad(np.ones((20, 20), int), 10)
    side = Drawing(instances, {1: Organelle.MITO}, instance_colours([1]), {1: Mark.HIT})
    return draw(np.full((40, 40), 90, np.uint8), instances > 1, (5.0, 5.0), side, side)


def example_of(record, roles=()):
    source, domain = FACTS[record]
    return Example(record, source, domain, roles, {Organelle.MITO: (1, 2, 1)}, (5.0, 5.0), small_picture())


def test_page_shows_pictures_with_their_captions():
    text = page_of(document(), FACTS, [example_of("a/z/00000", ("best", "median")), example_of("b/z/00000")])
    words = " ".join(Page(text).words)
    for expected in (
        "a/z/00000",
        "best",
        "median",
        "1 reference, 2 predicted, 0 missed, 1 unmatched",
        "5 nm per pixel",
    ):
        assert expected in words
    assert text.count('class="panel"') == 6
    assert 'href="#picture-1"' in text
    assert 'id="picture-1"' in text


def test_undefined_is_a_dash_and_macro_difference_compares_the_same_organelles():
    groups = document()["groups"]
    table = summary_table({name: groups[name] for name in ("all", "domain=in", "domain=out")})
    lines = {re.search(r'"row">(.*?)<', line).group(1): line for line in table.split("<tr")[2:]}
    assert "nan" not in table.lower()
    assert lines["ER"].count("–") == 4
    assert "−0.100" in lines["Mitochondria"]
    # macro: 0.8 in-domain (mito alone), 0.8 out-of-domain (mito and nuclei): the fall is that of mito, not zero
    assert "−0.100" in lines["Macro average"]
    assert "–" in lines["Nuclei"].rpartition("<td")[2]


def test_strip_places_every_image_up_to_its_limit():
    dice, facts = many(1500)
    per_image = {record: {"macro/dice__instance": value} for record, value in dice.items()}
    lines = strip(per_image, facts, {next(iter(dice)): 0})
    assert lines.count("<i ") == 3 * 400
    assert lines.count("<a ") == 1


# -- the command


@pytest.fixture(scope="module")
def scored(tiny_dataset, tmp_path_factory):
    """A prediction folder for the tiny dataset: the reference, with the first instance of each image lost."""
    folder = tmp_path_factory.mktemp("prediction")
    dataset = rows.open_rows(tiny_dataset, "wild", "test")

    def predictions():
        for row in dataset:
            image = rows.decode_row(row)
            kept = sorted(image.organelle_of)[1:]
            instances = np.where(np.isin(image.instances, kept), image.instances, 0).astype(np.uint32)
            yield Prediction(image.record_id, instances, {id_: image.organelle_of[id_] for id_ in kept})

    info = {"model": "copy", "checkpoint": None, "dataset": str(tiny_dataset), "config": "wild", "split": "test"}
    rows.write_predictions(folder, predictions(), {**info, "settings": {}, "versions": {}})
    assert score_command([str(folder), str(tiny_dataset)]) == 0
    return folder


def test_report_end_to_end(scored, tiny_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out = tmp_path / "report"
    assert cli.main(["report", str(scored), str(tiny_dataset), "--out", str(out), "--images", "4"]) == 0
    assert str(out / "index.html") in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "row.json"]
    row, score = read_row(out / "row.json"), json.loads((scored / "score.json").read_text())
    assert row["scores"]["all"]["mito/dice__instance"] == score["groups"]["all"]["mito/dice__instance"]
    text = (out / "index.html").read_text(encoding="utf-8")
    assert Page(text).tags.count("figure") == 4
    for role in ("best", "median", "worst"):
        assert f'role">{role}<' in text
    assert len(text) < 8e6
    assert report([str(scored), str(tiny_dataset), "--out", str(out), "--images", "4"]) == 0
    assert (out / "index.html").read_text(encoding="utf-8") == text  # a second run changes nothing


def test_report_without_pictures_beside_the_prediction(scored, tiny_dataset):
    assert report([str(scored), str(tiny_dataset), "--images", "0"]) == 0
    assert read_row(scored / "report" / "row.json")["model"] == "copy"


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of the scored prediction, to spoil."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("predictions.parquet", "prediction.json", "score.json"):
        (folder / name).write_bytes((scored / name).read_bytes())
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_unscored_prediction(copied):
    (copied / "score.json").unlink()
    with pytest.raises(InputError, match="em-bench score"):
        read_score(copied)


def test_no_prediction_at_all(tmp_path):
    with pytest.raises(InputError, match="em-bench predict"):
        read_score(tmp_path)


def test_score_of_another_prediction(copied):
    edit_json(copied / "prediction.json", model="another")
    with pytest.raises(InputError, match="earlier prediction"):
        read_score(copied)


def test_predictions_newer_than_the_score(copied):
    later = (copied / "score.json").stat().st_mtime + 10
    os.utime(copied / "predictions.parquet", (later, later))
    with pytest.raises(InputError, match="predictions written after it"):
        read_score(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "v0"}, "not a complete score"),
        ({"groups": {}}, "not a complete score"),
        ({"settings": {"old": 1}}, "another version"),
        ({"per_image": {"x/z/00000": {"macro/dice__instance": 1.5}}}, "cannot be a score"),
    ],
)
def test_damaged_score(copied, changes, message):
    edit_json(copied / "score.json", **changes)
    with pytest.raises(InputError, match=message):
        read_score(copied)


def test_another_dataset_or_another_reference(copied, tiny_dataset, tmp_path, capsys):
    score = json.loads((copied / "score.json").read_text())
    record, values = next((r, v) for r, v in score["per_image"].items() if v.get("mito/n_reference"))
    edit_json(copied / "score.json", per_image={**score["per_image"], "absent/z/00000": values})
    out = tmp_path / "out"
    assert cli.main(["report", str(copied), str(tiny_dataset), "--out", str(out)]) == 2
    assert "absent/z/00000" in capsys.readouterr().err
    changed = {**values, "mito/n_reference": values["mito/n_reference"] + 1}
    edit_json(copied / "score.json", per_image={record: changed})
    assert cli.main(["report", str(copied), str(tiny_dataset), "--out", str(out)]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert not out.exists()


def test_out_is_a_file(scored, tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        report([str(scored), str(tiny_dataset), "--out", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupted_writing_leaves_the_earlier_report(tmp_path):
    write_together(tmp_path, {"row.json": "old", "index.html": "old"})
    with pytest.raises(UnicodeEncodeError):
        write_together(tmp_path, {"row.json": "new", "index.html": "\ud800"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"row.json": "old", "index.html": "old"}


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        report(["--help"])
    assert stopped.value.code == 0
    assert "em-bench report predictions/unet em-organelle-wild" in capsys.readouterr().out
