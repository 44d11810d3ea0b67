"""The site's parts on small books; tests/browser builds and reads the whole."""
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from sepnb.core import SepnbError
from sepnb.docs import PARTS, build, chapters, faults, linked, public, reference, start_page, tidy

ROOT = Path(__file__).parents[1]


def chapter(module, title, *cells):
    first = [nbformat.v4.new_code_cell(f"#| default_exp {module}"), nbformat.v4.new_markdown_cell(f"# {title}\n> What it is.")]
    return nbformat.v4.new_notebook(cells=first + [c if not isinstance(c, str) else nbformat.v4.new_code_cell(c) for c in cells])


def write(folder, books):
    for name, nb in books.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, folder / name)
    return folder


def test_any_numbers_in_any_folders_come_in_order(tmp_path):
    names = ["92_z.ipynb", "00_a.ipynb", "classical/55_n.ipynb", "music/16_v.ipynb", "music/24_m.ipynb", "20_b.ipynb", "models/99_x.ipynb",
             "_proc/10_no.ipynb", ".hidden/11_no.ipynb", "stages/12_no.ipynb", "notes.ipynb", "data/.ipynb_checkpoints/30_no.ipynb"]
    book = chapters(write(tmp_path, {n: chapter("x", n) for n in names}))
    assert [c.path.name[:2] for c in book] == ["00", "20", "55", "99", "16", "24", "92"]
    assert [PARTS[c.part] for c in book] == ["Ground", "Measuring", "Classical methods", "Networks", "Making music", "Making music", "Doors"]
    page = start_page(book, intro="", report=True)
    assert page.index("00_a") < page.index("55_n") < page.index("16_v") < page.index("92_z") and "results" in page


def test_parts_come_as_the_subject_is_taught():
    taught = ["Representation and masks", "Measuring", "Classical methods", "Networks", "Training", "Results"]
    assert [p for p in PARTS.values() if p in taught] == taught


def test_no_chapter_comes_before_one_that_it_builds_on():
    book = chapters(ROOT / "nbs")
    place = {c.module: k for k, c in enumerate(book)}
    for c in book:
        code = "\n".join(x.source for x in nbformat.read(c.path, 4).cells if x.cell_type == "code")
        needs = set(re.findall(r"^\s*from (sepnb[\w.]*) import", code, re.M)) & set(place) - {"sepnb"}
        assert not [n for n in needs if place[n] > place[c.module]], f"{c.path.name} comes before {needs}"


