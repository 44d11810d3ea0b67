"""The whole site, built from the notebooks as they are and read in a real browser with the network off."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 390)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    pytest.importorskip("myst_nb", reason="what the site needs is not installed: make docs")
    from sepnb.docs import build
    out = tmp_path_factory.mktemp("docs") / "site"
    book = build(ROOT / "nbs", out, reports=ROOT / "reports", root=ROOT) # raises where anything warns, a link is broken, or a page loads from elsewhere
    return out, book


def test_every_chapter_and_every_public_name_is_there(site):
    from sepnb.docs import public
    out, book = site
    start = (out / "index.html").read_text()
    inventory = {p.stem: p.read_text() for p in (out / "api").glob("*.html")}
    for c in book:
        assert f'href="book/{c.path.stem}.html"' in start
        for name in public([c.module]):
            assert f'id="{c.module}.{name}"' in inventory[c.module], f"{c.module}.{name} is not in the reference"
    at = [start.index(f'href="book/{c.path.stem}.html"') for c in book]
    assert len(book) == len(set(c.path for c in book)) >= 50 and len(set(at)) == len(at)


def test_pictures_have_texts_and_figures_are_shown(site):
    out, book = site
    pages = [(out / "book" / f"{c.path.stem}.html").read_text() for c in book]
    images = [m for page in pages for m in re.findall(r"<img[^>]*>", page) if "_images/" in m]
    assert len(images) >= 40
    assert not [i for i in images if not re.search(r'alt="Figure: .+?"', i)]


def test_no_page_is_wider_than_the_screen(site, visit):
    out, _ = site
    page, wide = None, []
    for path in sorted(p for p in out.rglob("*.html") if "report" not in p.relative_to(out).parts):
        if page is None:
            page = visit(path)
        else:
            page.goto(path.as_uri(), wait_until="domcontentloaded")
        for width in WIDTHS:
            page.set_viewport_size(dict(width=width, height=900))
            if (needs := page.evaluate("document.documentElement.scrollWidth")) > width:
                wide.append(f"{path.relative_to(out)} is {needs} px wide on {width}")
    assert not wide


PAGES = ["index.html", "use.html", "results.html", "book/11_masks.html", "book/62_openunmix.html", "api/sepnb.separator.html", "search.html"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible(site, visit, serious, name):
    assert serious(visit(site[0] / name, width=1280, scheme="light")) == []


@pytest.mark.parametrize("name", ["results.html", "book/11_masks.html", "api/sepnb.masks.html"])
def test_pages_are_accessible_on_a_telephone_in_the_dark(site, visit, serious, name):
    assert serious(visit(site[0] / name, width=390, scheme="dark")) == []


def test_search_finds_a_chapter_and_a_function(site, visit):
    page = visit(site[0] / "search.html")
    for word, found in (("reverberation", "book/28_mix.html"), ("ratio_mask", "api/sepnb.masks.html")):
        page.goto((site[0] / "search.html").as_uri() + f"?q={word}")
        page.wait_for_function("/Search (finished|found)|did not match|found .* page/.test(document.querySelector('#search-results').innerText)", timeout=10_000)
        links = page.eval_on_selector_all("#search-results a", "e => e.map(a => a.getAttribute('href'))")
        assert any(found in x for x in links), links


def test_light_and_dark_follow_the_reader(site, visit):
    grey = {}
    for scheme in ("light", "dark"):
        page = visit(site[0] / "book/11_masks.html", scheme=scheme)
        grey[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b, 0) / 3")
    assert grey["light"] > 230 and grey["dark"] < 60


def test_code_that_scrolls_can_be_reached_with_the_keyboard(site, visit):
    page = visit(site[0] / "book/11_masks.html", width=390)
    scrolls = page.evaluate("[...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.tabIndex)")
    assert scrolls and set(scrolls) == {0}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_opens_offline_and_fits(visit, width):
    page = visit(ROOT / "reports" / "index.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_is_accessible(visit, serious, width):
    assert serious(visit(ROOT / "reports" / "index.html", width=width)) == []


def test_the_reports_player_plays_offline(visit, serious):
    path = ROOT / "reports" / "player.html"
    if not path.is_file():
        pytest.skip("the pipeline has not written reports/player.html")
    assert path.stat().st_size <= 16e6
    page = visit(path, width=390)
    page.click("#play")
    page.wait_for_function("player.deck.currentTime > 0.3", timeout=15_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and serious(page) == []
