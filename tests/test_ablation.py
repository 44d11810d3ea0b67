"""The thesis' tables, the cells that rerun them, and the page beside them, at smoke scale."""
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

import sepnb.classical.bounds  # noqa: F401, registers the mixture
from sepnb.ablation import (EFFECTS, MEASURES, PUBLISHED, STEMS, changed, effect_rows, published, published_effect, read_results, same_runs,
                            seed_deviation, table_rows, thesis_scores, values_of, write_result)
from sepnb.core import SepnbError
from sepnb.data.augment import AUGMENTATIONS
from sepnb.data.prepare import prepare
from sepnb.data.tracks import find_tracks, load_track
from sepnb.evaluate import score_song, statistics_rows
from sepnb.models.deep_unet import TABLES, DeepUNet, TableUNet
from sepnb.models.harmonics import map_ratios
from sepnb.runner import run_stage
from sepnb.separator import build
from sepnb.train.loop import recipe_from
from sepnb.train.postnet import PostRecipe

ROOT = Path(__file__).parents[1]
STAGES = ROOT / "nbs" / "stages"
PARAMS = yaml.safe_load((ROOT / "ablation" / "params.yaml").read_text())
PIPELINE = yaml.safe_load((ROOT / "ablation" / "dvc.yaml").read_text())["stages"]
TOY = {"kind": "toy", "songs": 5, "seconds": 4.0, "sample_rate": 8000, "stems": ["vocals", "drums", "bass", "other"]}
ROW = st.sampled_from(sorted(PUBLISHED))


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs") / "tracks"
    prepare(TOY, folder, seed=1, progress=False)
    return folder


def results(rows, seeds=(1, 2, 3), offset=lambda row, seed: 0.0):
    "As if cells had scored what the thesis says, give or take."
    return [dict(cell="x", seed=seed, data_hash="", rows={row: {s: {m: published(row)[s][m] + offset(row, seed) for m in MEASURES} for s in STEMS} for row in rows}) for seed in seeds]


def test_tables_hold_what_the_text_of_the_thesis_says():
    assert len(PUBLISHED) == 41 and all(list(v) == list(STEMS) and all(len(x) == 2 for x in v.values()) for v in PUBLISHED.values())
    assert published_effect("deeper U-Net") == 0.51 and published_effect("harmonic maps") == pytest.approx(0.4, abs=0.05)  # "by ≈ 0.4 dB SI-SDR"
    assert 0.9 < published_effect("augmentation and random mixing") < 1.0  # "by almost 1 dB"
    assert published_effect("augmentation and random mixing", measure="sdr") == 0.56  # "an overall improvement of 0.56 dB SDR"
    assert published_effect("PA-Net, K = 7", stem="drums") == 0.6 and published_effect("PA-Net, K = 7", stem="bass") == 0.25
    assert published_effect("seven phrases instead of none", stem="drums") == pytest.approx(0.9, abs=0.05)
    assert max(published(f"B.4 Dense {n}M")["all"]["si_sdr"] for n in (30, 9, 3)) - min(published(f"B.4 Dense {n}M")["all"]["si_sdr"] for n in (30, 9, 3)) == pytest.approx(0.09)
    assert published_effect("multichannel Wiener filter") == 0.24 and all(published("4.1 IRM")[s][m] > 7 and published("4.1 Mix")[s][m] < -3.9 for s in STEMS for m in MEASURES)


@settings(deadline=None, max_examples=60)
@given(ROW, ROW)
def test_being_the_same_run_is_mutual(a, b):
    assert a in same_runs(a) and (b in same_runs(a)) == (a in same_runs(b)) and set(same_runs(a)) == set(same_runs(same_runs(a)[-1]))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(EFFECTS)), st.floats(-3, 3), st.sampled_from(STEMS), st.sampled_from(MEASURES))
def test_the_thesis_agrees_with_itself_whatever_all_rows_share(name, common, stem, measure):
    found = results(EFFECTS[name], offset=lambda row, seed: common + 0.01 * seed)  # the level of a seed, the same in both rows
    row = next(r for r in effect_rows(found, stem=stem, measure=measure) if r["effect"] == name)
    assert row["ours"] == pytest.approx(row["thesis"], abs=1e-6) and row["std"] == pytest.approx(0, abs=1e-9)
    assert row["direction"] == ("same" if row["thesis"] else "opposite?")


