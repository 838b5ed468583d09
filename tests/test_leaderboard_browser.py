"""The leaderboard's pages in a real browser: sorting, filtering, keyboard, narrow and dark screens, hostile texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from leaderboard_documents import ALL, case, document, documents, scaled

from em_bench_eval.leaderboard.site import render_site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    find_chromium()
    driven = Browser()
    yield driven
    driven.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = [document(f"model {place}", scaled(0.5 + place / 50), team="Team C") for place in range(4)]
    more[3]["scores"]["all"]["mito/pq"] = None
    return render_site([*documents(), *more], tmp_path_factory.mktemp("pages") / "deep" / "site")


def names(browser: Browser, board: str = "wild-automatic") -> list[str]:
    """The submissions that a table shows, in order."""
    rows = f"document.querySelectorAll('#{board} tbody tr')"
    found = browser.run(
        f"[...{rows}].filter(row => row.offsetParent).map(row => row.querySelector('.name').textContent)"
    )
    return list(found)


def column(browser: Browser, head: str, board: str = "wild-automatic") -> list[str]:
    """The texts of a column, by its heading."""
    heads = list(browser.run(f"[...document.querySelectorAll('#{board} thead th')].map(head => head.innerText)"))
    place = [re.sub(r"\s+", " ", text).strip(" ↓↑") for text in heads].index(head)
    return list(
        browser.run(f"[...document.querySelectorAll('#{board} tbody tr')].map(row => row.cells[{place}].innerText)")
    )


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose in the toolbar as a person does: the value, then the event."""
    browser.run(
        f"{{ const field = document.querySelector('form.toolbar').elements[{json.dumps(name)}];"
        f" field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
    )


def assert_quiet(browser: Browser, page: Path) -> None:
    """No error, and nothing was asked for but the page itself."""
    assert browser.errors == []
    asked = {url.partition("#")[0] for url in browser.requests if not url.startswith("data:")}
    assert asked == {page.absolute().as_uri()}


def test_sorting_by_mouse_and_keyboard(browser: Browser, site: Path) -> None:
    browser.open(site)
    order = ["best", "middle", "model 3", "model 2", "model 1", "model 0", "only mito"]
    assert names(browser) == order
    leading = "document.querySelector('#wild-automatic th[aria-sort]')"
    assert browser.run(f"{leading}.getAttribute('aria-sort')") == "descending"
    browser.run(f"{leading}.querySelector('button').click()")
    assert names(browser) == order[::-1]
    browser.run("document.querySelector('#wild-automatic th.who button').focus()")
    browser.press("Enter")
    assert names(browser) == sorted(order)
    assert browser.run(f"{leading}.className") == "who"
    browser.press("Space")
    assert names(browser) == sorted(order, reverse=True)
    browser.press("Tab")  # to the heading of the average
    assert browser.run("document.activeElement.innerText.replace(/\\s+/g, ' ').trim()") == "Average Dice"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert names(browser) == order
    assert_quiet(browser, site)


def test_undefined_values_are_last_either_way(browser: Browser, site: Path) -> None:
    browser.open(site)
    choose(browser, "metric", "pq")
    assert names(browser)[0] == "best"
    button = "[...document.querySelectorAll('#wild-automatic thead button')].find(b => /Mito/.test(b.innerText))"
    for _ in range(2):
        browser.run(f"{button}.click()")
        assert names(browser)[-1] == "model 3"
        assert column(browser, "Mito PQ")[-1].startswith("–d")
    choose(browser, "images", "domain=out")
    assert all(shown.startswith("–a") for shown in column(browser, "ER PQ"))
    assert_quiet(browser, site)


def test_the_script_draws_what_the_server_wrote(browser: Browser, site: Path) -> None:
    browser.open(site)
    table = """JSON.stringify([...document.querySelectorAll('#wild-automatic *')].map(e => [
        e.tagName, e.children.length ? '' : e.textContent,
        [...e.attributes].filter(a => a.name !== 'style').map(a => a.name + a.value).sort(),
        [...e.style].map(name => name + e.style.getPropertyValue(name).trim())]))"""
    before = browser.run(table)
    choose(browser, "metric", "voi__union")
    found = [float(shown.split()[0]) for shown in column(browser, "Average VOI")]
    assert found == sorted(found)  # lower is better: the best one first
    choose(browser, "images", "source=cell_out")
    assert column(browser, "Mito VOI")[names(browser).index("best")] == "1.600"
    assert column(browser, "Nucleus VOI")[0].startswith("–a")
    choose(browser, "metric", "dice__instance")
    choose(browser, "images", "all")
    assert json.loads(browser.run(table)) == json.loads(before)
    assert column(browser, "All as one Dice", "wild-agnostic") == ["0.700\n.65–.75"]
    assert_quiet(browser, site)


