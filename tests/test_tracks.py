"""Tracks: the mixture is the sum to the last bit, names cannot leave the folder, writing is all or nothing, the manifest round-trips."""
import csv

import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from sepnb.audio import load_audio
from sepnb.core import SepnbError
from sepnb.data.tracks import (PEAK, SPLITS, check_name, combine_digests, data_hash, find_tracks, load_track, manifest_row, manifest_text, natural_key,
                               new_folder, quantise, read_manifest, song_files, stem_digest, track_digest, write_manifest, write_track)
from sepnb.synth import toy_sources


def generator(seed=0): return torch.Generator().manual_seed(seed)


def toy(seed=0, *, channels=2, seconds=0.5, stems=("drums", "vocals"), rate=8000):
    return dict(zip(stems, toy_sources(generator(seed), seconds=seconds, sample_rate=rate, channels=channels, stems=stems)))


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stems=st.integers(1, 5), channels=st.sampled_from([1, 2, 3]), samples=st.sampled_from([1, 2, 101, 1000]), scale=st.sampled_from([0, 1e-4, 0.1, 1, 1e2]),
       dtype=st.sampled_from([torch.float32, torch.float64]), suffix=st.sampled_from([".wav", ".flac"]), seed=st.integers(0, 99))
def test_mixture_is_the_sum(tmp_path, stems, channels, samples, scale, dtype, suffix, seed):
    x = scale * torch.randn(stems, channels, samples, generator=generator(seed), dtype=dtype)
    before = x.clone()
    track = write_track(tmp_path, "train", "song", {f"s{i}": x[i] for i in range(stems)}, 8000, overwrite=True, suffix=suffix)
    assert torch.equal(x, before) and track == find_tracks(tmp_path)[0] and track.gain_db <= 0
    sources, mixture = load_track(track), load_audio(track.path("mixture"))[0]
    assert sources.dtype == torch.float32 and torch.equal(mixture, sources.sum(0))
    integers = [soundfile.read(track.path(s), dtype="int16", always_2d=True)[0].astype(int) for s in (*track.stems, "mixture")]
    assert (sum(integers[:-1]) == integers[-1]).all()
    step = 2**-15
    assert max(sources.abs().max(), mixture.abs().max()) <= PEAK + stems * step
    assert (sources - x * 10 ** (track.gain_db / 20)).abs().max() <= 0.5 * step + 1e-7
    if max(x.abs().max(), x.sum(0).abs().max()) <= PEAK: assert track.gain_db == 0
    else: assert max(sources.abs().max(), mixture.abs().max()) > PEAK * 10 ** (-0.02 / 20) # no quieter than needed


def test_sixteen_bit_songs_keep_every_bit():
    x = torch.randint(-8000, 8000, (3, 2, 999), generator=generator()).float()
    pcm, gain_db = quantise(x / 32768)
    assert torch.equal(pcm, x) and gain_db == 0


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", ".hidden", "a\nb", "x\x00", "x" * 151, " x", "x "])
def test_names_that_would_leave_the_folder(tmp_path, name):
    with pytest.raises(SepnbError): write_track(tmp_path / "set", "train", name, toy(), 8000)
    with pytest.raises(SepnbError): write_track(tmp_path / "set", "train", "song", {name: toy()["drums"]}, 8000)
    assert not list(tmp_path.rglob("*.flac"))


def test_bad_sources_leave_nothing(tmp_path):
    x = torch.zeros(2, 10)
    bad = [{}, dict(a=x, b=x[:1]), dict(a=x, b=x[:, :5]), dict(a=x[0]), dict(a=x[:, :0]), dict(a=x / 0), dict(a=x + float("inf")), dict(mixture=x), {"a;b": x}]
    for sources in bad:
        with pytest.raises(SepnbError) as e: write_track(tmp_path, "train", "song", sources, 8000)
        assert "\n" not in str(e.value)
    for args in ((tmp_path, "dev", "song"), (tmp_path, "", "song")):
        with pytest.raises(SepnbError): write_track(*args, dict(a=x), 8000)
    with pytest.raises(SepnbError): write_track(tmp_path, "train", "song", dict(a=x), 8000, suffix=".mp3")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_nine_channels_want_wav(tmp_path):
    x = dict(a=torch.ones(9, 4) / 4, b=torch.ones(9, 4) / 8)
    with pytest.raises(SepnbError) as e: write_track(tmp_path, "train", "song", x, 8000)
    assert ".part" not in str(e.value) and not list((tmp_path / "train").iterdir())
    assert load_track(write_track(tmp_path, "train", "song", x, 8000, suffix=".wav")).shape == (2, 9, 4)


def test_all_or_nothing(tmp_path):
    track = write_track(tmp_path, "train", "song", toy(0), 8000); before = track_digest(track)
    with pytest.raises(SepnbError): write_track(tmp_path, "train", "song", toy(1), 8000)
    for error in (KeyboardInterrupt, OSError(28, "No space left on device")):
        with pytest.raises((KeyboardInterrupt, SepnbError)):
            with new_folder(track.folder, overwrite=True) as part: (part / "x.wav").touch(); raise error
    assert track_digest(track) == before and [p.name for p in track.folder.parent.iterdir()] == ["song"]
    again = write_track(tmp_path, "train", "song", toy(1, stems=("bass",)), 8000, overwrite=True)
    assert again.stems == ("bass",) and set(song_files(again.folder)) == {"bass", "mixture"} # no old stem stays
    assert [p.name for p in track.folder.parent.iterdir()] == ["song"]


def test_same_input_same_bytes(tmp_path):
    for name in "ab": write_track(tmp_path / name, "train", "song", toy(3), 8000)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.flac")} for name in "ab"]
    assert files[0] == files[1] and len(files[0]) == 3


