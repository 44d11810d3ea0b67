"""Sinusoidal model: YIN beside librosa's, planted melodies, combs and partials, and nothing lost."""
import math

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.sinusoidal import COMPONENTS, Sinusoidal, best_path, comb_mask, harmonic_peaks, pitch_grid, resynthesise, salience, yin
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import noise, tone, toy_sources

RATE = 16000
SMALL = dict(sample_rate=RATE, n_fft=2048, hop_length=512)
VARIANTS = [dict(), dict(variant="synthesis"), dict(pitch="yin")]

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def stacked(mix, stems=(), rate=RATE, **kwargs): return torch.stack(list(build("sinusoidal", stems, **{**SMALL, **kwargs})(mix, rate).values()))
def song(seed=0, samples=RATE, channels=2): return toy_sources(gen(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)
def ratio_db(estimates, sources): return power_to_db(sources.square().sum((1, 2)) / (estimates - sources).square().sum((1, 2)))

def harmonic(hz, count=8, amplitude=0.3): # `(t,)` Hz → `(t,)`
    phase = 2 * math.pi * hz.double().cumsum(0) / RATE
    return (amplitude * sum(torch.sin(h * phase) / h for h in range(1, count + 1))).float()

# Pitch of one voice

@settings(deadline=None, max_examples=25)
@given(freq=st.floats(90, 900), amplitude=st.sampled_from([1e-4, 0.5, 1e2]), rate=st.sampled_from([16000, 22050, 44100]), count=st.integers(1, 6), double=st.booleans())
def test_tones_as_librosa(freq, amplitude, rate, count, double):
    x = sum(tone(freq * h, seconds=0.5, sample_rate=rate, amplitude=amplitude / h) for h in range(1, count + 1) if freq * h < 0.45 * rate)
    x = x.double() if double else x
    ours, depth = yin(x, sample_rate=rate)
    theirs = librosa.yin(x.numpy(), fmin=80, fmax=1000, sr=rate, frame_length=2048, hop_length=512)
    inside = slice(5, len(theirs) - 5)
    own, other = (1200 * np.log2(np.asarray(f)[inside] / freq) for f in (ours, theirs)) # errors in cents
    assert np.abs(own - other).max() < 25 and np.abs(own).max() <= np.abs(other).max() + 0.5 # its own error reaches 20 cents
    top = freq * max(h for h in range(1, count + 1) if freq * h < 0.45 * rate) # lags are whole samples: partials near the top blunt the dip
    assert np.abs(own).max() < 5 and depth[inside].max() < (0.05 if top < 0.25 * rate else 0.06) # measured: 0.038 and 0.054 at most

def test_nearer_to_the_truth_than_librosa():
    freqs = [97.3, 143.1, 222.2, 391.7, 618.9, 871.3]; errors = []
    for freq in freqs:
        x = tone(freq, seconds=0.5)
        ours, theirs = yin(x, sample_rate=RATE)[0], librosa.yin(x.numpy(), fmin=80, fmax=1000, sr=RATE, frame_length=2048, hop_length=512)
        errors.append([float(abs(np.asarray(f)[5:-5] / freq - 1).mean()) for f in (ours, theirs)])
    ours, theirs = np.mean(errors, 0)
    assert ours <= theirs * 1.05

@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5000), block=st.integers(1, 9))
def test_differences_by_the_equation(seed, samples, block):
    x = torch.randn(samples, generator=gen(seed), dtype=torch.float64)
    f0, depth = yin(x, sample_rate=1000, lowest_hz=50, highest_hz=200, frame_length=64, hop_length=16, block=block)
    assert f0.shape == depth.shape == (-(-samples // 16) + 1,) and f0.isfinite().all()
    padded = torch.nn.functional.pad(x, (32, 200))
    for n in range(0, len(f0), 7):
        frame = padded[16 * n:16 * n + 64]; width = 64 - 21
        d = torch.tensor([float((frame[:width] - frame[lag:lag + width]).square().sum()) for lag in range(22)])
        mean = d[1:].double().cumsum(0) / torch.arange(1, 22)
        relative = torch.where(mean > 1e-9, d[1:] / mean, 1)
        assert (relative - depth[n]).abs().min() < 1e-4

def test_noise_and_silence_have_no_pitch():
    assert yin(noise(gen(0)), sample_rate=RATE)[1].median() > 0.5
    f0, depth = yin(torch.zeros(3000), sample_rate=RATE)
    assert f0.isfinite().all() and (depth == 1).all()

@pytest.mark.parametrize("wrong", [dict(lowest_hz=0.0), dict(highest_hz=9000.0), dict(lowest_hz=900.0, highest_hz=100.0), dict(frame_length=128)])
def test_impossible_ranges(wrong):
    with pytest.raises(SepnbError): yin(torch.zeros(100), sample_rate=RATE, **wrong)

# Pitch under a band

@settings(deadline=None, max_examples=10)
@given(start=st.floats(150, 500), semitones=st.floats(-9, 9), seed=st.integers(0, 1000), log_scale=st.floats(-4, 2))
def test_a_planted_glide_is_followed_under_noise_and_chords(start, semitones, seed, log_scale):
    hz = start * 2 ** (torch.linspace(0, semitones, 2 * RATE) / 12)
    chords = 0.1 * sum(tone(f, seconds=2.0, amplitude=0.3) for f in (98.0, 1046.5, 1318.5))
    mix = 10**log_scale * (harmonic(hz) + chords + 0.01 * noise(gen(seed), seconds=2.0))
    mag = magnitude(STFT(2048, 512)(mix[None])); grid = pitch_grid(100, 1000)
    found = grid[best_path(salience(mag, grid, sample_rate=RATE))][3:-3]
    true = hz[(torch.arange(mag.shape[-1]) * 512).clamp_max(len(hz) - 1)][3:-3]
    assert ((1200 * torch.log2(found / true)).abs() < 50).float().mean() > 0.9

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), states=st.integers(1, 9), frames=st.integers(1, 6), reach=st.integers(0, 9))
def test_best_path_is_the_best(seed, states, frames, reach):
    score = torch.rand(states, frames, generator=gen(seed)) + 0.01; settings_ = dict(reach=reach, step=0.1, leap=0.35)
    scaled = (score / score.amax(0)).T
    def price(a, b): return min(0.1 * abs(a - b) if abs(a - b) <= reach else math.inf, 0.35)
    best = {k: (float(scaled[0, k]), [k]) for k in range(states)} # plain dynamic programming over all pairs
    for row in scaled[1:]:
        best = {k: max(((v - price(j, k) + float(row[k]), p + [k]) for j, (v, p) in best.items()), key=lambda e: e[0]) for k in range(states)}
    path = best_path(score, **settings_).tolist()
    def total(p): return sum(float(scaled[n, k]) for n, k in enumerate(p)) - sum(price(a, b) for a, b in zip(p, p[1:]))
    assert len(path) == frames and total(path) >= max(v for v, _ in best.values()) - 1e-4