def test_direction_needs_more_than_two_standard_errors():
    rows = ("4.2 U_H", "4.2 U")  # thesis: +0.39
    by = lambda gains: effect_rows(results(rows, seeds=range(1, len(gains) + 1), offset=lambda row, seed: (gains[seed - 1] - 0.39) * (row == "4.2 U_H")))[0]["direction"]
    assert by([0.3, 0.4, 0.5]) == "same" and by([-0.3, -0.4, -0.5]) == "opposite" and by([-0.4, 0.1, 0.6]) == "same?" and by([-0.6, 0.1, 0.1]) == "opposite?"
    assert by([0.4]) == "same?"
    assert effect_rows(results(("4.2 U_H",))) == [] and effect_rows(results(("4.2 U_H", "B.3 0%"))) == []  # one run under two names is no effect
    twice = results(rows)
    for r in twice: r["rows"]["4.2 U_H"] = r["rows"]["4.2 U"]
    assert effect_rows(twice) == []  # nor are two names for one run that the thesis tells apart


def test_rows_are_found_under_any_name_and_tables_show_only_what_was_run():
    found = results(["4.2 U_H"], offset=lambda row, seed: 0.1 * seed)
    assert values_of(found, "4.5 Normal")[2] == pytest.approx(3.55) and values_of(found, "4.2 U") == {}
    assert [len(table_rows(found, t)) for t in ("4.1", "4.2", "4.5", "B.2", "B.3", "B.5")] == [0, 1, 1, 1, 1, 0]
    assert table_rows(found, "4.2", measure="sdr")[0]["drums, ours"] == "5.23 ± 0.10"
    assert seed_deviation(found)[0]["bass, ours"] == pytest.approx(0.1) and seed_deviation(found[:1]) == []
    partly = results(["B.5 PA (K = 0)", "B.5 PA (K = 7)"])
    for r in partly: r["rows"] = {k: {"drums": v["drums"]} for k, v in r["rows"].items()}  # post-nets for one stem only
    assert not [r for r in effect_rows(partly)] and [r["thesis"] for r in effect_rows(partly, stem="drums")] == [0.88]
    assert table_rows(partly, "B.5")[0]["all, ours"] == "–"


@settings(deadline=None, max_examples=40)
@given(st.recursive(st.integers(), lambda x: st.dictionaries(st.sampled_from("abc"), x, min_size=1, max_size=3), max_leaves=6).filter(lambda x: isinstance(x, dict)), st.data())
def test_a_change_changes_one_place(base, data):
    def paths(x, way=()): return [p for k, v in x.items() for p in ([way + (k,)] + (paths(v, way + (k,)) if isinstance(v, dict) else []))]
    way = data.draw(st.sampled_from(paths(base))); before = json.dumps(base)
    out = changed(base, {".".join(way): "new"}); at = out
    for k in way: at = at[k]
    assert at == "new" and json.dumps(base) == before and changed(out, {}) == out
    with pytest.raises(SepnbError, match="no '.*z'"): changed(base, {".".join((*way[:-1], "z")): 1})


def test_scores_are_those_of_the_evaluation(tracks):
    test = find_tracks(tracks, split="test"); system = build("mixture", test[0].stems)
    ours = thesis_scores(system, test); songs = [load_track(t) for t in test]
    rows = [r for t, x in zip(test, songs) for r in score_song(x.sum(0).expand_as(x), x, sample_rate=t.sample_rate, stems=t.stems, song=t.name)]
    for measure, metric in (("si_sdr", "si_sdr"), ("sdr", "bsseval4_sdr")):
        theirs = {r["stem"]: r["median"] for r in statistics_rows(rows, metric=metric) if r["way"] == "song"}
        assert set(theirs) == set(ours) == set(STEMS) and all(ours[s][measure] == pytest.approx(theirs[s], abs=2e-3) for s in STEMS)


def test_files_are_checked(tmp_path):
    write_result(tmp_path / "maps-1.json", {"4.2 U_H": {"all": {"si_sdr": 1.0, "sdr": 2.0}}}, cell="maps", seed=1)
    assert read_results(tmp_path, ["maps"], [1])[0]["rows"]["4.2 U_H"]["all"]["sdr"] == 2.0
    with pytest.raises(SepnbError, match="maps-2.*make ablation"): read_results(tmp_path, ["maps"], [1, 2])
    with pytest.raises(SepnbError, match="no row"): write_result(tmp_path / "x.json", {"4.2 V": {}})


# the cells of params.yaml

SCALES = PARAMS["scales"]
CELLS = [(scale, cell) for scale, s in SCALES.items() for cell in s["cells"]]


@pytest.mark.parametrize("scale,cell", CELLS)
def test_a_cell_is_complete(scale, cell):
    s = SCALES[scale]; c = s["cells"][cell]; base = changed(s["base"], c.get("change", {}))
    assert cell in s["run"] and set(c) <= {"change", "rows", "systems", "postnets"} and re.fullmatch(r"[\w-]+", cell)
    for row in (*c.get("rows", {}), *c.get("systems", {}), *c.get("postnets", {})): published(row)
    recipe = recipe_from(base["recipe"]); used = recipe.augment.get("choose", {}).get("steps", [recipe.augment])
    assert set().union(*used) <= set(AUGMENTATIONS)
    for change in c.get("postnets", {}).values(): recipe_from(changed(base["postnet"], change)["recipe"], PostRecipe)


