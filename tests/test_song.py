"""Generated songs: the same bytes in any process and any number of them, splits that share nothing, stems that sum to the mixture, no silent stem."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepnb.core import SepnbError
from sepnb.data.doctor import doctor
from sepnb.data.prepare import FACTS, prepare, read_facts
from sepnb.data.sources import collect
from sepnb.data.tracks import find_tracks, load_track, quantise, read_manifest
from sepnb.music import song as chapter
from sepnb.music.assets import ASSETS, is_cached
from sepnb.music.pools import POOLS
from sepnb.music.render import known, origins
from sepnb.music.song import (ATTEMPTS, CASTS, LEAST, Materials, bill, edition, gather, make_song, needed_assets, play_drums, play_parts, recipe, shared, song_licence,
                              song_seconds, write_score)

pytest.importorskip("pyworld", reason="singing needs pyworld")
SETTINGS = {"kind": "generated", "songs": {"train": 2, "valid": 1, "test": 1}, "seconds": [6, 7], "assets": "smoke"}


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs") / "tracks"
    prepare(SETTINGS, folder, seed=5, progress=False)
    return folder


# ---------------------------------------------------------------- a set

def test_any_number_of_processes_gives_the_same_bytes(prepared, tmp_path):
    prepare(SETTINGS, tmp_path / "tracks", seed=5, jobs=2, progress=False)
    assert files(tmp_path / "tracks") == files(prepared)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "tracks").rglob("*.flac")}
    prepare(SETTINGS, tmp_path / "tracks", seed=5, jobs=2, progress=False) # nothing is made twice
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())


def test_the_set_is_sound(prepared):
    assert doctor(prepared) == []
    for track in find_tracks(prepared):
        sources = load_track(track); mixture, rate = soundfile.read(track.path("mixture"), dtype="float32", always_2d=True)
        assert track.stems == ("drums", "bass", "other", "vocals") and rate == 44100 and track.channels == 2
        assert torch.equal(torch.from_numpy(mixture.T), sources.sum(0)) # to the last bit
        assert mixture.max() < 0.99 and mixture.min() > -0.99
    assert {r["gain_db"] for r in read_manifest(prepared)} == {0.0}


def test_no_stem_is_silent(prepared):
    for facts in read_facts(prepared):
        assert facts["attempt"] < ATTEMPTS and set(facts["activity"]) == set(LEAST)
        assert all(facts["activity"][stem] >= least for stem, least in LEAST.items()), facts["activity"]


def test_splits_share_nothing(prepared):
    songs = read_facts(prepared)
    assert len(songs) == 4 and shared(songs) == []
    assert {f["split"] for f in songs} == {"train", "valid", "test"}
    voices = {split: {f["voice"] for f in songs if f["split"] == split} for split in POOLS}
    assert not voices["train"] & voices["test"] and not voices["train"] & voices["valid"]


def test_a_leak_is_found(prepared):
    songs = read_facts(prepared); train = next(f for f in songs if f["split"] == "train"); test = next(f for f in songs if f["split"] == "test")
    for kind in ("title", "style", "voice"): assert any(line.startswith(kind) for line in shared([train, test | {kind: train[kind]}]))
    for kind in ("words", "grooves", "progressions"): assert any(line.startswith(kind) for line in shared([train, test | {kind: test[kind] + train[kind][:1]}]))
    assert any("origins" in line for line in shared([train | dict(origins=["x"]), test | dict(origins=["x"])]))
    assert any(line.startswith("preset") for line in shared([train, test | dict(preset=train["preset"])]))


def test_facts_lie_beside_the_stems(prepared):
    for track in find_tracks(prepared):
        facts = json.loads((track.folder / FACTS).read_text())
        assert facts["split"] == track.split and facts["seconds"] == pytest.approx(track.seconds, abs=1e-3) and facts["materials"] == "smoke"
        assert facts["parts"] and facts["words"] and len(facts["preset"]["strips"]) == 4


def test_another_seed_or_recipe_makes_other_songs(prepared):
    old = {r["song"]: r["source"] for r in read_manifest(prepared)}
    other = collect(SETTINGS, seed=6)
    assert [s.name for s in other] == ["train-0000", "train-0001", "valid-0000", "test-0000"] and all(s.source != old[s.name] for s in other)
    assert all(s.source == old[s.name] for s in collect(SETTINGS, seed=5))


INTERRUPTED = """
from sepnb.data.prepare import prepare
if __name__ == "__main__":
    try: prepare(%r, %r, seed=5, jobs=2, progress=False)
    except KeyboardInterrupt: print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_half_made(sent, tmp_path):
    settings = {"kind": "toy", "songs": 60, "seconds": 15.0, "sample_rate": 44100}; out = tmp_path / "tracks"
    script = tmp_path / "run.py"; script.write_text(INTERRUPTED % (settings, str(out)))
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    began = time.time()
    while len(list(out.glob("train/[!.]*/mixture.flac"))) < 2 and time.time() - began < 300: time.sleep(0.05)
    run.send_signal(sent); said, _ = run.communicate(timeout=300)
    assert sent == signal.SIGKILL or "interrupted" in said
    half = list(out.glob("*/.*")) # after a kill the next run sweeps; workers whose parent is gone end, or communicate() would still wait for them
    assert (not half or sent == signal.SIGKILL) and 2 <= len(find_tracks(out)) < 60
    assert all((t.folder / "mixture.flac").exists() and len(t.stems) == 4 for t in find_tracks(out))


