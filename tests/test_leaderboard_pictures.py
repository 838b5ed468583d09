"""Pictures of the best and worst images of a submission that was really scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import submission_forms as forms
from html_page import Page

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.site import render_site
from em_bench_eval.leaderboard.site_pictures import cases_of, draw_cases
from em_bench_eval.rows import decode_row, open_rows


@pytest.fixture(scope="module")
def scored(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A real submission, scored for real."""
    from em_bench_eval.leaderboard.items import expected_items
    from em_bench_eval.leaderboard.rescoring import rescore

    expected = expected_items(tiny_dataset, forms.CONFIG, forms.SPLIT)
    predictions = [forms.damaged(decode_row(row)) for row in open_rows(tiny_dataset, forms.CONFIG, forms.SPLIT)]
    folder = forms.write(tmp_path_factory.mktemp("team") / "unet", "png", predictions, expected)
    return folder, rescore(folder, tiny_dataset, expected=expected, progress=False)


def test_best_and_worst_images_are_drawn_once(
    scored: tuple[Path, dict[str, Any]], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = scored
    cache = tmp_path / "cache"
    cases = draw_cases(folder, tiny_dataset, result, show_reference=True, cache=cache)
    assert [case["role"] for case in cases] == [one["role"] for one in cases_of(result)]
    assert len({case["record_id"] for case in cases}) == len(cases) > 2
    for case in cases:
        for organelle, (reference, predicted, matched) in case["counts"].items():
            assert case["values"].get(f"{organelle}/n_reference", 0) == reference
            assert case["values"].get(f"{organelle}/n_prediction", 0) == predicted
            assert matched <= min(reference, predicted)
    hidden = draw_cases(folder, tiny_dataset, result, show_reference=False, cache=cache)
    assert all(case["reference"] is None for case in hidden)
    assert any(case["reference"] for case in cases)
    (folder / "submission.yaml").touch()
    monkeypatch.setattr("em_bench_eval.leaderboard.site_pictures._images", lambda *_: pytest.fail("drawn again"))
    assert draw_cases(folder, tiny_dataset, result, show_reference=True, cache=cache) == cases
    index = render_site([result], tmp_path / "site", pictures={result["submission"]["hash"]: cases})
    (page,) = (index.parent / "submissions").glob("*.html")
    assert Page(page).tags.count("figure") == len(cases)
    assert page.stat().st_size < 3e6
    render_site([result], tmp_path / "hidden", pictures={result["submission"]["hash"]: hidden})
    (page,) = (tmp_path / "hidden" / "submissions").glob("*.html")
    assert 'data-panel="reference"' not in page.read_text(encoding="utf-8")
    assert "are not public" in page.read_text(encoding="utf-8")


def test_pictures_belong_to_what_was_scored(
    scored: tuple[Path, dict[str, Any]], tiny_dataset: Path, tmp_path: Path
) -> None:
    _, result = scored
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "submission.yaml").write_text("format: x")
    with pytest.raises(InputError, match="not the submission that was scored"):
        draw_cases(tmp_path / "other", tiny_dataset, result, show_reference=True)


def test_hidden_sources_are_not_shown(scored: tuple[Path, dict[str, Any]], tiny_dataset: Path) -> None:
    folder, result = scored
    sources = {one["source"] for one in cases_of(result)}
    hidden = frozenset(sorted(sources)[:1])
    cases = draw_cases(folder, tiny_dataset, result, show_reference=True, hidden_sources=hidden)
    assert {case["source"] for case in cases} == sources - hidden


def test_a_damaged_picture_is_left_out(scored: tuple[Path, dict[str, Any]], tiny_dataset: Path, tmp_path: Path) -> None:
    folder, result = scored
    (case, *_) = draw_cases(folder, tiny_dataset, result, show_reference=True)
    bad = {**case, "image": "data:image/png;base64,AA)}</style><script>alert(1)</script>"}
    index = render_site([result], tmp_path, pictures={result["submission"]["hash"]: [bad, {}, case]})
    (page,) = (index.parent / "submissions").glob("*.html")
    assert Page(page).tags.count("figure") == 1
    assert "alert" not in page.read_text(encoding="utf-8")
