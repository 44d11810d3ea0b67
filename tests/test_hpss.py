"""Harmonic-percussive separation: equal to librosa, known answers, and nothing lost."""
import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from sepnb.classical.hpss import COMPONENTS, HPSS, TWO_STAGE, WITH_RESIDUAL, TwoStageHPSS, component_shares, hpss_masks, median_along
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import click, noise, tone, toy_sources

RATE = 16000
odd = st.integers(0, 40).map(lambda n: 2 * n + 1)

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def stacked(mix, stems=STEMS, rate=RATE, segment_s=None, **kwargs):
    system = build("hpss", stems, **kwargs)
    if segment_s: system.segment_s = segment_s
    return torch.stack(list(system(mix, rate).values()))

def song(seed=0, samples=2 * RATE, channels=2):
    return toy_sources(torch.Generator().manual_seed(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)

def energy(x): return x.square().sum()

# The filter

@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 50), frames=st.integers(1, 50), size=odd,
       dim=st.sampled_from([-1, -2]), double=st.booleans(), levels=st.sampled_from([0, 2, 1000]))
def test_median_bit_by_bit(seed, bins, frames, size, dim, double, levels):
    x = torch.rand(2, bins, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if levels < 1000: x = (x * levels).round() # many ties, or all zero
    x = x if double else x.float()
    before = x.clone()
    out = median_along(x, size, dim=dim)
    assert out.dtype == x.dtype and out.is_contiguous() and torch.equal(before, x)
    mirrored = np.pad(x.numpy(), [(size // 2 if d == dim % 3 else 0,) * 2 for d in range(3)], mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, size, axis=dim)
    assert np.array_equal(out.numpy(), np.median(windows, axis=-1))
    if size // 2 <= 2 * x.shape[dim]: # SciPy's image filter, and so librosa, mirrors wrongly beyond that
        assert np.array_equal(out.numpy(), median_filter(x.numpy(), size=(1, 1, size) if dim == -1 else (1, size, 1), mode="reflect"))

def test_median_by_sorting():
    x = noise(torch.Generator().manual_seed(0), seconds=0.01, channels=3)
    inside = x.unfold(-1, 7, 1).sort(-1).values[..., 3]
    assert torch.equal(median_along(x, 7, dim=1)[:, 3:-3], inside) and torch.equal(median_along(x, 1, dim=0), x)

def test_median_keeps_lines_and_edges():
    step = (torch.arange(100) >= 40).float()
    assert torch.equal(median_along(step, 31, dim=0), step) # an edge stays where it is
    spike = torch.zeros(100); spike[50:65] = 1 # 15 of 31 is a minority
    assert not median_along(spike, 31, dim=0).any()

@pytest.mark.parametrize("size", [0, -3, 2, 30, 2.5])
def test_median_needs_a_middle(size):
    with pytest.raises(SepnbError, match="middle"): median_along(torch.ones(5), size, dim=0)

# librosa

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 60), frames=st.integers(1, 60), time_frames=odd, freq_bins=odd,
       exponent=st.sampled_from([0.5, 1.0, 2.0, 4.0]), log_scale=st.floats(-4, 2), double=st.booleans(), silent=st.booleans())
def test_masks_equal_librosa(seed, bins, frames, time_frames, freq_bins, exponent, log_scale, double, silent):
    # beyond these SciPy's image filter, and so librosa, mirrors wrongly
    time_frames, freq_bins = min(time_frames, 4 * frames - 1), min(freq_bins, 4 * bins - 1)
    mag = torch.rand(1, bins, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 * 10**log_scale
    if silent: mag[..., frames // 2:] = 0
    mag = mag if double else mag.float()
    ours = hpss_masks(mag, time_frames=time_frames, freq_bins=freq_bins, exponent=exponent)
    theirs = librosa.decompose.hpss(mag.numpy(), kernel_size=(time_frames, freq_bins), power=exponent, mask=True)
    assert ours.shape == (2, 1, bins, frames) and (ours.sum(0) - 1).abs().max() < 1e-6
    assert np.abs(ours.numpy() - np.stack(theirs)).max() < 1e-5

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_components_equal_librosa(scale):
    mix = scale * song()
    spec = STFT(2048, 512)(mix)
    harmonic, percussive = librosa.decompose.hpss(spec.numpy())
    ours = hpss_masks(magnitude(spec)) * spec
    for a, b in zip(ours.numpy(), (harmonic, percussive)): assert np.abs(a - b).max() < 1e-5 * np.abs(spec.numpy()).max()

def test_waveforms_equal_librosa():
    mix = song(1, 64 * 512) # whole hops: both have the same frames
    ours = stacked(mix, ["drums", "rest"], n_fft=2048, hop_length=512)
    harmonic, percussive = librosa.effects.hpss(mix.numpy())
    assert np.abs(ours[1].numpy() - harmonic).max() < 1e-5 and np.abs(ours[0].numpy() - percussive).max() < 1e-5

# Known answers

@pytest.mark.parametrize("amplitude", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_harmonic_and_a_click_is_percussive(amplitude, channels):
    tones = amplitude * tone(440, seconds=3.0).expand(channels, -1)
    clicks = amplitude * sum(click(k / 4 + 0.1, seconds=3.0) for k in range(12)).expand(channels, -1)
    stft = STFT(1024, 256)
    masks = hpss_masks(magnitude(stft(tones + clicks)))
    def through(mask, x): return energy(stft.inverse(mask * stft(x), x.shape[-1]))
    assert power_to_db(through(masks[0], tones) / through(masks[1], tones)) > 20
    assert power_to_db(through(masks[1], clicks) / through(masks[0], clicks)) > 15

def test_drums_gain_most_on_toy_music():
    sources = toy_sources(torch.Generator().manual_seed(3), seconds=4.0, sample_rate=RATE)
    mix, out = sources.sum(0), stacked(sources.sum(0), n_fft=1024, hop_length=256)
    gain = power_to_db((mix - sources).square().sum((1, 2)) / (out - sources).square().sum((1, 2)))
    assert gain[0] > 5 and (gain > 0).all()

# Stems

@settings(deadline=None, max_examples=50)
@given(stems=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
       data=st.data(), components=st.integers(1, 4))
def test_shares_lose_nothing(stems, data, components):
    names = [f"k{i}" for i in range(components)]
    assign = {s: data.draw(st.sampled_from(names)) for s in stems}
    shares = component_shares(stems, assign, components=names)
    assert shares.shape == (len(stems), components) and torch.allclose(shares.sum(0), torch.ones(components)) and (shares >= 0).all()
    for i, stem in enumerate(stems): assert shares[i, names.index(assign[stem])] > 0

def test_default_assignment_and_exceptions():
    assert HPSS(STEMS).shares[:, COMPONENTS.index("percussive")].tolist() == [1, 0, 0, 0]
    exception = HPSS(STEMS, assign=dict(vocals="percussive"))
    assert exception.shares.tolist() == [[0, 0.5], [0.5, 0], [0.5, 0], [0, 0.5]]
    assert build("hpss").stems == COMPONENTS and torch.equal(build("hpss").shares, torch.eye(2))
    unclaimed = stacked(song(2), ["guitar", "backing"])
    assert torch.allclose(unclaimed[0], unclaimed[1]) and torch.allclose(unclaimed.sum(0), song(2), atol=1e-5)

def test_one_stem_is_the_mixture():
    assert torch.allclose(stacked(song(3), ["all"])[0], song(3), atol=1e-5)

@pytest.mark.parametrize("settings_, message", [
    (dict(assign=dict(kazoo="harmonic")), "no stem 'kazoo'"), (dict(assign=dict(drums="loud")), "cannot have 'loud'"),
    (dict(assign="percussive"), "assign"), (dict(time_frames=30), "odd"), (dict(freq_bins=0), "odd"), (dict(exponent=0.0), "exponent"),
    (dict(n_fft=512, hop_length=1024), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(settings_, message):
    with pytest.raises(SepnbError, match=message) as error: build("hpss", STEMS, **settings_)
    assert "\n" not in str(error.value)

def test_registered():
    assert [s.kind for s in systems() if s.name == "hpss"] == ["classical"] and not HPSS.needs_sources

# Anything goes in

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 8), log_scale=st.floats(-4, 2),
       double=st.booleans(), n_fft=st.sampled_from([64, 1000, 4096]))
def test_stems_sum_to_the_mixture(seed, samples, channels, log_scale, double, n_fft):
    dtype = torch.float64 if double else torch.float32
    mix = 10**log_scale * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    before = mix.clone()
    out = stacked(mix, n_fft=n_fft, hop_length=n_fft // 4)
    assert out.shape == (4, *mix.shape) and out.dtype == dtype and out.isfinite().all() and torch.equal(before, mix)
    assert (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (8, 4097)])
def test_silence(shape): assert not stacked(torch.zeros(shape)).any()

def test_channels_are_independent():
    mix = torch.cat([song(s, RATE) for s in range(4)])
    eight = stacked(mix)
    assert all(torch.allclose(eight[:, c:c + 1], stacked(mix[c:c + 1]), atol=1e-6) for c in range(8))

@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_scaling_the_input_scales_the_output(scale):
    assert torch.allclose(stacked(scale * song(5)), scale * stacked(song(5)), rtol=1e-3, atol=1e-5 * scale)

def test_segments_lose_nothing():
    mix = song(6, 4 * RATE)
    cut, whole = stacked(mix, segment_s=1.5, n_fft=1024, hop_length=256), stacked(mix, n_fft=1024, hop_length=256)
    assert (cut.sum(0) - mix).abs().max() < 1e-5 and energy(cut - whole) < 0.05 * energy(whole)

def test_nan_is_refused():
    with pytest.raises(SepnbError, match="NaN"): stacked(torch.full((2, 100), torch.nan))

# Margins, binary masks

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), bins=st.integers(8, 40), frames=st.integers(8, 40), margin=st.floats(1.01, 8), exponent=st.sampled_from([1.0, 2.0, torch.inf]),
       log_scale=st.floats(-4, 2), silent=st.booleans())
def test_margins_equal_librosa(seed, bins, frames, margin, exponent, log_scale, silent):
    mag = torch.rand(1, bins, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4 * 10**log_scale
    if silent: mag[..., frames // 2:] = 0
    ours = hpss_masks(mag, margin=margin, exponent=exponent, time_frames=9, freq_bins=9)
    theirs = np.stack(librosa.decompose.hpss(mag.numpy(), kernel_size=9, power=exponent, mask=True, margin=margin))
    assert ours.shape == (3, 1, bins, frames) and np.abs(ours[:2].numpy() - theirs).max() < 1e-5
    assert (ours.sum(0) - 1).abs().max() < 1e-12 and ours.min() >= 0

def test_binary_masks_are_binary():
    mag = magnitude(STFT(512, 128)(song(7)))
    lasting, broad = median_along(mag, 31, dim=-1), median_along(mag, 31, dim=-2)
    ours = hpss_masks(mag, exponent=torch.inf)
    assert torch.equal(ours[0][lasting != broad], (lasting > broad).float()[lasting != broad]) and (ours.sum(0) == 1).all()

def test_residual_is_given_to_nobody_or_to_all():
    mix = song(8)
    three = torch.stack(list(build("hpr", n_fft=1024, hop_length=256)(mix, RATE).values()))
    assert build("hpr").stems == WITH_RESIDUAL and (three.sum(0) - mix).abs().max() < 1e-5
    two = stacked(mix, ["harmonic", "percussive"], n_fft=1024, hop_length=256, margin=2.0)
    assert torch.allclose(two, three[:2] + three[2] / 2, atol=1e-5)
    with pytest.raises(SepnbError, match="margin"): build("hpss", margin=0.9)
    with pytest.raises(SepnbError, match="residual"): build("hpss", ["a", "b"], assign=dict(a="residual")) # there is none without a margin

# Two stages

def staged(mix, stems=TWO_STAGE, rate=RATE, **kwargs):
    windows = dict(long=dict(n_fft=8192, hop_length=2048), short=dict(n_fft=512, hop_length=128))
    return torch.stack(list(build("hpss_two_stage", stems, **{**windows, **kwargs})(mix, rate).values()))

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_chords_beats_and_a_voice(scale):
    t = torch.arange(3 * RATE) / RATE
    pitch = 330 * 2 ** ((2 * torch.sin(2 * torch.pi * 0.7 * t) + 0.5 * torch.sin(2 * torch.pi * 6 * t)) / 12)
    voice = sum(torch.sin(h * 2 * torch.pi * pitch.double().cumsum(0) / RATE).float() / h for h in range(1, 6)) / 10
    chord, beats = (tone(440, seconds=3.0) + tone(1250, seconds=3.0)) / 4, sum(click(k / 4 + 0.1, seconds=3.0, amplitude=0.9) for k in range(12))
    parts = scale * torch.stack([chord, beats, voice])[:, None]
    mix = parts.sum(0); out = staged(mix)
    gain = power_to_db((mix - parts).square().sum((1, 2)) / (out - parts).square().sum((1, 2)))
    assert (gain > 8).all() and (out.sum(0) - mix).abs().max() < 1e-5 * scale * 10

def test_two_stages_are_hpss_twice():
    mix = song(9)
    first = HPSS(COMPONENTS, n_fft=8192, hop_length=2048, time_frames=17, freq_bins=17).estimate(mix)
    second = HPSS(COMPONENTS, n_fft=512, hop_length=128, time_frames=17, freq_bins=17).estimate(first[1])
    assert torch.allclose(staged(mix), torch.stack([first[0], second[1], second[0]]), atol=1e-6)

def test_two_stage_assignment():
    assert TwoStageHPSS(STEMS).shares.tolist() == [[0, 1, 0], [0.5, 0, 0], [0.5, 0, 0], [0, 0, 1]]
    assert build("hpss_two_stage", ["backing", "guitar"], assign=dict(guitar="voice")).shares.tolist() == [[1, 0.5, 0], [0, 0.5, 1]]

@pytest.mark.parametrize("wrong", [dict(long=dict(depth=3)), dict(short=dict(margin=2.0)), dict(assign=dict(kazoo="voice")), dict(long=dict(time_frames=4))])
def test_two_stage_settings_that_cannot_work(wrong):
    with pytest.raises(SepnbError) as error: build("hpss_two_stage", STEMS, **wrong)
    assert "\n" not in str(error.value)

@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 9000), channels=st.integers(1, 3), log_scale=st.floats(-4, 2), silent=st.booleans())
def test_two_stages_lose_nothing(seed, samples, channels, log_scale, silent):
    mix = 10**log_scale * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed)) * (not silent)
    out = staged(mix, STEMS)
    assert out.shape == (4, *mix.shape) and out.isfinite().all() and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()
