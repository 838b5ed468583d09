"""The leaderboard's pages: what stands in which table with which rank, texts of strangers, and the files written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from html_page import Page
from leaderboard_documents import ALL, document, documents, scaled

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.quoted import quoted_table
from em_bench_eval.leaderboard.quoted_retina import DATASETS, MODELS, PARTS, PEREZ, retina_table
from em_bench_eval.leaderboard.site import front_matter, render_site
from em_bench_eval.leaderboard.site_levels import levels_section
from em_bench_eval.leaderboard.site_rows import Key, newest, sections_of
from em_bench_eval.leaderboard.site_text import interval, link, metric_title, number, slug, text
from em_bench_eval.leaderboard.site_values import groups_of, value_of, views_of
from em_bench_eval.paper_tables import PUBLISHED, faults

EVIL = """</script></title></style><script>alert(1)</script>"'><img src=x onerror=alert(2)>${x}&amp;\u202e\x00"""


# -- which table, which rank


def test_ranks_share_ties_and_say_which_order_is_uncertain() -> None:
    results = [
        document("clear", dict.fromkeys(ALL, 0.95), width=0.01),
        document("first of two", scaled(0.9), date="2026-01-02T00:00:00Z"),
        document("second of two", scaled(0.9), date="2026-01-03T00:00:00Z"),
        document("last, overlapping", scaled(0.85)),
        document("no interval", scaled(0.2), width=None),
    ]
    (section,) = sections_of(reversed(results), "wild")
    assert [(row.result["submission"]["model"], row.rank, row.span) for row in section.rows] == [
        ("clear", 1, (1, 2)),  # the last one has no interval and could be anywhere
        ("first of two", 2, (2, 5)),
        ("second of two", 2, (2, 5)),
        ("last, overlapping", 4, (2, 5)),
        ("no interval", 5, None),
    ]
    (section,) = sections_of(results[:-1], "wild")
    assert [row.span for row in section.rows] == [(1, 1), (2, 4), (2, 4), (2, 4)]


def test_nothing_is_ranked_with_what_it_cannot_beat() -> None:
    other = dict(document("x", ALL)["dataset"])
    results = [
        document("ours", ALL, date="2026-02-01T00:00:00Z"),
        document("shown points", scaled(1.1), prompts="oracle:points"),
        document("no organelles", scaled(1.1), agnostic=True),
        document("shown boxes, no organelles", scaled(1.1), agnostic=True, prompts="oracle:boxes"),
        document("older metric", scaled(1.1), metric_version="1"),
        document("other settings", scaled(1.1), settings_hash="0" * 12),
        document("other images", scaled(1.1), dataset={**other, "split_hash": "6" * 64}),
        document("other labels", scaled(1.1), dataset={**other, "fingerprint": "content 2"}),
        document("validation", scaled(1.1), split="validation"),
        document("elsewhere", scaled(1.1), config="homogeneous"),
    ]
    sections = sections_of(results, "wild")
    found = {section.rows[0].result["submission"]["model"]: section for section in sections}
    assert len(sections) == 9
    assert all(len(section.rows) == 1 for section in sections)
    assert {name for name, section in found.items() if section.ranked} == {"ours"}
    assert {name for name, section in found.items() for row in section.rows if row.rank} == {"ours"}
    apart = {name: section.apart for name, section in found.items() if section.apart}
    assert apart["older metric"] == "not comparable: another metric version"
    assert apart["other settings"] == "not comparable: another settings"
    assert apart["other images"] == "not comparable: another images of the split"
    assert apart["other labels"] == "not comparable: another content of the dataset"
    assert "validation" in apart["validation"]
    assert len(apart) == 5
    assert len({section.id for section in sections}) == len(sections)
    current = Key.of(results[4])
    assert [row.rank for row in sections_of(results, "wild", current)[0].rows] == [1]
    assert sections_of(results, "wild", current)[0].rows[0].result is results[4]


