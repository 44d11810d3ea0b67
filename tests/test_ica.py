"""Independent components: planted mixtures come apart, scikit-learn's FastICA, rooms, orders, and what mono falls back to."""
import math
import warnings
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FastICA

from sepnb.classical.ica import COMPONENTS, ICA, FrequencyICA, align_orders, central, complex_ica, convolutive_images, fast_ica, images, whitening
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.metrics import si_sdr
from sepnb.separator import build, systems
from sepnb.stft import STFT
from sepnb.synth import toy_sources

RATE = 16000
BOTH = ("ica", "fdica")

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def laplace(count, samples, seed=0, dtype=torch.float32):
    u = torch.rand(count, samples, generator=gen(seed), dtype=dtype) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs().clamp_max(0.4999999))
def song(seed=0, samples=2 * RATE, channels=2): return toy_sources(gen(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)
def stacked(name, mix, stems=(), rate=RATE, **kwargs): return torch.stack(list(build(name, stems, **kwargs)(mix, rate).values()))
def matched(estimates, truth): # the best order's scores
    return max((si_sdr(estimates[list(p)], truth, channels="joint") for p in permutations(range(len(truth)))), key=lambda v: float(v.mean()))

# Instantaneous mixtures

@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), angle=st.floats(0.2, 1.3), first=st.floats(0, math.pi), log_scale=st.floats(-4, 2), double=st.booleans())
def test_planted_mixtures_come_apart(seed, angle, first, log_scale, double):
    sources = laplace(2, 80_000, seed, torch.float64 if double else torch.float32)
    mixing = 10**log_scale * torch.tensor([[math.cos(first), math.cos(first + angle)], [math.sin(first), math.sin(first + angle)]], dtype=sources.dtype)
    truth = mixing.T[:, :, None] * sources[:, None]
    parts = images(fast_ica(truth.sum(0)), truth.sum(0))
    assert (matched(parts, truth) > 30).all() # 40 and more but for seeds with a chance correlation

@pytest.mark.parametrize("channels", [2, 3, 4])
def test_more_than_40_db(channels):
    sources = laplace(channels, 300_000, 1); sources[0] = sources[0].sign() * torch.rand(300_000, generator=gen(2)) # one of them flat
    mixing = torch.randn(channels, channels, generator=gen(3))
    truth = mixing.T[:, :, None] * sources[:, None]
    unmixing = fast_ica(truth.sum(0)); order = (unmixing @ mixing).abs().argmax(0)
    assert len(set(order.tolist())) == channels and (si_sdr(images(unmixing, truth.sum(0))[order], truth, channels="joint") > 40).all()

def test_agrees_with_scikit_learn():
    x = torch.randn(3, 3, generator=gen(0), dtype=torch.float64) @ laplace(3, 20_000, 4, torch.float64)
    ours = fast_ica(x, tolerance=1e-12) @ (x - x.mean(1, keepdim=True))
    theirs = torch.from_numpy(FastICA(3, fun="logcosh", whiten="unit-variance", tol=1e-12, max_iter=500, random_state=0).fit_transform(x.T.numpy()).T.copy())
    match = (ours @ theirs.T / x.shape[1]).abs()
    assert torch.allclose(match.amax(1), torch.ones(3, dtype=match.dtype), atol=1e-6) and match.sort(1).values[:, -2].max() < 1e-4

def test_other_beginnings_same_end():
    x = torch.randn(2, 2, generator=gen(0)) @ laplace(2, 50_000, 5)
    a, b = fast_ica(x), fast_ica(x, generator=gen(8))
    gain = (b @ torch.linalg.inv(a)).abs()
    assert torch.allclose(gain.amax(1), torch.ones(2), atol=1e-2) and gain.amin(1).max() < 1e-2

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), channels=st.integers(2, 5), samples=st.integers(50, 400), log_scale=st.floats(-4, 2), complex_=st.booleans())
def test_white_is_white(seed, channels, samples, log_scale, complex_):
    x = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.complex128 if complex_ else torch.float64)
    z = whitening(x) @ x
    assert torch.allclose(z @ z.mH / samples, torch.eye(channels, dtype=z.dtype), atol=1e-8)

@pytest.mark.parametrize("bad, message", [(torch.ones(1, 100), "at least two"), (torch.ones(2, 100), "copy"), (torch.zeros(2, 100), "silent")])
def test_one_view_is_refused(bad, message):
    with pytest.raises(SepnbError, match=message) as error: fast_ica(bad * torch.linspace(-1, 1, 100))
    assert "\n" not in str(error.value)

# Images

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 4), log_scale=st.floats(-4, 2))
def test_images_add_up_whatever_the_matrix(seed, channels, log_scale):
    x = 10**log_scale * torch.randn(channels, 50, generator=gen(seed), dtype=torch.float64)
    parts = images(torch.randn(channels, channels, generator=gen(seed + 1), dtype=torch.float64), x)
    assert parts.shape == (channels, channels, 50) and torch.allclose(parts.sum(0), x, atol=1e-6 * 10**log_scale)

def test_central():
    x = torch.randn(100, generator=gen(0))
    parts = torch.stack([torch.stack([x, x]), torch.stack([x, -x]), torch.stack([x, 0 * x])])
    assert torch.allclose(central(parts), torch.tensor([1, 0, 0.5])) and not central(0 * parts).any()

# Rooms