def test_filtering(browser: Browser, site: Path) -> None:
    browser.open(site)
    said = "document.querySelector('.toolbar output').textContent"
    assert browser.run(said) == "11 submissions"
    browser.run("document.querySelector('input[type=search]').focus()")
    browser.type("MODEL team")
    assert names(browser) == ["model 3", "model 2", "model 1", "model 0"]
    assert browser.run(said) == "4 of 11 submissions"
    assert browser.run("document.querySelector('#wild-prompted .nothing').offsetParent !== null")
    browser.run("document.querySelector('form.toolbar').reset()")
    browser.run("new Promise(done => setTimeout(done, 20))")
    assert len(names(browser)) == 7
    texts = "[...document.querySelector('form.toolbar').elements[{}].options].find(o => o.text === {}).value"
    choose(browser, "training", browser.run(texts.format("'training'", "'CEM500K'")))
    assert names(browser) == ["best"]
    browser.run("document.querySelector('form.toolbar').reset()")
    browser.run("new Promise(done => setTimeout(done, 20))")
    browser.run("document.querySelector('details.more').open = true")
    browser.run("document.querySelector('input[value=endo]').click()")
    assert "only mito" not in names(browser)
    assert len(names(browser)) == 6
    assert browser.run("document.querySelector('.toolbar summary').innerText") == "Filters (1)"
    choose(browser, "team", browser.run(texts.format("'team'", "'Team A'")))
    assert names(browser) == ["middle"]
    choose(browser, "metric", "pq")  # filters last when the metric changes
    assert names(browser) == ["middle"]
    browser.run("document.querySelector('form.toolbar').reset()")
    browser.run("new Promise(done => setTimeout(done, 20))")
    choose(browser, "prompts", browser.run(texts.format("'prompts'", "'oracle:points'")))
    assert (names(browser), names(browser, "wild-prompted")) == ([], ["shown points"])
    assert_quiet(browser, site)


def test_a_submission_has_a_page(browser: Browser, site: Path) -> None:
    browser.open(site)
    href = browser.run("document.querySelector('#wild-automatic a.name').href")
    page = Path(href.removeprefix("file://"))
    browser.open(page)
    assert browser.run("document.querySelector('h1').textContent") == "best"
    assert browser.run("document.querySelector('.tile.rank b').textContent") == "1"
    assert browser.run("document.querySelectorAll('.pane').length") == 3
    browser.run("document.querySelector('label[for=tab-2]').click()")
    assert browser.run("[...document.querySelectorAll('.pane')].map(p => p.offsetParent !== null)") == [
        False,
        False,
        True,
    ]
    source = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[0].textContent)"
    assert browser.run(source) == ["cell_in", "cell_out"]
    browser.run("document.querySelector('table.sortable thead button').click()")
    browser.run("document.querySelector('table.sortable thead button').click()")
    assert browser.run(source) == ["cell_out", "cell_in"]
    assert_quiet(browser, page)
    metric = browser.run("document.querySelector('.pane a').href")
    assert metric.endswith("index.html#metric-dice__instance")
    browser.call("Page.navigate", url=metric)
    browser.run("new Promise(done => setTimeout(done, 300))")
    assert browser.run("document.querySelector('#metric-dice__instance').offsetParent !== null")  # its family opens


def test_narrow_dark_and_without_a_script(browser: Browser, site: Path) -> None:
    page = next((site.parent / "submissions").glob("best-*.html"))
    backgrounds = set()
    for dark in (False, True):
        for shown in (site, page):
            browser.open(shown, width=360, height=740, dark=dark)
            assert browser.run("document.documentElement.scrollWidth") == 360, shown  # tables scroll, the page does not
            backgrounds.add((dark, browser.run("getComputedStyle(document.body).backgroundColor")))
            assert_quiet(browser, shown)
        table = "document.querySelector('.scroll')"
        assert browser.run(f"{table}.scrollWidth > {table}.clientWidth")
    assert len(backgrounds) == 2
    browser.open(site, width=360, height=740)
    browser.run("document.querySelector('.board .scroll').scrollLeft = 400")
    sticky = browser.run("document.querySelector('#wild-automatic tbody .name').getBoundingClientRect().left")
    assert 0 < sticky < 120  # the names stay in sight
    browser.open(site, script=False)
    assert names(browser)[0] == "best"
    assert browser.run("document.querySelector('.toolbar').offsetParent") is None  # nothing that would not work
    assert browser.run("document.querySelector('#wild-automatic thead button')") is None


