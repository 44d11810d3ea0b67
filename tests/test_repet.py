"""Repetition: planted periods, librosa's nn_filter, medians by two routes, and nothing lost."""
import math

import librosa
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.repet import (COMPONENTS, REPET, REPETSIM, beat_spectrum, find_period, median_of, periodic_model, repeating_mask,
                                   similar_frames, similarity_model)
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

RATE = 16000
SMALL = dict(sample_rate=RATE, n_fft=512, hop_length=256)
BOTH = ("repet", "repet_sim")

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def stacked(name, mix, stems=(), rate=RATE, **kwargs): return torch.stack(list(build(name, stems, **{**SMALL, **kwargs})(mix, rate).values()))
def rand(*shape, seed=0, dtype=torch.float32): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
def song(seed=0, samples=2 * RATE, channels=2): return toy_sources(torch.Generator().manual_seed(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)

def looped(period_s, seconds=12.0, seed=0, channels=1): # noise with a rhythm, repeated sample by sample
    length = round(period_s * RATE)
    g = torch.Generator().manual_seed(seed)
    loud = torch.rand(8, generator=g).square().repeat_interleave(math.ceil(length / 8))[:length]
    loop = 0.2 * loud * torch.randn(channels, length, generator=g)
    return loop.repeat(1, math.ceil(seconds * RATE / length))[:, :round(seconds * RATE)]

# Beat spectrum and period

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 3), bins=st.integers(1, 9), frames=st.integers(1, 40), log_scale=st.floats(-4, 2), double=st.booleans())
def test_beat_spectrum_is_the_sum_it_says(seed, channels, bins, frames, log_scale, double):
    mag = 10**log_scale * rand(channels, bins, frames, seed=seed, dtype=torch.float64 if double else torch.float32)
    power = mag.double().square()
    direct = torch.stack([(power[..., :frames - l] * power[..., l:]).sum() / (frames - l) for l in range(frames)])
    assert torch.allclose(beat_spectrum(mag), direct / direct[0], atol=1e-6)

@settings(deadline=None, max_examples=25)
@given(period_s=st.floats(0.85, 3.5), seed=st.integers(0, 1000), log_scale=st.floats(-4, 2), channels=st.integers(1, 2))
def test_planted_period_is_found(period_s, seed, log_scale, channels):
    mag = magnitude(STFT(512, 256)(10**log_scale * looped(period_s, seed=seed, channels=channels)))
    found = find_period(beat_spectrum(mag), shortest=50, longest=500)
    turns = found / (round(period_s * RATE) / 256) # a multiple of a period is one, too
    assert round(turns) in (1, 2, 3, 4) and abs(turns - round(turns)) < 0.005 * round(turns)

@pytest.mark.parametrize("period_s", [0.9, 1.27, 1.618, 2.5])
def test_the_period_itself_is_found_under_a_voice(period_s):
    voice = toy_sources(torch.Generator().manual_seed(4), seconds=12.0, sample_rate=RATE, stems=["vocals"], channels=1)[0]
    mag = magnitude(STFT(512, 256)(looped(period_s, seed=3) + 0.1 * voice))
    assert abs(find_period(beat_spectrum(mag), shortest=50, longest=500) - round(period_s * RATE) / 256) < 0.1

def test_no_period():
    assert find_period(torch.zeros(100), shortest=2, longest=50) == 100 # silence
    assert find_period(beat_spectrum(rand(1, 3, 20)), shortest=7, longest=50) == 20 # too short for three
    assert find_period(beat_spectrum(rand(1, 3, 1)), shortest=7, longest=50) == 1

# Models

