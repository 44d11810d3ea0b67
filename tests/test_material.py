"""Recordings of single stems in training: batches, resume, what the card says, the pipeline of the table at smoke scale."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st

import sepnb.classical.bounds  # noqa: F401, registers the mixture
from sepnb.core import SepnbError, seed_everything
from sepnb.data.bank import ORIGINS, StemBank, draw, load_material, take, excerpt_starts, with_material
from sepnb.data.prepare import prepare
from sepnb.data.tracks import find_tracks, load_track, read_manifest, stem_digest
from sepnb.evaluate import songs_heard
from sepnb.material import cross_fit, folds_of, others, prepare_material, read_results, scores, voiced
from sepnb.runner import run_stage
from sepnb.separator import Separator
from sepnb.train.__main__ import Job, carry_out
from sepnb.train.checkpoint import read_card
from sepnb.train.loop import near, recipe_from

ROOT = Path(__file__).parents[1]
STAGES = ROOT / "nbs" / "stages"
PARAMS = yaml.safe_load((ROOT / "material" / "params.yaml").read_text())
PIPELINE = yaml.safe_load((ROOT / "material" / "dvc.yaml").read_text())["stages"]
SMOKE = PARAMS["scales"]["smoke"]


class Half(Separator):
    def estimate(self, mix, sources=None): return torch.stack([0.5 * mix, 0.5 * mix])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    prepare(dict(kind="toy", songs=4, seconds=3.0, sample_rate=8000, stems=["vocals", "drums", "bass", "other"]), root / "tracks", seed=1, progress=False)
    prepare(dict(kind="toy", songs=3, seconds=3.0, sample_rate=8000, stems=["backing", "guitar"]), root / "recordings" / "two_stems", seed=2, progress=False)
    prepare_material(root / "material", root / "recordings" / "two_stems", root / "tracks", folds=SMOKE["prepare"]["folds"], teacher=Half(("vocals", "accompaniment")))
    return root


def noise(songs, length=4000, stems=3, seed=0):
    g = seed_everything(seed)
    return StemBank([0.3 * torch.randn(stems, 2, length + 100 * i, generator=g).clamp(-3, 3) for i in range(songs)], sample_rate=8000)


# batches

def former(bank, generator, *, batch, samples, coherent):
    "What drawing did before there was material."
    places, stems = int((bank.lengths - samples + 1).clamp_min(0).sum()), len(bank.pcm)
    numbers = torch.randint(places, (batch, stems), generator=generator)
    together = torch.rand(batch, 1, generator=generator) < coherent
    return take(bank, excerpt_starts(torch.where(together, numbers[:, :1], numbers), bank.lengths, samples), samples)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1))
def test_without_material_batches_are_what_they_were(seed, batch, coherent):
    bank, (a, b) = noise(3), (torch.Generator().manual_seed(seed) for _ in range(2))
    for _ in range(2): assert torch.equal(draw(bank, a, batch=batch, samples=500, coherent=coherent), former(bank, b, batch=batch, samples=500, coherent=coherent))
    assert torch.equal(a.get_state(), b.get_state())  # nothing more was asked of the generator


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_material_changes_its_stem_in_mixed_examples_only(seed, coherent, weight):
    bank, other = noise(3), StemBank([torch.full((1, 2, 3000), 0.25)], sample_rate=8000)
    one, two = (draw(x, torch.Generator().manual_seed(seed), batch=16, samples=500, coherent=coherent) for x in (bank, with_material(bank, {1: [(other, weight)]})))
    assert torch.equal(one[:, [0, 2]], two[:, [0, 2]])
    changed = (two[:, 1] == 0.25).flatten(1).all(1)
    assert torch.equal(one[~changed, 1], two[~changed, 1])
    if coherent == 1 or weight == 0: assert not changed.any()
    if coherent == 0 and weight == 1: assert changed.all()


def test_weights_are_shares():
    bank, kinds = noise(2), [StemBank([torch.full((1, 2, 3000), v)], sample_rate=8000) for v in (0.25, 0.5)]
    batch = draw(with_material(bank, {2: [(kinds[0], 0.2), (kinds[1], 0.3)]}), seed_everything(0), batch=2000, samples=10, coherent=0.5)[:, 2]
    assert [float((batch == v).flatten(1).all(1).float().mean()) for v in (0.25, 0.5)] == pytest.approx([0.1, 0.15], abs=0.03)


def test_material_moves_and_counts_with_its_bank():
    bank = noise(2); full = with_material(bank, {0: [(noise(1, stems=1), 0.5)]})
    assert full.nbytes == bank.nbytes + 2 * 2 * 4000 and near(full, "cpu") is full and bank.material == () and full.pcm is bank.pcm
    with pytest.raises(SepnbError, match="no song is as long"): draw(full, seed_everything(0), batch=2, samples=4001)  # the material is shorter


@pytest.mark.parametrize("stem,other,weight,message", [(3, dict(stems=1), 0.1, "songs have 3 stems"), (0, dict(stems=2), 0.1, "must be one stem"), (0, dict(stems=1), 1.5, "1 together"), (0, dict(stems=1), -0.1, "0 or more")])
def test_material_that_does_not_fit_is_refused(stem, other, weight, message):
    with pytest.raises(SepnbError, match=message): with_material(noise(1), {stem: [(noise(1, **other), weight)]})


# passages, folds

def test_no_silence_and_no_bleed_is_taught():
    g = seed_everything(0); mix = torch.randn(2, 80000, generator=g) * 0.1; mix[:, 56000:] = 0
    voice = 0.05 * mix; voice[:, 8000:24000] = 0.5 * mix[:, 8000:24000]  # 26 dB below, for two seconds 6 dB below, then nothing in nothing
    assert voiced(voice, mix, sample_rate=8000).shape[-1] == 16000 and voiced(voice, mix, sample_rate=8000, shortest=3).shape[-1] == 0
    assert voiced(voice, mix, sample_rate=8000, below_db=30).shape[-1] == 56000 and torch.equal(mix[:, 56000:], torch.zeros(2, 24000))


def test_every_song_of_the_recordings_has_a_fold():
    from sepnb.data.sources import PACKS
    names = [f"{pack.artist} - {title}" for pack in PACKS for title, _ in pack.songs.values()]
    for scale in ("cpu", "gpu"):
        found = folds_of(names, PARAMS["scales"][scale]["prepare"]["folds"])
        assert {fold: {n.split(" - ")[0] for n in some} for fold, some in found.items()} == dict(muldjord={"Muldjord"}, sectoid={"Sectoid"})


def test_material_has_the_level_and_the_rate_of_its_songs(home):
    from sepnb.material import level_db, usual_level_db
    train = find_tracks(home / "tracks", split="train")
    for kind, stem in (("guitars", "other"), ("voices", "vocals")):
        for t in find_tracks(home / "material" / kind / "rest"): assert level_db(load_track(t)[0], sample_rate=8000) == pytest.approx(usual_level_db(train, stem), abs=0.1)


def test_material_twice_is_the_same(home, tmp_path):
    prepare_material(tmp_path, home / "recordings" / "two_stems", home / "tracks", folds=SMOKE["prepare"]["folds"], teacher=Half(("vocals", "accompaniment")))
    for manifest in (home / "material").rglob("manifest.csv"): assert manifest.read_bytes() == (tmp_path / manifest.relative_to(home / "material")).read_bytes()


# training

def job(home, out, **changes):
    wanted = others(home / "material", dict(guitars=dict(stem="other", weight=0.5), voices=dict(stem="vocals", weight=0.5)), "first")
    return replace(Job("mask_rnn.DeepMaskInference", config=dict(n_fft=256, hop_length=128, hidden=8), tracks=str(home / "tracks"), material=wanted, out=str(out), state=str(out) + ".state",
                       recipe=dict(segment_s=0.25, batch=4, steps=4, epochs=3, valid_excerpts=2), threads=1, device="cpu"), **changes)


def test_the_card_names_the_song_that_a_voice_was_made_from(home, tmp_path):
    for kind in ("guitars-rest", "voices-rest"):
        own = job(home, tmp_path / kind); own = replace(own, material={kind: own.material[kind]}); carry_out(own, progress=False)
        card, manifest = read_card(tmp_path / kind), read_manifest(home / "recordings" / "two_stems")
        assert songs_heard(card, manifest, allow=True) == ["Toy 2", "Toy 3"]
        with pytest.raises(SepnbError, match="2 of 3 songs were used to train"): songs_heard(card, manifest)
        song, = (t for t in find_tracks(home / "recordings" / "two_stems") if t.name == "Toy 2")
        assert stem_digest(song.path("mixture")) in card["trained_on"]


def test_killed_and_continued_with_material(home, tmp_path, monkeypatch):
    import sepnb.train.loop as loop
    expected = carry_out(job(home, tmp_path / "a"), progress=False)
    step, left = loop.augment, [6]
    def impatient(*args, **more):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return step(*args, **more)
    monkeypatch.setattr(loop, "augment", impatient)
    with pytest.raises(KeyboardInterrupt): carry_out(job(home, tmp_path / "b"), progress=False)
    monkeypatch.setattr(loop, "augment", step); torch.manual_seed(99)
    assert Path(job(home, tmp_path / "b").state).is_file()
    with pytest.raises(SepnbError): carry_out(job(home, tmp_path / "b", material={}), progress=False)  # the rest of another run
    assert carry_out(job(home, tmp_path / "b"), progress=False) == expected
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert carry_out(job(home, tmp_path / "c", material={}), progress=False) != expected  # material does something


def test_material_without_origins_is_refused(home, tmp_path):
    import shutil
    shutil.copytree(home / "material" / "guitars" / "rest", tmp_path / "set"); next((tmp_path / "set").rglob(ORIGINS)).unlink()
    with pytest.raises(SepnbError, match="does not say what it was made from"): load_material({"x": dict(tracks=tmp_path / "set", stem="other", weight=0.1)}, ["other"], sample_rate=8000, channels=2)


def test_a_fold_without_voices_learns_without(home, tmp_path):
    import shutil
    shutil.copytree(home / "material", tmp_path / "material"); shutil.rmtree(tmp_path / "material" / "voices" / "first")
    found = list(cross_fit(SMOKE["base"], {"voices": dict(stem="vocals", weight=0.3)}, tracks=home / "tracks", material=tmp_path / "material", folds=["first", "rest"], seed=1, threads=1, device="cpu", state=tmp_path / "s.safetensors"))
    assert [sorted(card.get("material", {})) for *_, card in found] == [["voices-rest"], []]


# the stages

@pytest.mark.parametrize("scale", PARAMS["scales"])
def test_a_scale_is_complete(scale):
    s = PARAMS["scales"][scale]; recipe_from(s["base"]["recipe"])
    assert set(s["run"]) <= set(s["cells"]) and s["run"][0] == "alone" and not s["cells"]["alone"] and PARAMS["chosen"] in PARAMS["scales"].values()
    for c in s["cells"].values(): assert all(set(k) == {"stem", "weight"} and 0 < k["weight"] < 1 for k in c.values())


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_the_network_is_the_default_pipelines(scale):
    dmi = yaml.safe_load((ROOT / "params.yaml").read_text())["models"]["dmi"]; base = PARAMS["scales"][scale]["base"]
    assert base["model"] == dmi["model"] and (scale == "smoke" or base["config"] == dmi[scale]["config"])


def test_cells_and_page(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); s = SMOKE
    run_stage(STAGES / "material_prepare.ipynb", "material-prepare.ipynb", dict(s["prepare"], tracks=str(home / "tracks"), recordings=str(home / "recordings"), device="cpu", out="material"))
    for cell in s["run"]:
        run_stage(STAGES / "material_cell.ipynb", f"material-{cell}-1.ipynb",
                  dict(cell=cell, seed=1, base=s["base"], wanted=s["cells"][cell], folds=s["prepare"]["folds"], recordings_s=s["recordings_s"], tracks=str(home / "tracks"), recordings=str(home / "recordings"),
                       material="material", device="cpu", state="state/x.safetensors", out=f"results/{cell}-1.json"))
    both = json.loads(Path("results/both-1.json").read_text())
    assert {r["song"]: r["fold"] for r in both["rows"]} == {"Toy 1": "first", "Toy 2": "rest", "Toy 3": "rest"} and both["networks"]["rest"]["heard"] == ["Toy 1"]
    assert {r["system"] for r in scores(read_results("results", s["run"], [1]))} == {"alone", "both"} and not list(Path("state").glob("*"))
    run_stage(STAGES / "material.ipynb", "material.ipynb", dict(run=s["run"], seeds=[1], base=s["base"], cells=s["cells"], folds=s["prepare"]["folds"], results="results"))
    page = Path("material.html").read_text()
    for text in ("two_stems, gain in dB", "ideal ratio mask, gain", "of 3)", 'href="material-both-1.html"', "guitars-first, voices-first"): assert text in page, text
    assert str(tmp_path) not in page


@pytest.mark.parametrize("stage", ["material_prepare", "material_cell", "material"])
def test_unknown_parameters_are_refused(stage, tmp_path):
    with pytest.raises(SepnbError, match="no parameter colour"): run_stage(STAGES / f"{stage}.ipynb", tmp_path / "x.ipynb", dict(colour="red"))


def test_the_pipeline_names_what_it_makes():
    assert PIPELINE["cell"]["matrix"] == {"cell": "${chosen.run}", "seed": "${chosen.seeds}"}
    for stage in PIPELINE.values():
        made = {next(iter(o)) if isinstance(o, dict) else o: o for o in stage["outs"]}; target = next(w for w in stage["cmd"].split() if w.startswith("../reports/"))
        assert target in made and target.replace(".ipynb", ".html") in made and all(o[k] == {"cache": False} for o in made.values() if isinstance(o, dict) for k in o)
        assert all((ROOT / "material" / d).exists() for d in stage["deps"] if d.startswith(("../nbs", "../sepnb")))