def test_a_row_that_claims_a_rank_it_cannot_have_gets_none() -> None:
    liar = document("liar", ALL, prompts="oracle:masks") | {"ranked": True}
    (section,) = sections_of([liar], "wild")
    assert not section.ranked
    assert section.rows[0].rank is None


def test_an_undefined_headline_has_no_rank_and_comes_last() -> None:
    empty = document("undefined", ALL)
    for values in empty["scores"].values():
        values["macro/dice__instance"] = None
    (section,) = sections_of([empty, document("ours", scaled(0.1))], "wild")
    assert [(row.result["submission"]["model"], row.rank) for row in section.rows] == [("ours", 1), ("undefined", None)]


def test_scoring_again_replaces_the_same_key_and_nothing_else() -> None:
    once = document("ours", ALL, hash="a" * 64)
    again = document("ours", scaled(0.9), hash="a" * 64, date="2026-03-01T00:00:00Z")
    older = document("ours", scaled(0.8), hash="a" * 64, metric_version="1")
    assert newest([again, older, once]) == [older, again]
    taken: set[str] = set()
    first, second = sections_of([again, older, once], "wild", taken=taken)
    assert first.rows[0].slug == slug("ours", "a" * 64)
    assert second.rows[0].slug.startswith(first.rows[0].slug + "-")
    assert len(taken) == 2


# -- values, and why there is none


def test_every_undefined_value_says_why() -> None:
    result = document("ours", ALL)
    assert value_of(result, "all", "mito", "dice__instance").value == 0.8
    assert value_of(result, "all", "mito", "dice__instance").interval == pytest.approx((0.75, 0.85))
    assert value_of(result, "all", "golgi", "pq").reason == "a"
    assert value_of(result, "domain=in", "endo", "pq").reason == "a"
    assert value_of(result, "source=elsewhere", "mito", "pq").reason == "e"
    assert value_of(result, "all", "mito", "nsd__instance").reason == "c"
    result["scores"]["all"] |= {"mito/pq": None, "er/pq": None, "er/n_reference": 0, "er/n_prediction": 0}
    assert value_of(result, "all", "mito", "pq").reason == "d"
    assert value_of(result, "all", "er", "pq").reason == "b"
    agnostic = document("no organelles", ALL, agnostic=True)
    assert value_of(agnostic, "all", "macro", "pq").value == pytest.approx(agnostic["scores"]["all"]["any/pq"])
    assert value_of(agnostic, "all", "mito", "dice__instance").value == 0.8  # the stratified twin
    assert value_of(agnostic, "all", "mito", "pq").reason == "f"


def test_an_interval_without_width_is_none() -> None:
    result = document("ours", ALL, width=0.0)
    assert value_of(result, "all", "mito", "dice__instance").interval is None
    assert sections_of([result], "wild")[0].rows[0].span is None


def test_metrics_and_images_are_those_that_results_have() -> None:
    views = views_of([document("ours", ALL)])
    assert [view.metrics for view in views] == [("dice__instance", "iou__instance"), ("pq",), ("voi__union",)]
    assert list(groups_of([document("ours", ALL)])) == [
        *("all", "domain=in", "domain=out", "source=cell_in", "source=cell_out"),
    ]


# -- texts


def test_links_are_http_or_none() -> None:
    assert 'href="https://arxiv.org/abs/1?a=b&amp;c=d"' in link("https://arxiv.org/abs/1?a=b&c=d", "paper")
    refused = (
        "none",
        "",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,x",
        "//evil.org",
        "file:///etc",
    )
    spoofed = ("https://good.org@evil.org/", 'https://x.org/"onclick=alert(1)', "https://x.org/ y", "https://x.org\n/y")
    strange = ("https://x.org/<script>", "https://аpple.com/", "http:x.org", "https://", "https://x.org/" + "y" * 600)
    for address in (*refused, *spoofed, *strange):
        assert link(address, "paper") == "", address


def test_texts_cannot_be_more_than_texts() -> None:
    shown = text(EVIL)
    assert "<" not in shown
    assert '"' not in shown
    assert "\u202e" not in shown
    assert slug("../../etc/passwd", "ab" * 32) == "etc-passwd-abababababab"
    assert re.fullmatch(r"[a-z0-9-]+", slug(EVIL, "zz/../" + "a" * 60, "again"))
    assert len(slug("x" * 5000, "a" * 64)) < 80


