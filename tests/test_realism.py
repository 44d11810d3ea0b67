"""The realism table: known signals, medians, stems that stand beside each other, prepared tracks and collections alike."""
import math
import statistics

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError, seed_everything
from sepnb.data.prepare import prepare
from sepnb.data.sources import Song, toy
from sepnb.data.tracks import find_tracks
from sepnb.music.mix import OCTAVES_HZ, realism
from sepnb.realism import FOUR, MEASURES, REST, TWO, describe, distances, piece, realism_rows, together
from sepnb.synth import noise, tone

RATE = 44100
BANDS = list(MEASURES.values())[4:]


def song(stems, rate=RATE, name="a song"): return Song(name, None, "CC0", "here", lambda **_: (stems, rate))


def row(stem, **kw): return dict(song="x", stem=stem) | dict.fromkeys(MEASURES, 0.0) | kw


def test_titles_follow_the_measures():
    assert list(MEASURES) == [k for k in realism({"a": torch.ones(2, RATE)})[0] if k != "stem"] and len(BANDS) == len(OCTAVES_HZ) == 10
    assert BANDS[:3] == ["31.5 Hz", "63 Hz", "125 Hz"] and BANDS[-2:] == ["8 kHz", "16 kHz"]


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_only_loudness_depends_on_level(scale):
    g = seed_everything(0); stems = dict(drums=noise(g, seconds=2.0, sample_rate=RATE, channels=2), bass=torch.tensor([[1.0], [0.5]]) * tone(60, seconds=2.0, sample_rate=RATE))
    one, two = (describe([song({s: k * x for s, x in stems.items()})]) for k in (1.0, scale))
    for a, b in zip(one, two):
        for key in MEASURES:
            if not (a["stem"] == "mixture" and key == "loudness_lu"): assert a[key] == pytest.approx(b[key], abs=0.02)
    assert two[-1]["loudness_lu"] - one[-1]["loudness_lu"] == pytest.approx(20 * math.log10(scale), abs=0.02)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-60, 0), min_size=1, max_size=9))
def test_median_over_songs(levels):
    rows = realism_rows({"a": [row("bass", crest_db=v) for v in levels]}, stems=["bass"])
    assert rows[0]["crest, dB"] == statistics.median(levels) and rows[0]["songs"] == len(levels) and rows[0]["set"] == "a"


def test_the_middle_is_taken():
    x = torch.zeros(2, 10 * RATE); x[:, 4 * RATE:6 * RATE] = 1
    middle, rate = piece(song(dict(a=x)), seconds=2.0)
    assert middle["a"].shape == (2, 2 * RATE) and rate == RATE and (middle["a"] == 1).all()
    assert piece(song(dict(a=x)), seconds=99, trim_s=1.0)[0]["a"].shape == (2, 8 * RATE)


@pytest.mark.parametrize("wrong, match", [(dict(a=torch.ones(2, RATE // 4)), "too few"), (dict(a=torch.ones(1, RATE)), "not stereo"), (dict(a=torch.ones(3, RATE)), "not stereo")])
def test_what_cannot_be_measured(wrong, match):
    with pytest.raises(SepnbError, match=f"(?s)^song a song [^\n]*{match}[^\n]*$"): piece(song(wrong))


def test_stems_beside_each_other():
    stems = {s: torch.randn(2, RATE, generator=seed_everything(i)) for i, s in enumerate(("drums", "bass", "other", "vocals"))}
    two = together(stems, FOUR)
    assert set(two) == {"other", REST} and torch.allclose(two[REST], stems["drums"] + stems["bass"] + stems["vocals"]) and torch.equal(two["other"], stems["other"])
    real = together(dict(guitar=stems["other"], backing=two[REST]), TWO)
    both = realism_rows({"four": describe([song(stems)], alike=FOUR), "two": describe([song(dict(guitar=real["other"], backing=real[REST]))], alike=TWO)})
    assert [r["stem"] for r in both] == ["other", "other", REST, REST, "mixture", "mixture"]
    for a, b in zip(both[::2], both[1::2]): assert {k: v for k, v in a.items() if k != "set"} == pytest.approx({k: v for k, v in b.items() if k != "set"}, abs=1e-4)
    assert together(stems, {}) == stems


def test_stems_of_one_set_alone():
    rows = {"a": [row("bass"), row("drums"), row("mixture")], "b": [row("drums"), row("mixture")]}
    assert [(r["stem"], r["set"]) for r in realism_rows(rows)] == [("drums", "a"), ("drums", "b"), ("mixture", "a"), ("mixture", "b")]
    assert [(r["stem"], r["set"]) for r in realism_rows(rows, stems=["bass"])] == [("bass", "a")]
    with pytest.raises(SepnbError, match="no set has a stem 'kazoo'; there are drums, bass"): realism_rows(rows, stems=["kazoo"])


def test_distances():
    near, far = row("bass"), row("bass", **{f"{f:g} Hz": -6.0 for f in OCTAVES_HZ})
    rows = realism_rows({"a": [near], "b": [far]})
    assert distances(rows, "a", "b") == {"bass": 6.0} == distances(rows, "b", "a") and distances(rows, "a", "a") == {"bass": 0.0}
    soft = realism_rows({"a": [near], "b": [row("bass", **{"16000 Hz": -50.0})]})
    assert distances(soft, "a", "b") == {"bass": 0.0} and distances(soft, "b", "a")["bass"] == 5.0 and distances(soft, "a", "c") == {}


def test_silence_is_measured():
    rows = describe([song(dict(drums=torch.zeros(2, RATE), bass=torch.ones(2, 1) * tone(60, sample_rate=RATE)))])
    assert all(math.isfinite(r[k]) for r in rows for k in MEASURES) and rows[0]["active"] == 0


def test_prepared_tracks_and_their_collection(tmp_path):
    prepare({"kind": "toy", "songs": 3, "seconds": 2.0, "sample_rate": RATE}, tmp_path / "tracks", seed=2, progress=False)
    disk, memory = describe(find_tracks(tmp_path / "tracks")), describe(toy(songs=3, seconds=2.0, sample_rate=RATE, seed=2))
    at = lambda rows: {(r["song"], r["stem"]): r for r in rows}
    assert at(disk).keys() == at(memory).keys() and len(disk) == 15
    for key, r in at(memory).items(): # 16 bits, and perhaps turned down
        assert at(disk)[key]["crest_db"] == pytest.approx(r["crest_db"], abs=0.05) and at(disk)[key]["active"] == pytest.approx(r["active"], abs=0.1)