@pytest.mark.parametrize("cell", [c for c in SCALES["gpu"]["cells"] if c != "bounds"])
def test_published_sizes(cell):
    base = changed(SCALES["gpu"]["base"], SCALES["gpu"]["cells"][cell].get("change", {})); config = base["config"]
    with torch.device("meta"): net = TableUNet(2 * len(map_ratios(config["maps"])), 2, 1024, TABLES[config["table"]])
    millions = int(re.search(r"(\d+)M", config["table"])[1])
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.15)  # tables A.1 and A.2 give 25.6 for the dense one
    assert {k: config[k] for k in config.keys() & DeepUNet.presets["30M"].keys() - {"table"}} == {k: v for k, v in DeepUNet.presets["30M"].items() if k in config and k != "table"}


def test_the_large_scale_has_every_row_of_the_tables():
    named = {row for c in SCALES["gpu"]["cells"].values() for part in ("rows", "systems", "postnets") for row in c.get(part, {})}
    named = {same for row in named for same in same_runs(row)}
    assert set(PUBLISHED) - named == {"B.1 Std."} and len(SCALES["gpu"]["seeds"]) == 5  # B.1 is a deviation over five trainings
    small = {same for c in SCALES["cpu"]["cells"].values() for part in ("rows", "postnets") for row in c.get(part, {}) for same in same_runs(row)}
    assert {e for e, pair in EFFECTS.items() if set(pair) <= small} >= {"deeper U-Net", "harmonic maps", "augmentation of 25 %", "random mixing, on top of augmentation", "multichannel Wiener filter", "seven phrases instead of none"}


def test_cells_share_everything_that_they_do_not_change():
    for s in SCALES.values(): assert {k for c in s["cells"].values() for k in c.get("change", {})} <= {"config.maps", "config.table", "model", *(f"recipe.{k}" for k in ("coherent", "augment", "loss", "batch", "steps", "epochs"))}
    assert PARAMS["chosen"] in SCALES.values()


# the stages

def cell(name, seed, tracks, folder):
    s = SCALES["smoke"]
    run_stage(STAGES / "ablation_cell.ipynb", folder / f"ablation-{name}-{seed}.ipynb",
              dict(cell=name, seed=seed, base=s["base"], settings=s["cells"][name], tracks=str(tracks), device="cpu", out=str(folder / "ablation" / f"{name}-{seed}.json")))


def test_cells_and_page(tracks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); s = SCALES["smoke"]
    for name in ("bounds", "plus"): cell(name, 1, tracks, tmp_path)
    plus, = read_results("ablation", ["plus"], [1])
    assert plus["rows"]["4.2 U_H+"] == plus["rows"]["4.3 Mask"] != plus["rows"]["4.3 MWF"] and set(plus["rows"]["B.5 PA (K = 3)"]) == {"drums"}
    run_stage(STAGES / "ablation.ipynb", "ablation.ipynb", dict(run=["bounds", "plus"], seeds=[1], base=s["base"], cells=s["cells"], tracks=str(tracks), results="ablation"))
    page = Path("ablation.html").read_text()
    for text in ("Table 4.1, SI-SDR", "Table B.5, SDR", "multichannel Wiener filter", "PA-Net, K = 3", 'href="ablation-plus-1.html"', "same?"): assert text in page, text
    assert "Table 4.5" not in page and str(tmp_path) not in page


@pytest.mark.parametrize("stage", ["ablation_cell", "ablation"])
def test_unknown_parameters_are_refused(stage, tmp_path):
    with pytest.raises(SepnbError, match="no parameter colour"): run_stage(STAGES / f"{stage}.ipynb", tmp_path / "x.ipynb", dict(colour="red"))


def test_the_pipeline_names_what_it_makes():
    assert PIPELINE["cell"]["matrix"] == {"cell": "${chosen.run}", "seed": "${chosen.seeds}"}
    for stage in PIPELINE.values():
        made = [next(iter(o)) for o in stage["outs"]]; target = next(w for w in stage["cmd"].split() if w.startswith("../reports/"))
        assert target in made and target.replace(".ipynb", ".html") in made and all(o[k] == {"cache": False} for o in stage["outs"] for k in o)
        assert all((ROOT / "ablation" / d).exists() for d in stage["deps"] if d.startswith(("../nbs", "../sepnb")))