def test_jobs_are_counted():
    with pytest.raises(SepnbError, match="jobs"): prepare(SETTINGS, "unused", jobs=0, progress=False)


# ---------------------------------------------------------------- one song

def test_a_song_does_not_depend_on_those_before(prepared):
    track = next(t for t in find_tracks(prepared) if t.name == "train-0001") # another one was made before it, there
    torch.manual_seed(99); np.random.seed(99)
    sources, facts = make_song("train", 1, seed=5, seconds=song_seconds("train", 1, seed=5, seconds=(6, 7)))
    stored = load_track(track)
    assert torch.equal(quantise(torch.stack(list(sources.values())))[0] / 32768, stored)
    assert json.loads(json.dumps(facts)) == json.loads((track.folder / FACTS).read_text()) == facts


def test_thin_songs_are_drawn_again(monkeypatch):
    made = []
    def attempt(split, index, seed, seconds, materials):
        made.append(seed); return {}, dict(activity={stem: 0.1 * len(made) for stem in LEAST})
    monkeypatch.setattr(chapter, "_attempt", attempt)
    assert make_song("train", 0)[1]["attempt"] == 4 and len(made) == len(set(made)) == ATTEMPTS # 0.5 at last
    made.clear(); monkeypatch.setattr(chapter, "_attempt", lambda *a: ({}, dict(activity={stem: 1.0 for stem in LEAST})))
    assert make_song("train", 0)[1]["attempt"] == 0


def test_the_best_of_thin_songs_is_kept(monkeypatch):
    levels = iter([0.1, 0.4, 0.2, 0.3, 0.0])
    monkeypatch.setattr(chapter, "_attempt", lambda *a: ({}, dict(activity={stem: next_level for next_level in [next(levels)] for stem in LEAST})))
    assert make_song("train", 0)[1]["attempt"] == 1


def test_parts_are_levelled_and_silence_stays_silent():
    billing = bill("train", 3, Materials()); score = write_score("train", billing, seed=3, seconds=8.0, materials=Materials())
    other = [p for p in score.parts if p.stem == "other"]
    x, settings = play_parts(other, None, split="train", seconds=8.0, seed=3)
    assert set(settings) == {p.name for p in other} and x.isfinite().all() and x.abs().max() > 0.01
    assert not play_parts([], None, split="train", seconds=1.0, seed=3)[0].any() and not play_drums([], None, seconds=1.0, seed=3).any()


@pytest.mark.parametrize("wrong", [dict(split="dev"), dict(split="train", seconds=1.0)])
def test_wrong_songs(wrong):
    with pytest.raises(SepnbError): make_song(**{"index": 0} | wrong)


# ---------------------------------------------------------------- the plan

def test_casts_share_no_recording():
    for casts in CASTS.values(): assert set(casts) == set(POOLS) and chapter._unshared(casts) == []
    full = CASTS["full"]; everything = [p for cast in full.values() for p in {*cast.instruments, *cast.drums}]
    assert len(everything) == len(set(everything)) and all(known(p) for p in everything)
    assert not origins(full["train"].instruments + full["train"].drums) & origins(full["test"].instruments + full["test"].drums)


def test_assets_are_known():
    assert needed_assets("smoke") == [] and set(needed_assets("full")) <= set(ASSETS)
    assert set().union(*(needed_assets("full", s) for s in POOLS)) == set(needed_assets("full"))


@pytest.mark.parametrize("seconds", [(5, 10), (20, 10), (0, 0)])
def test_wrong_durations(seconds):
    with pytest.raises(SepnbError): song_seconds("train", 0, seed=0, seconds=seconds)


@pytest.mark.parametrize("wrong", [dict(songs={"dev": 1}), dict(seconds=[6]), dict(seconds=[3, 6]), dict(assets="gold"), dict(colour=1)])
def test_wrong_settings(wrong):
    with pytest.raises(SepnbError): collect(SETTINGS | wrong)


def test_missing_assets_say_so_in_one_line(tmp_path):
    with pytest.raises(SepnbError, match="(?s)^[^\n]+$"): gather("full", cache_dir=tmp_path / "cache", local=tmp_path / "nowhere")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())


def test_recipes_name_what_songs_depend_on():
    full = Materials("full")
    assert recipe(full, seed=1) != recipe(full, seed=2) and "mma 21.09" in recipe(full, seed=1) and edition() in recipe(full, seed=1)
    assert song_licence("train", Materials())[0].startswith("CC0")


# ---------------------------------------------------------------- recorded instruments, where they were fetched before

CACHE = os.environ.get("SEPNB_CACHE") or "data/cache"


@pytest.mark.skipif(not all(is_cached(a, cache_dir=CACHE) for a in needed_assets("full")), reason="the full assets are not in $SEPNB_CACHE")
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_full_songs(split):
    materials = gather("full", cache_dir=CACHE)
    sources, facts = make_song(split, 0, seed=2, seconds=8.0, materials=materials); again, same = make_song(split, 0, seed=2, seconds=8.0, materials=materials)
    assert same == facts and all(torch.equal(again[s], sources[s]) for s in sources)
    assert sum(sources.values()).abs().max() <= 0.98 + 1e-6 and all(facts["activity"][s] >= least for s, least in LEAST.items())
    short, notice = song_licence(split, materials)
    assert "generated" in short and "flite" in notice and len(notice) > 1000