@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 40), width=st.integers(1, 20), double=st.booleans(), ties=st.booleans())
def test_median_equals_numpy(seed, k, width, double, ties):
    rows = rand(k, width, seed=seed, dtype=torch.float64 if double else torch.float32).numpy()
    if ties: rows = np.round(rows * 3)
    assert np.array_equal(median_of(rows.copy()), np.median(rows, axis=0))

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 60), period=st.integers(1, 70))
def test_periodic_model_of_whole_frames(seed, frames, period):
    mag = rand(2, 3, frames, seed=seed); before = mag.clone()
    direct = torch.stack([mag[..., n % period::period].quantile(0.5, dim=-1) for n in range(frames)], -1)
    assert torch.allclose(periodic_model(mag, float(period)), direct) and torch.equal(mag, before)

def test_a_loop_is_its_own_model_and_a_stranger_is_not():
    loop = rand(2, 5, 20).repeat(1, 1, 6)
    stranger = loop.clone(); stranger[..., 50] += 7
    assert torch.equal(periodic_model(stranger, 20.0), loop)
    mask = repeating_mask(loop, stranger)
    assert (mask[..., 50] < 0.2).all() and (mask[..., :50] == 1).all()

def test_period_below_one_frame_is_refused():
    with pytest.raises(SepnbError, match="period"): periodic_model(rand(1, 2, 3), 0.5)

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 50), count=st.integers(1, 12), distance=st.integers(1, 9), block=st.integers(1, 20), threshold=st.floats(0, 0.9))
def test_similar_frames_one_by_one(seed, frames, count, distance, block, threshold):
    mag = rand(2, 4, frames, seed=seed, dtype=torch.float64).square()
    unit = torch.nn.functional.normalize(mag.flatten(0, 1), dim=0); like = (unit.T @ unit).fill_diagonal_(2).numpy()
    found = similar_frames(mag, count=count, distance=distance, threshold=threshold, block=block)
    assert len(found) == frames
    for n, at in enumerate(found):
        peaks = [m for m in range(frames) if like[n, m] > threshold and like[n, m] >= like[n, max(0, m - distance + 1):m + distance].max() - 1e-6]
        assert at[0] == n and len(at) <= count and set(at) <= set(peaks)
        if distance == 1: assert list(at) == sorted(peaks, key=lambda m: -like[n, m])[:count]
        assert all(abs(int(a) - int(b)) >= distance for i, a in enumerate(at) for b in at[:i])

def test_a_frame_finds_its_copies():
    mag = rand(1, 64, 100).square(); mag[..., [10, 47, 83]] = mag[..., [10]]
    assert sorted(similar_frames(mag, count=3, distance=5)[47].tolist()) == [10, 47, 83]

def test_model_equals_librosa_nn_filter():
    mag = rand(2, 33, 80, seed=4)
    repeats = similar_frames(mag, count=9, distance=5)
    pointers = np.cumsum([0] + [len(at) for at in repeats])
    links = scipy.sparse.csc_matrix((np.ones(pointers[-1]), np.concatenate(repeats), pointers), shape=(80, 80))
    theirs = librosa.decompose.nn_filter(mag.reshape(66, 80).numpy(), rec=links, aggregate=np.median)
    assert np.array_equal(similarity_model(mag, repeats).reshape(66, 80).numpy(), theirs)

@pytest.mark.parametrize("wrong", [dict(count=0), dict(distance=0), dict(block=0)])
def test_impossible_neighbours(wrong):
    with pytest.raises(SepnbError, match="at least 1"): similar_frames(rand(1, 2, 3), **wrong)

# Stems

def test_registered_with_the_whole_song():
    kinds = {s.name: s for s in systems() if s.name in BOTH}
    assert len(kinds) == 2 and all(s.kind == "classical" and s.stems == COMPONENTS and s.cls.segment_s is None for s in kinds.values())

def test_default_assignment_and_exceptions():
    assert REPET(STEMS).shares[:, COMPONENTS.index("varying")].tolist() == [0, 0, 0, 1]
    assert REPETSIM(["backing", "guitar"], assign=dict(guitar="varying")).shares.tolist() == [[1, 0], [0, 1]]