def test_natural_order():
    names = ["b", "a 10", "A 9", "a", "10", "9", "a 9b", "Ä", "a 009"]
    order = sorted(names, key=natural_key)
    assert order == sorted(reversed(names), key=natural_key) and order[:2] == ["9", "10"] and order.index("A 9") < order.index("a 10")


def test_a_song_is_in_one_split(tmp_path):
    write_track(tmp_path, "train", "Song", toy(), 8000); write_track(tmp_path, "test", "song", toy(), 8000)
    for split in (None, "train", "test"):
        with pytest.raises(SepnbError, match="in train and in test"): find_tracks(tmp_path, split=split)


def test_what_is_not_a_song(tmp_path):
    write_track(tmp_path, "train", "song", toy(), 8000)
    (tmp_path / "train" / ".song.1.part").mkdir(); (tmp_path / "train" / "notes.txt").touch(); (tmp_path / "train" / "song" / ".x.wav").touch()
    (tmp_path / "other" / "song 2").mkdir(parents=True)
    assert [t.name for t in find_tracks(tmp_path)] == ["song"]
    with pytest.raises(SepnbError): find_tracks(tmp_path, split="valid")
    (tmp_path / "train" / "hollow").mkdir()
    with pytest.raises(SepnbError, match="hollow holds no stem"): find_tracks(tmp_path)


def test_twice_and_lost_stems(tmp_path):
    track = write_track(tmp_path, "train", "song", toy(), 8000)
    with pytest.raises(SepnbError, match="no stem 'kazoo'"): track.path("kazoo")
    path = track.path("drums"); other = path.with_suffix(".wav"); other.write_bytes(path.read_bytes())
    with pytest.raises(SepnbError, match="twice"): load_track(track)
    other.unlink(); path.unlink()
    with pytest.raises(SepnbError, match="lost its stem"): load_track(track)


def test_stems_that_differ(tmp_path):
    track = write_track(tmp_path, "train", "song", toy(), 8000, suffix=".wav")
    x = torch.rand(2, 4000) / 4
    for data, rate in ((x[:, :3999], 8000), (x[:1], 8000), (x, 8001)):
        soundfile.write(track.path("drums"), data.T.numpy(), rate)
        with pytest.raises(SepnbError, match="differ"): load_track(track)


def test_excerpts_and_conversion(tmp_path):
    track = write_track(tmp_path, "train", "song", toy(seconds=1.0), 8000); whole = load_track(track)
    assert torch.equal(load_track(track, start_s=0.25, duration_s=0.5), whole[..., 2000:6000])
    mono = load_track(track, channels=1); assert torch.allclose(mono, whole.mean(1, keepdim=True), atol=1e-6)
    half = load_track(track, sample_rate=4000); assert half.shape == (2, 2, 4000)
    mix, rate = load_audio(track.path("mixture"), sample_rate=4000)
    assert rate == 4000 and (half.sum(0) - mix).abs().max() < 1e-5 # resampling is linear


def test_fingerprints(tmp_path):
    a = write_track(tmp_path, "train", "a", toy(0), 8000); b = write_track(tmp_path, "train", "b", toy(0), 8000, suffix=".wav")
    c = write_track(tmp_path, "train", "c", toy(1), 8000)
    assert track_digest(a) == track_digest(b) != track_digest(c)
    swapped = combine_digests(dict(drums=stem_digest(a.path("vocals")), vocals=stem_digest(a.path("drums"))))
    assert swapped != track_digest(a)


def rows(tmp_path):
    for i, split in enumerate(SPLITS): write_track(tmp_path, split, f"Song {i}", toy(i, seconds=0.1 + i / 100), 8000)
    return [manifest_row(t, licence='CC BY, "A", Ünï', source="here, there\nand everywhere") for t in find_tracks(tmp_path)]


def test_manifest(tmp_path):
    table = rows(tmp_path); write_manifest(tmp_path, table)
    assert read_manifest(tmp_path) == table and data_hash(table) == data_hash(reversed(table)) == data_hash(read_manifest(tmp_path))
    for key in table[0]: # every column counts
        other = dict(table[0], **{key: ("x",) if key == "stems" else "valid" if key == "split" else "x" if isinstance(table[0][key], str) else 7})
        assert data_hash([other, *table[1:]]) != data_hash(table), key
    with pytest.raises(SepnbError, match="keep one"): manifest_text([*table, dict(table[0], song="song 0", split="test")])


@pytest.mark.parametrize("damage", [lambda t: "", lambda t: "la la\n", lambda t: t.replace("split", "spilt"), lambda t: t.replace(",8000,", ",fast,"),
                                    lambda t: t.replace("train", "dev"), lambda t: t + "one,two\n", lambda t: t.replace("\n", "\x00\n")])
def test_damaged_manifest(tmp_path, damage):
    write_manifest(tmp_path, rows(tmp_path)); path = tmp_path / "manifest.csv"
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(SepnbError, match="not a manifest"): read_manifest(tmp_path)


def test_missing_manifest(tmp_path):
    with pytest.raises(SepnbError, match="run the prepare stage"): read_manifest(tmp_path)


def test_manifest_is_plain_csv(tmp_path):
    write_manifest(tmp_path, rows(tmp_path))
    with open(tmp_path / "manifest.csv", encoding="utf-8", newline="") as f: table = list(csv.DictReader(f))
    assert [r["song"] for r in table] == ["Song 0", "Song 1", "Song 2"] and table[0]["stems"] == "drums;vocals"


def test_check_name_lets_real_names_pass():
    for name in ("Johnny Lokke - Promises & Lies", "M.E.R.C. Music - Knockout", "Ünïcode", "Arise - Run Run Run", "1"): assert check_name(name) == name