def test_numbers_are_rounded_as_a_browser_rounds_them() -> None:
    assert [number(value) for value in (0.0625, 0.1875, 1.0005, 0.9996, 1234)] == [
        *("0.063", "0.188", "1.000", "1.000", "1,234"),
    ]
    assert interval((0.671, 0.778), "pq") == ".67–.78"
    assert interval((0.7701, 0.7719), "pq") == ".770–.772"
    assert interval((0.0, 1.0), "pq") == ".00–1.00"
    assert interval((1.25, 12.5), "voi__union") == "1.25–12.50"
    assert metric_title("hd95__matched_nm") == "HD95 (matched, nm)"


# -- the site


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return documents()


def test_the_site_is_well_formed_and_loads_nothing(results: list[dict[str, Any]], tmp_path: Path) -> None:
    index = render_site(results, tmp_path / "site", dataset="lab/em-organelle-wild")
    pages = [index, *sorted((tmp_path / "site" / "submissions").glob("*.html"))]
    assert len(pages) == 1 + len(results)
    for path in pages:
        page = Page(path)
        policy = next(value for value in page.values("content") if "default-src" in value)
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.partition("script-src")[2]
        loaded = [v for tag, name, v in page.attributes if name in ("src", "srcset") or (tag, name) == ("link", "href")]
        assert all(value.startswith("data:") for value in loaded)
        for address in page.values("href"):
            if not address.startswith(("http", "#", "data:")):  # every link inside the site leads somewhere
                target, _, anchor = address.partition("#")
                assert (path.parent / target).is_file(), address
                assert not anchor or f'id="{anchor}"' in (path.parent / target).read_text(encoding="utf-8"), address
        ids = page.values("id")
        assert len(ids) == len(set(ids))
    assert yaml.safe_load((tmp_path / "site" / "README.md").read_text().split("---")[1])["sdk"] == "static"


def test_the_tables_are_in_the_page_without_a_script(results: list[dict[str, Any]], tmp_path: Path) -> None:
    page = render_site(results, tmp_path).read_text(encoding="utf-8")
    body = page.partition('id="data"')[0]
    for shown in ("0.700", ".65–.75", "best", "Team B", "oracle:points", "Not comparable (1)", "Mitochondria only"):
        assert shown in body
    assert body.index('id="wild-automatic"') < body.index('id="wild-prompted"') < body.index('id="wild-agnostic"')
    assert "NaN" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert data["rows"][slug("best", results[0]["submission"]["hash"])]["all"]["pq"][0][1] == pytest.approx(0.64)


def test_what_a_stranger_writes_stays_text(tmp_path: Path) -> None:
    stated = dict.fromkeys(("team", "compute", "contact", "notes", "form"), EVIL)
    evil = document(
        EVIL, ALL, **stated, paper="javascript:alert(1)", code='https://x.org/"><script>', training_data=[EVIL]
    )
    evil["submission"]["prompts"] = EVIL
    for part in ("groups", "scores", "intervals"):
        evil[part][f"source={EVIL}"] = evil[part].pop("source=cell_in")
    evil["per_source"][EVIL] = {**evil["per_source"].pop("cell_in"), "domains": [EVIL]}
    evil |= {"ranked": False, "metric_version": EVIL, "settings_hash": EVIL, "date": EVIL, "software": {EVIL: EVIL}}
    evil["dataset"] = {**evil["dataset"], "name": EVIL, "fingerprint": EVIL, "revision": EVIL}
    evil["levels"] = {EVIL: {"format": "em-organelle-wild mismatch v1", "organelles": {}, "statement": EVIL}, "x": EVIL}
    harmless = document("harmless", ALL, prompts="oracle:x")
    index = render_site([evil], tmp_path / "evil", title=EVIL, dataset=EVIL)
    plain = render_site([harmless], tmp_path / "plain")
    pages = [[path, *(path.parent / "submissions").glob("*.html")] for path in (index, plain)]
    for hostile, ordinary in zip(*pages, strict=True):
        source = hostile.read_text(encoding="utf-8")
        assert "<script>alert" not in source
        assert "\u202e" not in source
        assert "\x00" not in source
        page, expected = Page(hostile), Page(ordinary)
        assert page.tags.count("script") == expected.tags.count("script")
        assert page.tags.count("style") == expected.tags.count("style")
        names = {name for _, name, _ in page.attributes}
        assert not {name for name in names if name.startswith("on")}
        assert not any(value.lower().startswith("javascript:") for value in page.values("href"))
        assert "<script>alert(1)</script>" in "".join(page.words)


