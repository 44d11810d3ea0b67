"""Mixing: filters with known responses, a limiter that nothing passes, presets that splits do not share, stems that sum to the mixture."""
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy import signal

from sepnb.core import SepnbError
from sepnb.data.tracks import quantise
from sepnb.music import mix as chapter
from sepnb.music.mix import (BUS, HOP, HOUSE_DB, OCTAVES_HZ, SILENCE_LUFS, Room, activity, biquad, bus_gain, compressor_gain, draw, draw_preset, graphic_eq,
                             impulse_response, limiter_gain, loudness, matching_gains, mix, octave_levels, owner, place, preset_owners, realism, reverberate,
                             run_strip, saturate, strip_ranges)
from sepnb.synth import toy_sources

RATE = 44100
STEMS = ("drums", "bass", "other", "vocals")


def song(seed=0, seconds=2.0, rate=RATE):
    return dict(zip(STEMS, toy_sources(torch.Generator().manual_seed(seed), seconds=seconds, sample_rate=rate)))


def rough(seed, samples, peak=1.0): # noise with bursts, (2, t)
    g = np.random.default_rng(seed); x = g.standard_normal((2, samples)) * np.repeat(10 ** g.uniform(-3, 0, samples // 500 + 1), 500)[:samples]
    return peak * x / abs(x).max()


# ---------------------------------------------------------------- filters

@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["peak", "low_shelf", "high_shelf", "high_pass"]), st.floats(20, 18000), st.floats(-24, 24), st.floats(0.3, 5), st.sampled_from([44100, 48000]))
def test_biquads_are_stable_and_of_minimum_phase(kind, freq, gain, q, rate):
    z, p, _ = signal.sos2zpk(biquad(kind, freq, gain_db=gain, q=q, sample_rate=rate))
    assert abs(p).max() < 1 and abs(z).max() < 1 + 1e-6


@pytest.mark.parametrize("kind", ["peak", "low_shelf", "high_shelf"])
def test_a_cut_undoes_a_boost(kind):
    both = np.concatenate([biquad(kind, 700, gain_db=g) for g in (9, -9)])
    assert np.allclose(abs(signal.sosfreqz(both, 200)[1]), 1, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-15, 15), min_size=10, max_size=10), st.sampled_from([44100, 48000]))
def test_graphic_eq_meets_its_faders(gains, rate):
    response = 20 * np.log10(abs(signal.sosfreqz(graphic_eq(gains, sample_rate=rate), worN=np.array(OCTAVES_HZ), fs=rate)[1]))
    assert abs(response - gains).max() < 2.5 # alternating +15, -15 is the worst case
    assert abs(signal.sos2zpk(graphic_eq(gains, sample_rate=rate))[1]).max() < 1


@pytest.mark.parametrize("kind, freq", [("kazoo", 100), ("peak", 0), ("peak", 22050)])
def test_wrong_filters(kind, freq):
    with pytest.raises(SepnbError): biquad(kind, freq)


# ---------------------------------------------------------------- measures

@pytest.mark.parametrize("scale", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("rate", [44100, 48000])
def test_loudness_follows_the_level(scale, rate):
    x = torch.randn(2, 3 * rate, generator=torch.Generator().manual_seed(0))
    assert abs(loudness(x * scale, sample_rate=rate) - loudness(x, sample_rate=rate) - 20 * np.log10(scale)) < 1e-3
    assert abs(loudness(x, sample_rate=rate) - loudness(x[:1].repeat(2, 1), sample_rate=rate)) < 0.1


def test_loudness_of_two_channels_is_the_sum_of_powers():
    x = torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(0))
    assert abs(loudness(x.repeat(2, 1)) - loudness(x) - 10 * np.log10(2)) < 1e-6


def test_the_relative_gate_drops_quiet_passages():
    x = torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(0)); y = x.clone(); y[:, 2 * RATE:] *= 0.01
    assert abs(loudness(y) - loudness(x)) < 0.5


def test_short_and_silent_signals_have_measures():
    for n in (1, 2, 100):
        x = torch.full((2, n), 0.5)
        assert np.isfinite(loudness(x)) and np.isfinite(octave_levels(x)).all() and 0 <= activity(x) <= 1
    assert loudness(torch.zeros(2, 1000)) == SILENCE_LUFS and activity(torch.zeros(2, 10000)) == 0
    assert all(np.isfinite(v) for row in realism(dict(a=torch.zeros(2, 9000), b=torch.ones(2, 9000))) for k, v in row.items() if k != "stem")