def rooms(seed, taps=48, seconds=6.0):
    g = gen(seed); sources = toy_sources(gen(3), seconds=seconds, sample_rate=RATE, stems=["drums", "vocals"], channels=1)[:, 0]
    filters = torch.randn(2, 2, taps, generator=g) * torch.exp(-torch.arange(taps) / 10); size = 2**18
    return torch.fft.irfft(torch.fft.rfft(sources, size)[:, None] * torch.fft.rfft(filters, size), size)[..., :sources.shape[-1]]

@pytest.mark.parametrize("seed", [1, 2, 5])
def test_frequency_domain_gains_in_a_room(seed):
    truth = rooms(seed); mix = truth.sum(0); stft = STFT(2048, 512)
    before = matched(mix.expand_as(truth), truth).mean()
    after = matched(stft.inverse(convolutive_images(stft(mix)), mix.shape[-1]), truth).mean()
    assert after > before + 4 and after > matched(images(fast_ica(mix), mix), truth).mean()

def test_each_bin_is_unmixed():
    count = 4000
    sources = laplace(2 * 7, count, 6).view(2, 7, count) * torch.exp(2j * math.pi * torch.rand(2, 7, count, generator=gen(7)))
    mixing = torch.randn(7, 2, 2, generator=gen(8), dtype=torch.complex64)
    spec = torch.einsum("fcs,sfn->cfn", mixing, sources)
    gain = (complex_ica(spec) @ mixing).abs()
    assert (gain.amin(-1) < 0.08 * gain.amax(-1)).all()

@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 4), bins=st.integers(1, 60), frames=st.integers(40, 120), log_scale=st.floats(-4, 2))
def test_shuffled_envelopes_are_put_in_order(seed, count, bins, frames, log_scale):
    g = gen(seed)
    envelopes = torch.rand(count, frames, generator=g, dtype=torch.float64) ** 3
    shuffled = torch.stack([torch.randperm(count, generator=g) for _ in range(bins)])
    power = 10**log_scale * envelopes[shuffled] * (0.9 + 0.2 * torch.rand(bins, count, frames, generator=g))
    orders = align_orders(power); straight = shuffled.gather(1, orders)
    assert torch.equal(orders.sort(1).values, torch.arange(count).expand(bins, -1)) # permutations, all of them
    assert (straight == straight[0]).all()

def test_orders_of_silence_and_of_too_many():
    assert torch.equal(align_orders(torch.zeros(3, 2, 5)).sort(1).values, torch.tensor([[0, 1]] * 3))
    with pytest.raises(SepnbError, match="six"): align_orders(torch.ones(3, 7, 5))

# Stems

def test_registered():
    kinds = {s.name: s for s in systems() if s.name in BOTH}
    assert len(kinds) == 2 and all(s.kind == "classical" and s.stems == COMPONENTS for s in kinds.values()) and ICA.segment_s is None

def test_assignment():
    assert torch.allclose(ICA(STEMS).shares, torch.tensor([[1 / 3, 0], [1 / 3, 0], [0, 1], [1 / 3, 0]]))
    assert FrequencyICA(["backing", "guitar"], assign=dict(backing="centre")).shares.tolist() == [[1, 0], [0, 1]]

def test_centre_and_side_of_a_song():
    drums, voice = toy_sources(gen(4), seconds=4.0, sample_rate=RATE, stems=["drums", "vocals"], channels=1)[:, 0]
    truth = torch.stack([torch.tensor([0.2, 1.0])[:, None] * drums, torch.tensor([0.8, 0.8])[:, None] * voice])
    assert (si_sdr(stacked("ica", truth.sum(0), ["drums", "vocals"], assign=dict(drums="side")), truth, channels="joint") > 20).all()

@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("mix", [song(1, 9000, 1), song(1, 9000, 1).repeat(2, 1), torch.cat([song(1, 9000, 1), torch.zeros(1, 9000)])])
def test_without_a_second_view_stems_share_the_mixture_and_say_so(name, mix):
    with pytest.warns(UserWarning, match="equal share"): out = stacked(name, mix, STEMS)
    assert torch.allclose(out, (mix / 4).expand(4, *mix.shape), atol=1e-6)

@pytest.mark.parametrize("name", BOTH)
def test_silence_is_no_reason_to_warn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error"); assert not stacked(name, torch.zeros(2, 5000)).any()

@settings(deadline=None, max_examples=15)
@given(name=st.sampled_from(BOTH), seed=st.integers(0, 10**6), samples=st.integers(1, 6000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans())
def test_stems_sum_to_the_mixture(name, seed, samples, channels, log_scale, double):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32); before = mix.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore"); out = stacked(name, mix, STEMS, **(dict(n_fft=512, hop_length=128) if name == "fdica" else {}))
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and out.isfinite().all() and torch.equal(mix, before)
    assert (out.sum(0) - mix).abs().max() <= 1e-4 * mix.abs().max()

@pytest.mark.parametrize("scale", [1e-4, 1e2])
@pytest.mark.parametrize("name", BOTH)
def test_level_does_not_matter(name, scale):
    whole = stacked(name, song(5)); out = stacked(name, scale * song(5)) / scale
    assert power_to_db(whole.square().sum() / (out - whole).square().sum()) > 30

@pytest.mark.parametrize("name, wrong", [("ica", dict(steps=0)), ("ica", dict(assign=dict(kazoo="side"))), ("fdica", dict(tolerance=0.0)), ("fdica", dict(n_fft=512, hop_length=1024))])
def test_settings_that_cannot_work_are_refused_when_built(name, wrong):
    with pytest.raises(SepnbError) as error: build(name, STEMS, **wrong)
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("name", BOTH)
def test_unknown_settings(name):
    with pytest.raises(SepnbError, match="settings"): build(name, STEMS, depth=3)
