"""Amplified guitars: known answers, nothing folded back, any level and length, and settings that belong to one split."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.music.amplifier import AMPS, Amp, bend, cabinet, distort, stages, wander
from sepnb.music.compose import compose
from sepnb.music.mix import draw_preset, preset_owners
from sepnb.music.pools import POOLS
from sepnb.music.score import Note, Part, check
from sepnb.music.song import amp_owners, kind_of, play_guitar, play_parts

RATE = 44100
middle = {kind: Amp(**{k: sum(r) / 2 for k, r in ranges.items()}) for kind, ranges in AMPS.items()}
chord = sum(np.sin(2 * np.pi * f * np.arange(RATE) / RATE) for f in (82.4, 123.5, 164.8))
riff = Part("riff", "other", 30, tuple(Note(0.25 * k, 0.25 * k + 0.2, p, 100) for k in range(8) for p in (40, 47)))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(AMPS)), st.data(), st.integers(1, 3000), st.sampled_from([1e-4, 1.0, 100.0]), st.sampled_from([np.float32, np.float64]))
def test_any_setting_level_and_length(kind, data, samples, scale, dtype):
    amp = Amp(**{k: data.draw(st.floats(*r)) for k, r in AMPS[kind].items()})
    y = distort((scale * chord[:samples]).astype(dtype), amp)
    assert y.shape == (samples,) and y.dtype == np.float32 and np.isfinite(y).all()


@pytest.mark.parametrize("kind", sorted(AMPS))
def test_level_does_not_matter_and_power_is_one(kind):
    one = distort(chord, middle[kind])
    assert abs(np.square(one).mean() - 1) < 1e-3
    for scale in (1e-4, 1e2): assert np.allclose(distort(scale * chord, middle[kind]), one, atol=2e-3)
    assert not distort(0 * chord, middle[kind]).any()


def test_a_valve_is_the_formula():
    x = np.linspace(-3, 3, 99)
    assert np.allclose(bend(x, 0.0), -bend(-x, 0.0)) and np.allclose(bend(x, 0.4), np.tanh(x + 0.4) - np.tanh(0.4)) and not np.allclose(bend(x, 0.4), -bend(-x, 0.4))


def test_harmonics_do_not_fold_back():
    tone = 1.4 * np.sin(2 * np.pi * 5000 * np.arange(RATE) / RATE)
    def folded(k):
        power = np.square(abs(np.fft.rfft(stages(tone, middle["heavy"], oversample=k) * np.hanning(RATE))))
        true = np.abs(np.arange(len(power))[:, None] - 5000 * np.arange(5)).min(1) < 4
        return 10 * np.log10(power[~true].sum() / power[true].sum())
    assert folded(4) < folded(1) - 10


def test_a_loudspeaker_ends():
    answer = 20 * np.log10(abs(np.fft.rfft(cabinet(middle["heavy"]), RATE)))
    assert answer[12000:].max() < answer[3000] - 35 and answer[20] < answer[110] - 20
    ring = cabinet(middle["heavy"]); assert np.square(ring[:200]).sum() > 0.9 * np.square(ring).sum() # no delay


def test_takes_differ_and_come_back():
    takes = [wander(chord, cents=5, rng=np.random.default_rng(s)) for s in (0, 0, 1)]
    assert np.array_equal(takes[0], takes[1]) and not np.allclose(takes[0], takes[2], atol=1e-2)
    assert np.allclose(wander(chord, cents=0, rng=np.random.default_rng(0)), chord, atol=1e-6)


def test_two_channels_are_refused():
    with pytest.raises(SepnbError, match="one channel"): distort(np.zeros((2, 9)), middle["heavy"])


@pytest.mark.parametrize("split", sorted(POOLS))
def test_settings_belong_to_their_split(split):
    out, own = play_parts([riff, replace(riff, name="lead", program=29)], None, split=split, seconds=2.0, seed=3, kind="heavy")
    assert out.shape == (2, 2 * RATE) and own["riff"]["takes"] == 2 and own["lead"]["takes"] == 1
    assert all(amp_owners(part) == {split} for part in own.values()) and amp_owners({}) == set()
    assert preset_owners(vars(draw_preset(split, 1, kind="heavy")) | dict(strips={}, room=vars(draw_preset(split, 1, kind="heavy").room), bus=vars(draw_preset(split, 1, kind="heavy").bus))) == {split}


def test_the_same_seed_the_same_bytes():
    how = dict(kind="heavy", split="train", takes=2, seconds=1.0)
    one, again, other = (play_guitar(riff, None, **how, g=torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    left, right = one; assert torch.corrcoef(one)[0, 1] < 0.95 and left.any() and right.any()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(POOLS)), st.integers(0, 10**6))
def test_songs_with_riffs(split, seed):
    heavy = replace(POOLS[split], styles=tuple(s for s in POOLS[split].styles if s.riffs))
    score = compose(heavy, seconds=20.0, seed=seed)
    assert check(score) is score and kind_of(score) == "heavy" and {p.stem for p in score.parts} == {"drums", "bass", "other"}
    low = next(p for p in score.parts if p.name == "riff"); assert all(35 <= n.pitch <= 76 for n in low.notes)


def test_riffs_belong_to_one_split_and_weights_count():
    owners = {r: {p.name for p in POOLS.values() for s in p.styles if r in s.riffs} for p in POOLS.values() for s in p.styles for r in s.riffs}
    assert all(len(found) == 1 for found in owners.values()) and all(set(r) <= set("Xxm^.") and len(r) == 16 for r in owners)
    for pool in POOLS.values(): # about a third of the songs
        share = sum(s.weight for s in pool.styles if s.riffs) / sum(s.weight for s in pool.styles)
        assert 0.3 < share < 0.4
        drawn = sum(kind_of(compose(pool, seconds=20.0, seed=seed)) == "heavy" for seed in range(40)) / 40
        assert abs(drawn - share) < 0.25