@pytest.mark.parametrize("path", [c for c in sorted((ROOT / "nbs" / "models").glob("6[1-9]_*.ipynb")) if "harmonics" not in c.name], ids=lambda p: p.stem)
def test_a_model_chapter_opens_with_a_diagram_and_ends_with_how_to_use_it(path):
    cells = nbformat.read(path, 4).cells
    pictures = [c.source for c in cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", ()))]
    assert "plot_network(" in pictures[0] and len(pictures) <= 4
    before = cells[:next(k for k, c in enumerate(cells) if "plot_network(" in c.source and c.cell_type == "code")]
    assert not [c for c in before if c.cell_type == "code" and re.search(r"^class |^def ", c.source, re.M)]
    heads = [h for c in cells if c.cell_type == "markdown" for h in re.findall(r"^## (.+)", c.source, re.M)]
    assert heads[-2:] == ["How to use it", "Limits"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    blocks = {name: block for part in ("models", "more_models", "postnets") for name, block in params.get(part, {}).items()}
    text = next(c.source for c in cells if c.cell_type == "markdown" and "## How to use it" in c.source)
    named = re.findall(r"`runs/(\w+)`", text)
    assert named and all(blocks[name]["model"].split(".")[0] == path.stem[3:] for name in named)
    assert all(f"`{name}`" in text for name in named)


@pytest.mark.parametrize("nb", [nbformat.v4.new_notebook(), nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n> idea")])])
def test_a_chapter_without_a_head_is_named(tmp_path, nb):
    with pytest.raises(SepnbError, match="10_bad.ipynb"):
        chapters(write(tmp_path, {"10_bad.ipynb": nb}))
    with pytest.raises(SepnbError, match="no chapters"):
        chapters(tmp_path / "nowhere")


NAMES = {"ratio_mask": ["sepnb.masks"], "chirp": ["sepnb.synth"], "same": ["sepnb.a", "sepnb.b"]}


@pytest.mark.parametrize("text, changed", [
    ("use `ratio_mask` here", True), ("`ratio_mask()`", True), ("(`chirp`)", True), ("`same`", False), ("`unknown`", False), ("`ratio_mask(x)`", False),
    ("# About `ratio_mask`", False), ("``ratio_mask``", False), ("```\n`ratio_mask`\n```", False), ("[`ratio_mask`](x.html)", False), ("", False)])
def test_only_clear_names_in_running_text_become_links(text, changed):
    assert (linked(text, names=NAMES) != text) == changed
    assert linked(linked(text, names=NAMES), names=NAMES) == linked(text, names=NAMES)


def test_tidy_leaves_the_notebook_as_it_was_and_drops_what_is_for_machines():
    picture = nbformat.v4.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
    noisy = nbformat.v4.new_code_cell("#| export\nplot_grid(x)", outputs=[picture, nbformat.v4.new_output("stream", name="stderr", text="50%")])
    nb = chapter("x", "Title", nbformat.v4.new_markdown_cell("## A *mask*, `seen`\ncosts $5 or $m^2$"), noisy)
    before = nbformat.writes(nb)
    page = tidy(nb)
    assert nbformat.writes(nb) == before
    nbformat.validate(page)
    assert page.cells[-1].source == "plot_grid(x)" and len(page.cells[-1].outputs) == 1 and page.cells[-1].metadata.tags == ["export"]
    assert page.cells[-1].metadata.mystnb.image.alt == "Figure: A mask, seen, drawn by plot_grid"
    assert "default_exp" not in nbformat.writes(page) and "<msup>" in page.cells[1].source


def test_the_reference_says_what_the_comments_say():
    text = reference("sepnb.separator", names=public(["sepnb.separator", "sepnb.core"]))
    for word in ("{py:class} Separator", "{py:function} separate(", "`sample_rate`", "Hz", "*returns*"):
        assert word in text
    front = reference("sepnb")
    assert "<sepnb.separator.Separator>" in front and "Separator" not in public(["sepnb"])


def test_a_warning_stops_the_build_and_keeps_the_old_site(tmp_path):
    pytest.importorskip("myst_nb")
    nbs = write(tmp_path / "nbs", {"11_masks.ipynb": chapter("masks", "Masks", nbformat.v4.new_markdown_cell("[nowhere](nothing-of-this-name.md)"))})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "old.html").write_text("old")
    with pytest.raises(SepnbError, match="nothing-of-this-name"):
        build(nbs, tmp_path / "site", reports=None, root=tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name != "nbs"] == ["site"] and (tmp_path / "site" / "old.html").is_file()


def test_faults_of_every_kind_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b c.html").write_text('<a id="in">x</a>')
    (tmp_path / "sub" / "a.html").write_text(
        '<a href="../b%20c.html#in">good</a><a href="../b%20c.html#out">bad</a><a href="gone.html">bad</a><a href="https://x.org">may be followed</a><a href="mailto:a@b">mail</a>'
        '<img src="//x.org/p.png"><img src="data:image/png;base64,aa"><link rel="stylesheet" href="https://x.org/s.css"><link rel="canonical" href="https://x.org"><script src="../b%20c.html"></script>')
    assert faults(tmp_path) == [f"sub/a.html: {x}" for x in ("loads //x.org/p.png", "loads https://x.org/s.css", "no gone.html", "no place ../b%20c.html#out")]