@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("wrong, message", [(dict(assign=dict(kazoo="varying")), "kazoo"), (dict(assign=dict(vocals="loud")), "loud"), (dict(hop_length=0), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(name, wrong, message):
    with pytest.raises(SepnbError, match=message) as error: build(name, STEMS, **wrong)
    assert "\n" not in str(error.value)

def test_own_settings_are_checked():
    for name, wrong in (("repet", dict(shortest_s=3.0, longest_s=2.0)), ("repet_sim", dict(count=0))):
        with pytest.raises(SepnbError): build(name, **wrong)

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_a_loop_is_background_and_a_voice_is_not(scale):
    loop = looped(1.3, 10.0)
    voice = 0.25 * toy_sources(torch.Generator().manual_seed(2), seconds=10.0, sample_rate=RATE, stems=["vocals"], channels=1)[0]
    parts = scale * torch.stack([loop, voice])
    def ratio(x): return power_to_db(parts.square().sum((1, 2)) / (x - parts).square().sum((1, 2)))
    gain = ratio(stacked("repet", parts.sum(0))) - ratio(parts.sum(0).expand_as(parts))
    assert (gain > 5).all(), gain

@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(BOTH), seed=st.integers(0, 10**6), samples=st.integers(1, 9000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans())
def test_stems_sum_to_the_mixture(name, seed, samples, channels, log_scale, double):
    mix = 10**log_scale * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64 if double else torch.float32)
    before = mix.clone()
    out = stacked(name, mix, STEMS, shortest_s=0.05, **{}) if name == "repet" else stacked(name, mix, STEMS, distance_s=0.05)
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and out.isfinite().all() and torch.equal(mix, before)
    assert (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (3, 20001)])
def test_silence(name, shape): assert not stacked(name, torch.zeros(shape)).any()

def test_too_short_to_repeat_is_all_background():
    mix = song(1, RATE)
    assert torch.allclose(stacked("repet", mix)[0], mix, atol=1e-5)

def test_another_rate_is_resampled():
    out = build("repet", **SMALL)(song(2)[:, :8000], 8000)
    assert all(x.shape == (2, 8000) for x in out.values())

def test_low_frequencies_are_background():
    t = torch.arange(4 * RATE) / RATE
    mix = (0.3 * torch.sin(2 * math.pi * 40 * t * (1 + 0.02 * t)))[None] # never the same
    out = stacked("repet_sim", mix, n_fft=2048)
    assert power_to_db(out[0].square().sum() / out[1].square().sum()) > 20

def test_nan_is_refused():
    with pytest.raises(SepnbError, match="NaN"): stacked("repet", torch.full((2, 100), torch.nan))

# Long songs

def test_model_by_blocks_of_bins_equals_the_whole(monkeypatch):
    mag = rand(2, 33, 60, seed=6); repeats = similar_frames(mag, count=7, distance=4)
    whole = similarity_model(mag, repeats)
    assert torch.equal(similarity_model(mag.permute(2, 0, 1).contiguous().permute(1, 2, 0), repeats), whole) # as a transform may hand it over
    monkeypatch.setattr("sepnb.classical.repet.BINS", 5)
    assert torch.equal(similarity_model(mag, repeats), whole)

def test_a_song_in_many_pieces_equals_one(monkeypatch):
    mix = song(7, 9 * RATE) # pieces are 256 hops long
    for name in BOTH:
        out = stacked(name, mix)
        monkeypatch.setattr(REPET, "_pieces", lambda self, length: [(0, length, 0, length)]); monkeypatch.setattr(REPETSIM, "_pieces", lambda self, length: [(0, length, 0, length)])
        assert torch.allclose(stacked(name, mix), out, atol=1e-4); monkeypatch.undo()

def test_a_batch_of_one_is_not_copied_and_more_are_stacked():
    system = build("repet", **SMALL); mix = song(8, RATE)
    assert torch.equal(system.estimate_batch(mix[None])[0], system.estimate(mix))
    assert torch.equal(system.estimate_batch(torch.stack([mix, 2 * mix])), torch.stack([system.estimate(mix), system.estimate(2 * mix)]))