def test_contrast_of_texts_is_enough(browser: Browser, site: Path) -> None:
    """WCAG 2.2 asks for 4.5:1."""
    measure = """(() => {
      const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const luminance = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
      const paper = element => { for (; element; element = element.parentElement) {
        const colour = numbers(getComputedStyle(element).backgroundColor);
        if (colour.length < 4 || colour[3] === 1) { return colour; } } return [255, 255, 255]; };
      return Math.min(...[...document.querySelectorAll('p, td, th, a, span, dt, dd, b, label, li, summary')]
        .filter(e => e.offsetParent && !e.matches('.sr, .whisker') && e.childNodes.length && e.textContent.trim())
        .map(e => { const a = luminance(numbers(getComputedStyle(e).color)), b = luminance(paper(e));
          return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }));
    })()"""
    for dark in (False, True):
        browser.open(site, dark=dark)
        assert browser.run(measure) >= 4.5


def test_hostile_texts_run_nothing(browser: Browser, tmp_path: Path) -> None:
    evil = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
    hostile = document(evil, ALL, team=evil, notes=evil, training_data=[evil], paper="javascript:alert(1)")
    hostile["per_source"][evil] = hostile["per_source"].pop("cell_in")
    for part in ("groups", "scores", "intervals"):
        hostile[part][f"source={evil}"] = hostile[part].pop("source=cell_in")
    index = render_site([hostile, document("ours", ALL)], tmp_path, title="Board")
    browser.open(index)
    choose(browser, "images", f"source={evil}")
    choose(browser, "metric", "pq")
    assert evil in names(browser)
    assert browser.run("document.title") == "Board"
    assert browser.run("document.querySelectorAll('main img').length") == 0
    assert_quiet(browser, index)
    page = next(path for path in (tmp_path / "submissions").glob("*.html") if not path.name.startswith("ours"))
    browser.open(page)
    assert browser.run("document.querySelector('h1').textContent") == evil
    assert "stolen'" in browser.run("document.title")  # as text of the title
    assert browser.run("document.title") != "stolen"
    assert_quiet(browser, page)


def test_pictures_blink_fade_and_grow(browser: Browser, tmp_path: Path) -> None:
    result = document("ours", ALL)
    cases = [case("best", "a/z/00001"), case("worst", "b/z/00002")]
    index = render_site([result], tmp_path, pictures={result["submission"]["hash"]: cases})
    page = next((index.parent / "submissions").glob("*.html"))
    browser.open(page)
    assert browser.run("[...document.querySelectorAll('figure img')].every(image => image.naturalWidth > 0)")
    sizes = browser.run("[...document.querySelectorAll('.stack')].map(s => [s.clientWidth, s.clientHeight])")
    assert all(width > 50 and height > 20 for width, height in sizes)
    opacity = "getComputedStyle(document.querySelector('img[data-side]')).opacity"
    browser.run("overlay.value = 0; overlay.dispatchEvent(new Event('input'))")
    assert browser.run(opacity) == "0"
    shown = "document.querySelector('[data-panel=prediction] .name').textContent"
    assert browser.run(shown) == "Prediction"
    browser.run("document.querySelector('button.blink').click()")
    seen = browser.run(
        f"new Promise(done => {{ const seen = new Set(); const timer = setInterval(() => {{ seen.add({shown});"
        " if (seen.size > 1) { clearInterval(timer); done([...seen].sort()); } }, 50); })"
    )
    assert seen == ["Prediction", "Reference"]
    images = "[...document.querySelector('[data-panel=prediction]').querySelectorAll('img[data-side=reference]')]"
    assert browser.run(f"{images}.length") == 1
    width = browser.run("document.querySelector('.stack').clientWidth")
    browser.run("document.querySelector('button.enlarge').click()")
    assert browser.run("document.querySelector('.stack').clientWidth") > 1.5 * width
    assert_quiet(browser, page)