def test_octave_levels_add_up():
    x = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    assert abs(10 ** (octave_levels(x) / 10)).sum() == pytest.approx(1, abs=0.01)
    assert np.allclose(np.diff(octave_levels(x))[3:-1], 3.01, atol=0.3) # white: each octave holds twice the power


# ---------------------------------------------------------------- dynamics

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 9000), st.floats(0.05, 1.0), st.floats(0.1, 100), st.floats(0.005, 0.5))
def test_nothing_passes_the_limiter(seed, samples, ceiling, peak, release):
    x = rough(seed, samples, peak)
    gain = limiter_gain(abs(chapter._blocks(x)).max((0, 2)), ceiling=ceiling, samples=samples, release_s=release)
    assert gain.shape == (samples,) and abs(x * gain).max() <= ceiling * (1 + 1e-9) and 0 < gain.min() and gain.max() <= 1


def test_the_limiter_leaves_soft_music_alone():
    assert (limiter_gain(np.full(50, 0.5), ceiling=0.5, samples=50 * HOP) == 1).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 9000), st.floats(-50, 0), st.floats(1, 20))
def test_a_compressor_only_lowers(seed, samples, threshold, ratio):
    x = rough(seed, samples); gain = compressor_gain(x, threshold_db=threshold, ratio=ratio)
    most = (1 - 1 / ratio) * max(0, 10 * np.log10(np.square(chapter._blocks(x)).mean((0, 2)).max() + 1e-12) - threshold)
    assert gain.max() <= 1 and 20 * np.log10(gain.min()) >= -most - 1e-6


# ---------------------------------------------------------------- room and place

def test_rooms():
    ir = impulse_response(Room(0.5, 0.4, 0.01, 3))
    assert np.allclose(np.square(ir).sum(1), 1) and not np.allclose(ir, impulse_response(Room(0.5, 0.4, 0.01, 4)))
    early, late = ir[:, 2000:6000], ir[:, 14000:18000]
    bright = lambda x: np.square(signal.sosfilt(signal.butter(4, 6000, "highpass", fs=RATE, output="sos"), x)).sum() / np.square(x).sum()
    assert bright(late) < 0.6 * bright(early) # the treble dies sooner
    x = rough(0, 3000)
    assert np.allclose(reverberate(x, Room(0.5, 0.4, 0.01, 3), wet_db=-300), x)
    assert np.allclose(reverberate(x, Room(0.5, 0.4, 0.05, 3), wet_db=0)[:, :2200], x[:, :2200], atol=1e-6) # nothing before the first reflection


def test_place_and_drive():
    x = rough(1, 4000)
    assert np.allclose(place(x), x) and np.allclose(place(x, width=0)[0], x.mean(0))
    for pan in (-1, -0.3, 0.5): # constant power of the centre
        assert np.square(place(x, width=0, pan=pan)).sum() == pytest.approx(2 * np.square(x.mean(0)).sum())
    assert abs(saturate(10 * x, drive_db=12)).max() <= 10 ** (-12 / 20) and np.allclose(saturate(-x), -saturate(x))


# ---------------------------------------------------------------- presets

@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["train", "valid", "test"]), st.integers(0, 1000), st.integers(0, 10**6))
def test_presets_belong_to_their_split(split, index, seed):
    p = draw_preset(split, index, seed=seed)
    assert preset_owners(asdict(p)) == {split} and p == draw_preset(split, index, seed=seed) and p.split == split
    for stem, strip in p.strips.items():
        for k, (low, high) in strip_ranges(stem).items():
            assert all(low <= v <= high for v in (getattr(strip, k) if k == "colour" else [getattr(strip, k)]))


def test_no_two_splits_share_a_number():
    def numbers(split):
        found = set()
        for i in range(30):
            p = asdict(draw_preset(split, i))
            found |= {("room", k, v) for k, v in p["room"].items()} | {("bus", k, v) for k, v in p["bus"].items() if k in BUS}
            found |= {(stem, k, v) for stem, strip in p["strips"].items() for k, v in strip.items() if v is not None} # None: no amplifier
        return found
    train, valid, test = map(numbers, ("train", "valid", "test"))
    assert not train & valid and not train & test and not valid & test


def test_a_foreign_number_is_found():
    p = asdict(draw_preset("train", 0)); p["room"]["rt60_s"] = draw("test", 0.25, 2.2, torch.Generator().manual_seed(0))
    assert preset_owners(p) == {"train", "test"}
    with pytest.raises(SepnbError, match="dev"): draw_preset("dev", 0)