# Combs and partials

@settings(deadline=None, max_examples=25)
@given(freq=st.floats(100, 900), harmonics=st.integers(1, 30), bins=st.sampled_from([257, 1025, 2049]))
def test_teeth_are_where_the_harmonics_are(freq, harmonics, bins):
    mask = comb_mask(torch.tensor([freq, 0.0]), bins, sample_rate=RATE, harmonics=harmonics)
    bin_hz = RATE / 2 / (bins - 1)
    assert mask.shape == (bins, 2) and not mask[:, 1].any() and mask[0, 0] == 0
    for h in range(1, harmonics + 1):
        if freq > 4 * bin_hz and h * freq < RATE / 2 - bin_hz: assert mask[round(h * freq / bin_hz), 0] == 1
    if freq > 8 * bin_hz: assert mask.mean() < 0.6

@settings(deadline=None, max_examples=15)
@given(freq=st.floats(200, 900), log_scale=st.floats(-4, 2), channels=st.integers(1, 3), n_fft=st.sampled_from([2048, 4096]))
def test_steady_partials_come_back(freq, log_scale, channels, n_fft):
    x = 10**log_scale * harmonic(torch.full((2 * RATE,), freq), 5).repeat(channels, 1) * torch.linspace(1, 0.3, channels)[:, None]
    stft = STFT(n_fft, n_fft // 4); spec = stft(x)
    place, found = harmonic_peaks(magnitude(spec).sum(0), torch.full((spec.shape[-1],), freq), sample_rate=RATE, harmonics=8)
    middle = place[:, 8:-8].median(1).values[found[:, 8:-8].all(1)]
    assert (middle[:5] * RATE / n_fft / (freq * torch.arange(1, len(middle[:5]) + 1)) - 1).abs().max() < 2e-3
    again = stft.inverse(resynthesise(spec, place, found), x.shape[-1])[:, n_fft:-n_fft]
    assert power_to_db(x[:, n_fft:-n_fft].square().sum() / (again - x[:, n_fft:-n_fft]).square().sum()) > 22

def test_nothing_is_found_in_silence():
    place, found = harmonic_peaks(torch.zeros(1025, 5), torch.full((5,), 200.0), sample_rate=RATE)
    assert not found.any() and place.isfinite().all()
    assert not harmonic_peaks(torch.rand(1025, 5), torch.zeros(5), sample_rate=RATE)[1].any()

# Stems

def test_registered_and_assigned():
    assert [(s.kind, s.stems) for s in systems() if s.name == "sinusoidal"] == [("classical", COMPONENTS)]
    assert Sinusoidal(STEMS).shares.flatten().tolist() == pytest.approx([0, 1 / 3] * 3 + [1, 0])
    assert Sinusoidal(["backing", "guitar"], assign=dict(guitar="lead")).shares.tolist() == [[0, 1], [1, 0]]

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("variant, gain", [("comb", 6), ("synthesis", 3)])
def test_a_voice_over_a_band(variant, gain, scale):
    t = torch.arange(4 * RATE) / RATE
    voice = harmonic(350 * 2 ** (2 * torch.sin(2 * math.pi * 0.4 * t) / 12))
    band = toy_sources(gen(2), seconds=4.0, sample_rate=RATE, stems=["bass", "drums"], channels=1).sum(0)[0] / 2
    parts = scale * torch.stack([voice, band])[:, None]
    out = stacked(parts.sum(0), variant=variant)
    assert (ratio_db(out, parts) - ratio_db(parts.sum(0).expand_as(parts), parts) > gain).all()

@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(VARIANTS), seed=st.integers(0, 10**6), samples=st.integers(1, 6000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans(), silent=st.booleans())
def test_stems_sum_to_the_mixture(kind, seed, samples, channels, log_scale, double, silent):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32) * (not silent)
    before = mix.clone(); out = stacked(mix, STEMS, **kind)
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and out.isfinite().all() and torch.equal(mix, before)
    assert (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()
    if silent: assert not out.any()

@pytest.mark.parametrize("kind", VARIANTS)
def test_level_does_not_matter(kind):
    whole = stacked(song(3), **kind)
    for scale in (1e-4, 1e2): assert power_to_db(whole.square().sum() / (stacked(scale * song(3), **kind) / scale - whole).square().sum()) > 30

@pytest.mark.parametrize("wrong", [dict(variant="drum"), dict(pitch="ear"), dict(lowest_hz=0.0), dict(harmonics=0), dict(pitch="yin", lowest_hz=10.0), dict(assign=dict(kazoo="lead")), dict(hop_length=0), dict(depth=3)])
def test_settings_that_cannot_work_are_refused_when_built(wrong):
    with pytest.raises(SepnbError) as error: build("sinusoidal", STEMS, **wrong)
    assert "\n" not in str(error.value)

def test_another_rate_is_resampled():
    assert all(x.shape == (2, 8000) for x in build("sinusoidal", **SMALL)(song(4)[:, :8000], 8000).values())
