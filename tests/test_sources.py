"""Adapters: settings are checked, prepared sets are complete, resumable and the same every time."""
import gzip
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sepnb.audio import STEM_MP4, load_stem_mp4, save_audio
from sepnb.core import SepnbError
from sepnb.data import sources as chapter
from sepnb.data.doctor import doctor
from sepnb.data.prepare import licences_text, prepare
from sepnb.data.sources import MUSDB_VALID, PACKS, collect, draw_repitch, origin, pack_songs, repitch, toy
from sepnb.data.tracks import find_tracks, load_track, read_manifest, write_manifest, write_track
from sepnb.synth import click, tone

from test_assets import make_deb

TOY = {"kind": "toy", "songs": 4, "seconds": 0.5, "sample_rate": 8000, "stems": ["guitar", "backing"]}


def run(settings, out, **kw): return prepare(settings, out, progress=False, **kw)
def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}
def noise(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) / 4


# ---------------------------------------------------------------- two-stem songs

def test_packs_are_complete():
    for pack in PACKS: assert len(pack.sha256) == len(pack.content_sha256) == 64 and pack.licence and len(pack.songs) == 4
    splits = [(p.artist, split) for p in PACKS for _, split in p.songs.values()]
    assert [sum(s == split for _, s in splits) for split in ("train", "valid", "test")] == [5, 1, 2]
    assert {a for a, s in splits if s == "test"} == {a for a, s in splits if s == "train"} == {"Sectoid", "Muldjord"}


def test_two_stem_songs(tmp_path, monkeypatch):
    "The whole way with packages of our own: fetched, unpacked, converted, credited."
    monkeypatch.delenv("SEPNB_CACHE", raising=False); packs = []
    for pack in PACKS:
        members = {f"./usr/share/doc/{pack.package}/copyright": f"Terms of {pack.artist}".encode()}
        for i, name in enumerate(pack.songs):
            for j, file in enumerate(("guitar", "song")):
                save_audio(tmp_path / "x.ogg", 3 * noise(2, 8000, seed=10 * i + j + len(pack.artist)), 8000, overwrite=True)
                members[f"./usr/share/games/{pack.artist}/{name}/{file}.ogg"] = (tmp_path / "x.ogg").read_bytes()
        deb = make_deb(tmp_path / f"{pack.package}_{pack.version}_all.deb", members)
        packs.append(chapter.replace(pack, sha256=hashlib.sha256(deb.read_bytes()).hexdigest()))
    monkeypatch.setattr(chapter, "PACKS", tuple(packs))
    rows = run({"kind": "fretsonfire", "local": str(tmp_path)}, tmp_path / "data/tracks")
    assert doctor(tmp_path / "data/tracks") == [] and (tmp_path / "data/cache").is_dir() and len(rows) == 8
    assert all(r["stems"] == ("backing", "guitar") and r["gain_db"] < 0 for r in rows)
    text = (tmp_path / "data/tracks/LICENCES.txt").read_text()
    assert all(f"Terms of {p.artist}" in text and p.licence in text for p in PACKS) and "  Muldjord - Chaos God\n" in text
    shutil.rmtree(next((tmp_path / "data/cache").glob("*muldjord*/files/usr/share/games")))
    with pytest.raises(SepnbError, match="lacks the song"): run({"kind": "fretsonfire"}, tmp_path / "data/more")


# ---------------------------------------------------------------- adapters

def test_validation_list_is_that_of_musdb():
    yaml = pytest.importorskip("yaml"); import importlib.util
    spec = importlib.util.find_spec("musdb")
    if spec is None: pytest.skip("the musdb package is not here")
    config = yaml.safe_load((Path(spec.origin).parent / "configs/mus.yaml").read_text(encoding="utf-8"))
    assert MUSDB_VALID == set(config["validation_tracks"]) and len(config["validation_tracks"]) == 14


def hq(root, songs, stems=("bass", "drums", "other", "vocals")):
    for part, name in songs:
        for i, stem in enumerate(stems): (root / part / name).mkdir(parents=True, exist_ok=True); soundfile.write(root / part / name / f"{stem}.wav", noise(800, 2, seed=i + 100 * len(name)).numpy(), 44100)
        soundfile.write(root / part / name / "mixture.wav", noise(800, 2, seed=99).numpy(), 44100) # not the sum, and not used


