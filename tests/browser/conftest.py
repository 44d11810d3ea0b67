"""A headless Chromium with the network off; without one these tests are skipped and say why."""
import os
import shutil
from pathlib import Path

import pytest

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make docs, or pip install -r requirements-docs.txt")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not path:
        pytest.skip("no chromium on the PATH (or in $CHROMIUM): install your system's chromium package")
    with api.sync_playwright() as p:
        try: browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        except api.Error as e: pytest.skip(f"{path} does not start: {str(e).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """`visit(path, width=…, scheme=…)` opens a page from disk, offline; at the end nothing may have gone wrong on it."""
    contexts, wrong = [], []

    def go(path, *, width=1280, height=900, scheme="light"):
        context = chromium.new_context(viewport=dict(width=width, height=height), color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
        page.on("console", lambda m: wrong.append(f"{page.url}: {m.text}") if m.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(f"{page.url} asks for {r.url}"))
        page.goto(Path(path).as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture(scope="session")
def serious():
    """`serious(page)` → serious and critical accessibility faults that axe finds."""
    if not AXE.is_file():
        pytest.skip("axe-core is not there: `make test` fetches it where npm is installed")
    code = AXE.read_text(encoding="utf-8")

    def check(page):
        page.evaluate(code)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")["violations"]
        return [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]
    return check
