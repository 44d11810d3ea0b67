"""Folders of stems against folders of true stems: which belongs to which, what is said, and the same numbers as from memory and from museval."""
import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.audio import save_audio
from sepnb.core import SepnbError, seed_everything
from sepnb.evaluate import museval_deviation, score_song
from sepnb.folders import load_pair, pair_stems, score_folders, scores_facts, scores_table, song_folders_in, stems_in
from sepnb.synth import toy_sources

STEMS, RATE = ("drums", "bass", "other", "vocals"), 8000


def sources(seed=0, samples=16000):
    g = seed_everything(seed, threads=1)
    return toy_sources(g, seconds=samples / RATE, sample_rate=RATE, stems=STEMS) + 1e-3 * torch.randn(4, 2, samples, generator=g)


def save(folder, song, stems, *, suffix=".wav", rate=RATE):
    for name, x in stems.items(): save_audio(folder / song / f"{name}{suffix}", x, rate, subtype="FLOAT" if suffix == ".wav" else "PCM_24", overwrite=True)
    return folder


def leaky(x): return 0.9 * x + 0.1 * x.sum(0)


@settings(deadline=None, max_examples=25)
@given(st.sets(st.sampled_from([*STEMS, "guitar"]), min_size=1), st.sets(st.sampled_from([*STEMS, *(f"no_{s}" for s in STEMS), "accompaniment", "karaoke"]), min_size=1))
def test_no_reference_is_used_twice(references, estimates):
    try: pairs = pair_stems(sorted(estimates), sorted(references))
    except SepnbError: assert not estimates & references; return
    used = list(itertools.chain(*pairs.values()))
    assert len(used) == len(set(used)) and set(used) <= references and set(pairs) <= estimates
    assert all(pairs[name] == (name,) for name in estimates & references)
    for name, parts in pairs.items():
        if name not in references: assert set(parts) == references - {"vocals" if name == "accompaniment" else name.removeprefix("no_")}


def test_the_same_numbers_as_from_memory_and_as_museval(tmp_path):
    x = sources(); save(tmp_path / "truth" / "test", "song", dict(zip(STEMS, x)) | {"mixture": x.sum(0)}); save(tmp_path / "mine", "song", dict(zip(STEMS, leaky(x))))
    (song, rows, notes), = score_folders(tmp_path / "mine", tmp_path / "truth")
    direct = score_song(leaky(x), x, sample_rate=RATE, stems=STEMS, song="song")
    key = lambda r: (r["stem"], r["second"])
    assert (song, notes) == ("song", ()) and len(rows) == len(direct)
    for a, b in zip(sorted(rows, key=key), sorted(direct, key=key)):
        assert all(abs(a[k] - b[k]) < 1e-3 if isinstance(a[k], float) else a[k] == b[k] for k in a)
    pytest.importorskip("museval", exc_type=Exception)
    pair = load_pair(song_folders_in(tmp_path / "mine")["song"], song_folders_in(tmp_path / "truth")["song"])
    assert museval_deviation(pair.estimates, pair.sources, sample_rate=RATE) < 1e-2


def test_one_against_the_rest_is_a_sum(tmp_path):
    x = sources(); save(tmp_path / "truth", "song", dict(zip(STEMS, x)))
    two = torch.stack([x[3], x[:3].sum(0)]); estimate = leaky(two)
    for name in ("accompaniment", "no_vocals"):
        (_, rows, notes), = score_folders(save(tmp_path / name, "song", {"vocals": estimate[0], name: estimate[1]}), tmp_path / "truth")
        direct = score_song(estimate, two, sample_rate=RATE, stems=("vocals", name), song="song")
        assert not notes and {r["stem"] for r in rows} == {"vocals", name}
        for a, b in zip(sorted(rows, key=str), sorted(direct, key=str)): assert abs(a["bsseval4_sdr"] - b["bsseval4_sdr"]) < 1e-3


@pytest.mark.parametrize("place", ["", "song", "train/song", "test/other name"])
def test_where_songs_may_lie(place, tmp_path):
    x = sources(samples=9000); save(tmp_path / "a" / place, "", {"vocals": x[0], "bass": x[1]}); (tmp_path / "a" / ".hidden").mkdir(); (tmp_path / "a" / "notes.txt").write_text("la")
    assert [sorted(files) for files in song_folders_in(tmp_path / "a").values()] == [["bass", "vocals"]]
    save(tmp_path / "b", "named otherwise", {"vocals": x[0], "bass": x[1]})
    assert len(list(score_folders(tmp_path / "a", tmp_path / "b"))) == 1 # one song each: they belong together


def test_other_formats_and_lengths_are_made_to_fit_and_said(tmp_path):
    x = sources(); save(tmp_path / "truth", "song", dict(zip(STEMS, x)))
    for suffix, samples in ((".flac", 15000), (".mp3", 16000), (".ogg", 17000)):
        y = torch.nn.functional.pad(leaky(x), (0, 1000))[..., :samples] * 0.5
        (_, rows, notes), = score_folders(save(tmp_path / suffix[1:], "song", dict(zip(STEMS[:3], y[:3])), suffix=suffix), tmp_path / "truth")
        assert {r["stem"] for r in rows} == set(STEMS[:3]) and any("vocals" in note for note in notes)
        assert sum("cut or padded" in note for note in notes) == (0 if samples == 16000 else 3)


def test_mistakes_are_one_line(tmp_path):
    x = sources(samples=9000); truth = save(tmp_path / "truth", "one", {"vocals": x[0]}); save(truth, "two", {"vocals": x[0]})
    (tmp_path / "empty").mkdir(); (tmp_path / "file").touch()
    twice = save(save(tmp_path / "copies", "one", {"vocals": x[0]}), "one", {"vocals": x[0]}, suffix=".flac")
    wrong = {"4000 Hz": save(tmp_path / "rate", "one", {"vocals": x[0]}, rate=4000), "channels": save(tmp_path / "mono", "one", {"vocals": x[0][:1]}),
             "rename": save(tmp_path / "karaoke", "one", {"karaoke": x[0]}), "same names": save(tmp_path / "names", "three", {"vocals": x[0]}),
             "twice": twice, "no sound": tmp_path / "empty", "not a folder": tmp_path / "file"}
    for word, folder in wrong.items():
        with pytest.raises(SepnbError) as caught: list(score_folders(folder, truth))
        assert "\n" not in str(caught.value) and word in str(caught.value)
    (tmp_path / "a" / "train" / "one").mkdir(parents=True); save(tmp_path / "a" / "train", "one", {"vocals": x[0]}); save(tmp_path / "a" / "test", "one", {"vocals": x[0]})
    with pytest.raises(SepnbError, match="twice"): song_folders_in(tmp_path / "a")


def test_silence_has_no_score_and_no_nan_in_json(tmp_path):
    x = sources(); x[1] = 0
    (_, rows, _), = score_folders(save(tmp_path / "mine", "song", dict(zip(STEMS, leaky(x)))), save(tmp_path / "truth", "song", dict(zip(STEMS, x))))
    facts = scores_facts(rows); text = json.dumps(facts, allow_nan=False)
    assert facts["songs"]["song"]["bass"]["bsseval4_sdr"] is None and facts["stems"]["bass"]["bsseval4_sdr"] is None and "NaN" not in text
    assert "nan" in scores_table(rows) and stems_in(tmp_path / "mine" / "song").keys() == set(STEMS)
    assert math.isnan(next(r["bsseval4_sdr"] for r in rows if r["stem"] == "bass"))