def test_a_site_is_rebuilt_to_the_byte_and_forgets_what_is_gone(results: list[dict[str, Any]], tmp_path: Path) -> None:
    render_site(results, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    render_site(list(reversed(results)), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    kept = tmp_path / ".gitattributes"
    kept.write_text("mine")
    render_site(results[:1], tmp_path)
    assert sorted(path.suffix for path in (tmp_path / "submissions").iterdir()) == [".html", ".json"]
    assert kept.is_file()
    assert not list(tmp_path.rglob(".partial*"))
    document_ = json.loads(next((tmp_path / "submissions").glob("*.json")).read_text())
    assert document_ == json.loads(json.dumps(results[0]))


def test_an_empty_leaderboard_has_the_quoted_rows(tmp_path: Path) -> None:
    source = render_site([], tmp_path).read_text(encoding="utf-8")
    assert source.count("No automatic submission has been scored yet") == 2
    assert source.count('<table class="quoted">') == 3
    assert "NaN" not in source
    assert yaml.safe_load(front_matter(EVIL.replace("\x00", ""), "a/b").split("---\n")[1])["title"].startswith(
        "</script>"
    )


def test_a_damaged_result_is_refused_and_nothing_is_written(results: list[dict[str, Any]], tmp_path: Path) -> None:
    damaged = json.loads(json.dumps(results[0]))
    damaged["scores"]["all"]["mito/pq"] = 1.5
    with pytest.raises(InputError, match="cannot be a score"):
        render_site([*results, damaged], tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("config", list(PUBLISHED))
def test_quoted_rows_stand_beside_what_does_not_add_up(config: str) -> None:
    table = quoted_table(config)
    for row in PUBLISHED[config]:
        assert text(row.model) in table
        for fault in faults(row):
            assert text(fault) in table
    assert "not re-scored" in table
    assert '<td class="rank' not in table
    assert quoted_table("other") == ""


def test_the_second_paper_is_quoted_and_its_means_are_means() -> None:
    table = retina_table()
    assert "not re-scored" in table
    assert table.count('class="chip quote"') == len(MODELS) == 6
    assert '<td class="rank' not in table
    for model, values in MODELS.items():
        assert text(model) in table
        assert len(values) == len(DATASETS)
        parts = [value for value in values[PARTS] if value is not None]
        if parts:
            assert values[PEREZ] == pytest.approx(sum(parts) / 4, abs=5.1e-4)


def test_levels_show_the_ceiling_and_unknown_forms_are_named() -> None:
    level = {"dice__size": 0.4}
    side = {"L1": level, "L5": {"dice__size": 0.9}}
    found = {
        "levels": {"predicted": side, "oracle": {"L1": {"dice__size": 0.5}}},
        "gaps": {"predicted": {"dice__size": {"gap_stitch": 0.5, "gap_id": -0.1, "gap_pixel": None}}},
    }
    mismatch = {"format": "em-organelle-wild mismatch v1", "reference": "v.zarr", "organelles": {"er": found}}
    for levels in (mismatch, {"v.zarr": mismatch}):
        shown = levels_section(levels)
        for part in ("v.zarr", "0.400", "of 0.500", "--c:50.0%", "+0.500", "−0.100"):
            assert part in shown
    assert levels_section(None) == ""
    assert "does not know" in levels_section({"something": 1})