def test_musdb_hq(tmp_path):
    hq(tmp_path / "hq", [("train", "A - One"), ("train", "Triviul - Angelsaint"), ("test", "Leaf - Summerghost")])
    run({"kind": "musdb_hq", "root": str(tmp_path / "hq")}, tmp_path / "out")
    assert {(t.split, t.name) for t in find_tracks(tmp_path / "out")} == {("train", "A - One"), ("valid", "Triviul - Angelsaint"), ("test", "Leaf - Summerghost")}
    assert doctor(tmp_path / "out") == [] and find_tracks(tmp_path / "out")[0].stems == ("drums", "bass", "other", "vocals")
    truth = soundfile.read(tmp_path / "hq/train/A - One/bass.wav", dtype="float32")[0].T
    scale = 10 ** (read_manifest(tmp_path / "out")[0]["gain_db"] / 20)
    assert abs(load_track(find_tracks(tmp_path / "out")[0])[1].numpy() - scale * truth).max() <= 2**-16 + 1e-7
    (tmp_path / "hq/train/Hollow").mkdir()
    with pytest.raises(SepnbError, match="Hollow holds no stems"): run({"kind": "musdb_hq", "root": tmp_path / "hq"}, tmp_path / "out2")


@pytest.mark.parametrize("kind", ["musdb_hq", "stem_mp4", "tracks"])
def test_nothing_there(tmp_path, kind):
    with pytest.raises(SepnbError, match="no folder"): run({"kind": kind, "root": str(tmp_path / "nowhere")}, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SepnbError, match="no (songs|.stem.mp4)"): run({"kind": kind, "root": str(tmp_path / "empty")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stem_mp4(tmp_path):
    "The six seconds of real music that the stempeg package carries; read from there, never copied."
    import importlib.util
    spec = importlib.util.find_spec("stempeg"); found = sorted(Path(spec.origin).parent.rglob("*.stem.mp4")) if spec else []
    if not found: pytest.skip("the stempeg package, which carries a .stem.mp4, is not here")
    (tmp_path / "musdb/test").mkdir(parents=True); (tmp_path / "musdb/test" / found[0].name).symlink_to(found[0])
    rows = run({"kind": "stem_mp4", "root": str(tmp_path / "musdb"), "excerpt_s": [1, 2]}, tmp_path / "out")
    track, = find_tracks(tmp_path / "out")
    assert (track.split, track.name, track.stems, track.sample_rate, track.samples) == ("test", found[0].name.removesuffix(".stem.mp4"), STEM_MP4[1:], 44100, 88200)
    assert not [f for f in doctor(tmp_path / "out") if f.severity == "error"] # in particular: the mixture is the sum
    streams, _ = load_stem_mp4(found[0], start_s=1, duration_s=2)
    assert (load_track(track) - streams[1:] * 10 ** (rows[0]["gain_db"] / 20)).abs().max() <= 2**-16 + 1e-6


def test_tracks_again(tmp_path):
    first = run(TOY, tmp_path / "a", seed=1)
    second = run({"kind": "tracks", "root": str(tmp_path / "a")}, tmp_path / "b")
    assert [r["sha256"] for r in first] == [r["sha256"] for r in second] and [r["licence"] for r in second] == ["CC0"] * 4
    third = run({"kind": "tracks", "root": str(tmp_path / "a"), "sample_rate": 4000, "channels": 1}, tmp_path / "c")
    assert {(r["rate"], r["channels"], r["seconds"]) for r in third} == {(4000, 1, 0.5)} and third[0]["source"].endswith("at 4000 Hz, 1 ch")
    assert doctor(tmp_path / "b") == doctor(tmp_path / "c") == []
    write_track(tmp_path / "plain", "test", "song", dict(a=noise(1, 9), b=noise(1, 9, seed=1)), 8000)
    assert run({"kind": "tracks", "root": str(tmp_path / "plain")}, tmp_path / "d")[0]["licence"] == "unknown"


def test_rates_that_differ(tmp_path):
    hq(tmp_path / "hq", [("test", "A - One")]); soundfile.write(tmp_path / "hq/test/A - One/bass.wav", noise(800, 2).numpy(), 22050)
    with pytest.raises(SepnbError, match="different rates"): run({"kind": "musdb_hq", "root": str(tmp_path / "hq")}, tmp_path / "out")


def test_toy_songs():
    songs = toy(songs=10, seconds=0.25, seed=3); read = [s.read()[0] for s in songs]
    assert [s.split for s in songs].count("test") == 2 and [s.split for s in songs].count("valid") == 1
    assert len({x["vocals"].numpy().tobytes() for x in read}) == 10 # every song is another
    assert torch.equal(read[0]["bass"], toy(songs=10, seconds=0.25, seed=3)[0].read()[0]["bass"])
    assert not torch.equal(read[0]["bass"], toy(songs=10, seconds=0.25, seed=4)[0].read()[0]["bass"])
    two = toy(songs=10, seconds=0.25, seed=3, stems=["backing", "guitar"])[0].read()[0]
    assert torch.allclose(sum(two.values()), sum(read[0].values()), atol=1e-6)


# ---------------------------------------------------------------- settings

@pytest.mark.parametrize("wrong, told", [
    ({}, "unknown kind"), ({"kind": "nope"}, "choose from toy, .*fretsonfire"), ({"kind": "toy", "sogns": 3}, "does not know 'sogns'"),
    ({"kind": "toy", "seed": 3}, "does not know 'seed'"), ({"kind": "toy", "root": "x"}, "does not know 'root'"), ({"kind": "tracks"}, "needs 'root'"),
    ({"kind": "toy", "songs": 2}, "3 or more"), ({"kind": "toy", "stems": ["kazoo"]}, "no toy stem"), ({"kind": "toy", "splits": {"X": "test"}}, "'X', which is not there"),
    ({"kind": "toy", "splits": {"Toy 1": "dev"}}, "has the split dev"), ({"kind": "toy", "splits": {}}, "has no songs"),
    ({"kind": "toy", "excerpt_s": [99, 1]}, "ends before 99 s")])
def test_wrong_settings(tmp_path, wrong, told):
    with pytest.raises(SepnbError, match=told) as e: run(wrong, tmp_path / "out")
    assert "\n" not in str(e.value) and not files(tmp_path)


def test_songs_of_one_name(tmp_path):
    (tmp_path / "train").mkdir()
    for p in ("train/A.stem.mp4", "A.stem.mp4"): (tmp_path / p).touch()
    with pytest.raises(SepnbError, match="A"): collect({"kind": "stem_mp4", "root": tmp_path, "splits": {"A": "test"}})


# ---------------------------------------------------------------- prepare

def test_same_bytes_twice(tmp_path):
    assert run(TOY, tmp_path / "a", seed=1) == run(TOY, tmp_path / "b", seed=1) == read_manifest(tmp_path / "a")
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == 4 * 3 + 2
    run(TOY, tmp_path / "c", seed=2); assert files(tmp_path / "c")["manifest.csv"] != files(tmp_path / "a")["manifest.csv"]


def test_a_finished_set_is_left_alone(tmp_path):
    run(TOY, tmp_path); stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.flac")}
    run(TOY, tmp_path); assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.flac")}


@pytest.mark.parametrize("damage", [lambda r: None, lambda r: shutil.rmtree(r / "train/Toy 2"), lambda r: (r / "train/Toy 2/guitar.flac").unlink(),
                                    lambda r: (r / "train/Toy 2/backing.flac").write_bytes(b"la"), lambda r: write_manifest(r, read_manifest(r)[2:]),
                                    lambda r: (r / "manifest.csv").unlink(), lambda r: (r / "LICENCES.txt").unlink(),
                                    lambda r: (r / "manifest.csv").write_text("what?"), lambda r: (r / "test/.Toy 4.5.part").mkdir()])
def test_a_broken_set_is_mended(tmp_path, damage):
    run(TOY, tmp_path); before = files(tmp_path)
    damage(tmp_path); run(TOY, tmp_path)
    assert files(tmp_path) == before and not list(tmp_path.rglob("*.part"))


def test_a_killed_run_goes_on(tmp_path):
    "SIGKILL at some moment; what is there is whole, and a second run completes it to the very bytes of an undisturbed one."
    settings = dict(TOY, songs=12, seconds=4.0); run(settings, tmp_path / "calm", seed=5)
    code = f"from sepnb.data.prepare import prepare; prepare({settings!r}, {str(tmp_path / 'hit')!r}, seed=5, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and len(list((tmp_path / "hit").glob("train/Toy*"))) < 3: time.sleep(0.005)
    process.send_signal(signal.SIGKILL); process.wait()
    done = {t.name: t.path("mixture").stat().st_mtime_ns for t in find_tracks(tmp_path / "hit")}
    assert all(set(p.name for p in t.folder.iterdir()) == {"backing.flac", "guitar.flac", "mixture.flac"} for t in find_tracks(tmp_path / "hit"))
    listed = {r["song"] for r in read_manifest(tmp_path / "hit")}; assert 2 <= len(listed) <= len(done)
    run(settings, tmp_path / "hit", seed=5)
    assert files(tmp_path / "hit") == files(tmp_path / "calm")
    assert all(t.path("mixture").stat().st_mtime_ns == done[t.name] for t in find_tracks(tmp_path / "hit") if t.name in listed)


def test_another_recipe_replaces(tmp_path):
    run(TOY, tmp_path)
    rows = run(dict(TOY, excerpt_s=[0.1, 0.2], splits={"Toy 4": "train", "Toy 1": "test"}), tmp_path)
    assert [(r["song"], r["split"], r["seconds"]) for r in rows] == [("Toy 4", "train", 0.2), ("Toy 1", "test", 0.2)]
    assert {(t.name, t.split, t.seconds) for t in find_tracks(tmp_path)} == {("Toy 4", "train", 0.2), ("Toy 1", "test", 0.2)}
    assert [f.what for f in doctor(tmp_path) if f.song] == ["has no songs"] # valid: nobody was put there


def test_other_peoples_songs_are_not_touched(tmp_path):
    run(TOY, tmp_path / "moved"); (tmp_path / "moved/train/Toy 2").rename(tmp_path / "moved/test/Toy 2")
    with pytest.raises(SepnbError, match="does not know .test/Toy 2."): run(TOY, tmp_path / "moved") # moved by hand: a person must look
    shutil.rmtree(tmp_path / "moved")
    write_track(tmp_path, "train", "Mine", dict(a=noise(1, 99)), 8000); before = files(tmp_path)
    with pytest.raises(SepnbError, match="does not know .train/Mine."): run(TOY, tmp_path)
    for out in (tmp_path, tmp_path / "train", tmp_path / "train/new"):
        with pytest.raises(SepnbError, match="overlap"): run({"kind": "tracks", "root": str(tmp_path)}, out)
    assert files(tmp_path) == before


# ---------------------------------------------------------------- versions

VERSIONS = dict(TOY, versions={"count": 2})


def test_versions_are_for_training_only_and_name_their_song(tmp_path):
    plain = run(TOY, tmp_path / "plain", seed=1); rows = run(VERSIONS, tmp_path / "more", seed=1)
    by = {r["song"]: r for r in rows}
    assert [r for r in rows if not origin(r)] == plain and len(rows) == len(plain) + 2 * 2
    for r in rows:
        name, _, number = r["song"].partition("~v")
        assert origin(r) == (by[name]["sha256"] if number else None) and (r["split"] == "train" or not number)
        if not number: continue
        tempo = float(r["source"].split("tempo ")[1].split(",")[0])
        assert 0.88 <= tempo <= 1.12 and abs(r["seconds"] - 0.5 / tempo) < 1e-3 and r["licence"] == by[name]["licence"]
    for t in find_tracks(tmp_path / "more"): # mixture = sum of stems, to the last bit
        assert (load_track(t).sum(0).T.numpy() == soundfile.read(t.path("mixture"), dtype="float32", always_2d=True)[0]).all()
    assert not [f for f in doctor(tmp_path / "more") if f.severity == "error"]
    text = (tmp_path / "more/LICENCES.txt").read_text()
    assert "  Toy 1~v2\n" in text and text.count("\nCC0\n") == 1


def test_versions_are_the_same_every_time(tmp_path):
    run(VERSIONS, tmp_path / "a", seed=1); run(VERSIONS, tmp_path / "b", seed=1, jobs=2); run(VERSIONS, tmp_path / "c", seed=2)
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == (4 + 4) * 3 + 2
    drawn = lambda root: [r["source"].split(", a version")[0] for r in read_manifest(root) if origin(r)]
    assert len({d.split(", ", 3)[-1] for d in drawn(tmp_path / "a")}) == 4 and drawn(tmp_path / "a") != drawn(tmp_path / "c")


def test_a_version_is_its_song_in_another_key(tmp_path):
    "The same by another route: stems as they are on disk, put into the key and tempo that the manifest tells."
    run(VERSIONS, tmp_path, seed=1); tracks = {t.name: t for t in find_tracks(tmp_path)}
    row = next(r for r in read_manifest(tmp_path) if r["song"] == "Toy 1~v1")
    semitones, tempo = float(row["source"].split(" semitones")[0].split(", ")[-1]), float(row["source"].split("tempo ")[1].split(",")[0])
    again = repitch(load_track(tracks["Toy 1"]), semitones=semitones, tempo=tempo) * 10 ** (row["gain_db"] / 20)
    assert (load_track(tracks["Toy 1~v1"]) - again).abs().max() < 2e-3


@pytest.mark.parametrize("damage", [lambda r: shutil.rmtree(r / "train/Toy 1~v2"), lambda r: shutil.rmtree(r / "train/Toy 2"), lambda r: (r / "manifest.csv").unlink(),
                                    lambda r: write_manifest(r, read_manifest(r)[1:]), lambda r: (r / "train/Toy 1~v1/backing.flac").write_bytes(b"la")])
def test_versions_are_mended(tmp_path, damage):
    run(VERSIONS, tmp_path); before = files(tmp_path)
    damage(tmp_path); run(VERSIONS, tmp_path)
    assert files(tmp_path) == before
    run(TOY, tmp_path); assert not list(tmp_path.rglob("*~v*"))


def test_a_changed_song_changes_its_versions(tmp_path):
    run(VERSIONS, tmp_path); before = {r["song"]: r for r in read_manifest(tmp_path)}
    rows = run(dict(VERSIONS, seconds=0.6), tmp_path)
    assert all(r["sha256"] != before[r["song"]]["sha256"] and r["seconds"] > 0.5 for r in rows if origin(r)) and not [f for f in doctor(tmp_path) if f.severity == "error"]


def test_a_manifest_half_written_is_cleared_away(tmp_path):
    settings = dict(VERSIONS, songs=3, seconds=2.0); run(settings, tmp_path / "calm", seed=5); before = files(tmp_path / "calm")
    for name in (".manifest-abc123.part.csv", ".LICENCES-abc123.part.txt"): (tmp_path / "calm" / name).write_bytes(b"song,")  # killed in the midst
    run(settings, tmp_path / "calm", seed=5); assert files(tmp_path / "calm") == before


def test_a_killed_run_goes_on_with_its_versions(tmp_path):
    settings = dict(VERSIONS, songs=5, seconds=2.0); run(settings, tmp_path / "calm", seed=5)
    code = f"from sepnb.data.prepare import prepare; prepare({settings!r}, {str(tmp_path / 'hit')!r}, seed=5, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while process.poll() is None and len(list((tmp_path / "hit").glob("train/Toy*~v*"))) < 2: time.sleep(0.005)
    process.send_signal(signal.SIGKILL); process.wait(); run(settings, tmp_path / "hit", seed=5)
    assert files(tmp_path / "hit") == files(tmp_path / "calm")


@pytest.mark.parametrize("wrong", [{"count": -1}, {"count": 1.5}, {"semitones": 0.5}, {"tempo": 1.0}, {"keys": 3}, {"semitones": -1}])
def test_wrong_versions(tmp_path, wrong):
    with pytest.raises(SepnbError, match="'versions' is") as e: run(dict(TOY, versions=wrong), tmp_path / "out")
    assert "\n" not in str(e.value) and not files(tmp_path)


@pytest.mark.parametrize("semitones, tempo", [(0, 1.0), (2, 1.0), (-2, 1.12), (0, 0.88), (5, 1.5), (12, 2.0)])
def test_repitch_moves_pitch_and_length_apart(semitones, tempo):
    x = torch.stack([tone(440, sample_rate=16000), tone(1000, sample_rate=16000)])
    y = repitch(x, semitones=semitones, tempo=tempo)
    assert y.shape == (2, round(16000 / tempo)) and y.dtype == x.dtype
    middle = y[:, 2000:-2000] * torch.hann_window(y.shape[-1] - 4000)
    hz = torch.fft.rfft(middle, 64000).abs().argmax(-1) * 16000 / 64000
    np.testing.assert_allclose(hz / torch.tensor([440, 1000]), 2 ** (semitones / 12), rtol=0.003)
    if semitones == 0 and tempo == 1: assert torch.equal(x, y)


def test_repitch_keeps_the_place_of_an_attack():
    y = repitch(click(0.5, sample_rate=16000), tempo=0.8)
    assert abs(y.abs().argmax().item() / 16000 - 0.5 / 0.8) < 0.05
    with pytest.raises(SepnbError): repitch(y, tempo=0)


def test_draws_of_demucs():
    drawn = [draw_repitch(torch.Generator().manual_seed(i)) for i in range(400)]
    tempo = np.array([d["tempo"] for d in drawn]); shift = np.array([d["semitones"] for d in drawn])
    assert set(shift) == {-2, -1, 0, 1, 2} and abs(tempo - 1).max() <= 0.12 + 1e-6 and 0.04 < tempo.std() < 0.06 and draw_repitch(torch.Generator().manual_seed(1)) == drawn[1]


def test_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SEPNB_CACHE", raising=False); seen = []
    monkeypatch.setitem(chapter.KINDS, "fretsonfire", lambda *, cache_dir: seen.append(Path(cache_dir)) or toy(seconds=0.1))
    run({"kind": "fretsonfire"}, tmp_path / "d/tracks"); monkeypatch.setenv("SEPNB_CACHE", str(tmp_path / "c"))
    run({"kind": "fretsonfire"}, tmp_path / "d/tracks"); run({"kind": "fretsonfire"}, tmp_path / "d/tracks", cache_dir=tmp_path / "e")
    assert seen == [tmp_path / "d/cache", tmp_path / "c", tmp_path / "e"]


def test_licences_name_every_song():
    songs = toy(songs=5, seconds=0.1); text = licences_text(songs)
    assert all(f"  {s.name}\n" in text for s in songs) and text.count("CC0") == 1


def test_pack_without_songs(tmp_path):
    with pytest.raises(SepnbError, match="lacks the song"): pack_songs(PACKS[0], tmp_path)


def test_gzip_notice_is_not_read(tmp_path):
    "Only plain text counts as a licence; Debian's copyright file is."
    for name in PACKS[0].songs:
        for file in ("guitar", "song"): save_audio(tmp_path / name / f"{file}.ogg", noise(2, 800), 8000)
    (tmp_path / "changelog.gz").write_bytes(gzip.compress(b"x")); (tmp_path / "copyright").write_text("terms")
    assert {s.notice for s in pack_songs(PACKS[0], tmp_path)} == {"terms"}


def test_the_excerpt_that_stempeg_carries():
    import importlib.util
    if importlib.util.find_spec("stempeg") is None: pytest.skip("package stempeg is not here")
    song, = collect({"kind": "stempeg"})
    sources, rate = song.read(start_s=0.1, duration_s=5.9)[:2]
    assert song.split == "test" and "NC" in song.licence and set(sources) == {"drums", "bass", "other", "vocals"} and rate == 44100
    assert all(x.shape == (2, round(5.9 * rate)) and x.abs().max() > 0.05 for x in sources.values())


def test_the_excerpt_is_missing_in_one_line(monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SepnbError, match="pip install stempeg"): collect({"kind": "stempeg"})