def test_every_split_sees_the_whole_range():
    g = torch.Generator().manual_seed(0)
    for split in ("train", "valid", "test"):
        values = [draw(split, -1, 1, g) for _ in range(300)]
        assert min(values) < -0.7 and max(values) > 0.7 and {owner(v, -1, 1) for v in values} == {split}


# ---------------------------------------------------------------- the desk

@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_mixing_conserves_and_never_clips(split):
    sources, preset = song(), draw_preset(split, 3); kept = {s: x.clone() for s, x in sources.items()}
    out = mix(sources, preset); whole = sum(out.values())
    assert all(torch.equal(sources[s], kept[s]) for s in STEMS) # inputs are not changed
    assert list(out) == list(STEMS) and all(x.dtype == torch.float32 and x.shape == sources["bass"].shape and x.isfinite().all() for x in out.values())
    assert max(float(x.abs().max()) for x in (whole, *out.values())) <= preset.bus.ceiling + 1e-6
    assert quantise(torch.stack(list(out.values())))[1] == 0.0 # stored as it is, without a further gain
    stacked = torch.stack([run_strip(sources[s], preset.strips[s], preset.room, house=HOUSE_DB[s]) for s in out])
    gain = bus_gain(stacked, preset.bus) # two routes: stem by stem, or the mixture at once
    assert torch.allclose(whole, stacked.sum(0) * gain, atol=1e-6)


def test_levels_are_met_before_the_bus():
    preset = draw_preset("train", 5); strips = preset.strips
    for stem, x in song().items():
        assert loudness(run_strip(x, strips[stem], preset.room, house=HOUSE_DB[stem])) == pytest.approx(strips[stem].level_lu, abs=0.05)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_the_level_that_comes_in_does_not_matter(scale):
    sources, preset = song(seconds=1.0), draw_preset("train", 1); expected = mix(sources, preset)
    for s, x in mix({s: scale * x for s, x in sources.items()}, preset).items(): assert (x - expected[s]).abs().max() < 2e-3


def test_what_lies_under_the_gate_is_silence():
    assert all((x == 0).all() for x in mix({s: 1e-4 * x for s, x in song(seconds=0.5).items()}, draw_preset("train", 1)).values())


def test_double_precision_comes_out_single():
    sources, preset = song(seconds=1.0), draw_preset("train", 1); expected = mix(sources, preset)
    for s, x in mix({s: x.double() for s, x in sources.items()}, preset).items(): assert x.dtype == torch.float32 and torch.equal(x, expected[s])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 3000), st.sets(st.sampled_from(STEMS)), st.integers(0, 100))
def test_any_length_and_silent_stems(samples, silent, index):
    sources = {s: x[:, 20000:20000 + samples] * (s not in silent) for s, x in song(seconds=1.0).items()}
    out = mix(sources, draw_preset("train", index))
    assert all(x.shape == (2, samples) and x.isfinite().all() for x in out.values()) and all((out[s] == 0).all() for s in silent)


def test_other_stems_and_rates():
    sources = dict(guitar=song(rate=48000)["other"], backing=song(rate=48000)["drums"])
    out = mix(sources, draw_preset("valid", 0, stems=("guitar", "backing")), sample_rate=48000)
    assert set(out) == {"guitar", "backing"} and sum(out.values()).abs().max() <= 0.98 + 1e-6


def test_matching_moves_towards_the_house():
    x = torch.randn(2, 2 * RATE, generator=torch.Generator().manual_seed(0)); distances = []
    for share in (0.0, 0.5, 1.0):
        y = torch.from_numpy(signal.sosfilt(graphic_eq(matching_gains(x, HOUSE_DB["other"], share=share)), x.double().numpy()))
        distances.append(abs(octave_levels(y) - HOUSE_DB["other"]).mean())
    assert distances[0] > distances[1] > distances[2]
    assert (matching_gains(x, HOUSE_DB["other"], share=0.0) == 0).all()


def test_wrong_songs():
    preset, sources = draw_preset("train", 0), song(seconds=0.5)
    for wrong in (sources | dict(kazoo=sources["bass"]), sources | dict(bass=sources["bass"][:1]), sources | dict(bass=sources["bass"][:, 1:])):
        with pytest.raises(SepnbError): mix(wrong, preset)
    with pytest.raises(SepnbError): mix(sources, replace(preset, strips={}))
    with pytest.raises(SepnbError): mix(sources, preset, sample_rate=22050)
