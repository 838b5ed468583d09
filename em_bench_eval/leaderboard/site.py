"""The leaderboard as a static site: ``index.html``, a page for each submission, and the front matter of a Space.

Every page is one file that loads nothing: it works from a disk and under any address. Everything that a submission
says is text of strangers; it is escaped wherever it is written, and a page may run its own script alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import string
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em_bench_eval.leaderboard.result_document import check_result
from em_bench_eval.leaderboard.site_detail import detail_values
from em_bench_eval.leaderboard.site_index import ORDER, index_values
from em_bench_eval.leaderboard.site_rows import Key, Result, Section, sections_of
from em_bench_eval.leaderboard.site_text import text
from em_bench_eval.leaderboard.site_values import View, groups_of, views_of
from em_bench_eval.row import to_json

TITLE = "Organelle segmentation in the wild"
PAGES = "submissions"
Cases = Sequence[Mapping[str, Any]]


def render_site(
    results: Sequence[Result],
    out: str | os.PathLike[str],
    *,
    title: str = TITLE,
    dataset: str = "",
    submissions: str = "",
    pictures: Mapping[str, Cases] | None = None,
    current: Mapping[str, Key] | None = None,
) -> Path:
    """Write the site to a folder and return the path of its front page.

    Files appear under their names only when complete, pages of submissions before the front page that links to them;
    pages of submissions that are gone are removed last. The same arguments give the same bytes.

    Args:
        results: result documents (``rescoring.rescore``), in any order.
        out: folder of the site; a static Space is this folder.
        title: heading of the front page, and title of the Space.
        dataset: ``<org>/<name>`` on the Hub, which is linked, or any name.
        submissions: ``<org>/<name>`` of the repository that takes submissions, for the section on submitting.
        pictures: submission hash -> what ``site_pictures.draw_cases`` returned.
        current: configuration -> the key that results must have to be ranked; default: that of the newest result.

    Raises:
        InputError: a result document is damaged.
    """
    folder = Path(out)
    for result in results:
        check_result(result, f"the result of {result.get('submission', {}).get('model', '?')!r}")
    taken: set[str] = set()
    keys = current or {}
    sections = {config: sections_of(results, config, keys.get(config), taken) for config in ORDER}
    views, groups = views_of(results), groups_of(results)
    files: dict[str, str] = {}
    for section in (section for config in ORDER for section in sections[config]):
        files |= _submission_files(section, views, title, pictures or {})
    files["index.html"] = page("site_index.html", title, index_values(sections, views, groups, dataset, submissions))
    files["README.md"] = front_matter(title, dataset)
    _write(folder, files)
    return folder / "index.html"


def _submission_files(
    section: Section, views: Sequence[View], title: str, pictures: Mapping[str, Cases]
) -> dict[str, str]:
    files = {}
    for row in section.rows:
        cases = pictures.get(str(row.result["submission"]["hash"]), ())
        values = {"title": text(title), **detail_values(row, section, views, cases)}
        model = f"{row.result['submission']['model']} - {title}"
        files[f"{PAGES}/{row.slug}.html"] = page("site_submission.html", model, values)
        files[f"{PAGES}/{row.slug}.json"] = to_json(dict(row.result))
    return files


def page(template: str, title: str, values: Mapping[str, str]) -> str:
    """Fill a template and put it into the frame that all pages share; ``values`` are HTML."""
    script = _template("site_script.html").replace("<script>", "").replace("</script>", "").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return string.Template(_template("site.html")).substitute(
        page_title=text(title),
        script_hash=f"sha256-{digest}",
        style=_template("site_style.html"),
        body=string.Template(_template(template)).substitute({"title": text(title), **values}),
        script=script,
    )


def _template(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def front_matter(title: str, dataset: str = "") -> str:
    """Return the ``README.md`` that makes a folder a static Space."""
    lines = [
        "---",
        f"title: {json.dumps(title, ensure_ascii=False)}",
        "emoji: 🔬",
        "colorFrom: green",
        "colorTo: blue",
        "sdk: static",
        "app_file: index.html",
        "pinned: false",
        "license: apache-2.0",
        *([f"datasets:\n  - {json.dumps(dataset)}"] if dataset.count("/") == 1 else []),
        "tags:\n  - leaderboard\n  - electron-microscopy\n  - instance-segmentation",
        "---",
        "",
        "Written by `em-bench leaderboard update` from re-scored submissions; do not edit.",
        "`index.html` works from a disk, too.",
    ]
    return "\n".join(lines) + "\n"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files beside their places, then move each into its own; then remove pages that are no longer made."""
    (folder / PAGES).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        for place, content in enumerate(files.values()):
            (Path(partial) / str(place)).write_text(content, encoding="utf-8")
        for place, name in enumerate(files):
            os.replace(Path(partial) / str(place), folder / name)
    for path in (folder / PAGES).iterdir():
        if path.suffix in (".html", ".json") and f"{PAGES}/{path.name}" not in files:
            path.unlink()
