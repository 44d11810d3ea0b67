"""Bounds: known answers, a second route through NumPy and SciPy, and what "ideal" does and does not promise."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import ShortTimeFFT

import sepnb.classical.bounds as bounds
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.metrics import si_sdr
from sepnb.separator import build, systems
from sepnb.stft import STFT, make_window
from sepnb.synth import noise, toy_sources

RATE = 16000
MASKS = ("ibm", "irm", "wfm")
MORE = ("psm", "cirm", "mwf")

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def stacked(name, sources, rate=RATE, names=None, segment_s=None, **kwargs):
    system = build(name, names or [f"s{j}" for j in range(len(sources))], **kwargs)
    if segment_s: system.segment_s = segment_s
    return torch.stack(list(system(sources.sum(0), rate, sources=sources if system.needs_sources else None).values()))

def energy_ratio_db(estimates, sources):
    estimates, sources = estimates.double(), sources.double()
    return power_to_db(sources.square().sum((1, 2)) / (estimates - sources).square().sum((1, 2)))

def toy(seed, samples=RATE, channels=2, scale=1.0):
    return scale * toy_sources(torch.Generator().manual_seed(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels)

def test_registered():
    kinds = {s.name: s for s in systems() if s.name in ("mixture", *MASKS)}
    assert len(kinds) == 4 and all(s.kind == "bound" for s in kinds.values())
    assert [kinds[n].cls.needs_sources for n in ("mixture", *MASKS)] == [False, True, True, True]
    assert build("irm", STEMS).exponent == 1 and build("wfm", STEMS).exponent == 2

@pytest.mark.parametrize("length", [1, 2, 4321])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_mixture_is_the_mixture_sample_for_sample(length, channels):
    mix = noise(torch.Generator().manual_seed(1), seconds=length / RATE, channels=channels).reshape(channels, length)
    out = build("mixture", ["a", "b", "c"])(mix, RATE)
    assert all(torch.equal(x, mix) for x in out.values())
    out["a"].zero_()
    assert out["b"].abs().max() > 0 and mix.abs().max() > 0 # no memory is shared

# Scores

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("channels, samples", [(2, 2 * RATE), (1, 2 * RATE - 1), (2, 12345)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ideal_masks_stay_above_the_mixture_on_toy_music(seed, channels, samples, scale):
    sources = toy(seed, samples, channels, scale)
    floor = energy_ratio_db(stacked("mixture", sources), sources)
    for name in MASKS:
        score = energy_ratio_db(stacked(name, sources), sources)
        assert (score > floor + 4).all(), (name, score - floor)
        if samples > RATE and scale == 1: assert torch.allclose(score, energy_ratio_db(stacked(name, 3 * sources), 3 * sources), atol=1e-2)

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_on_toy_music(seed):
    sources = toy(seed, 4 * RATE)
    mean = {name: energy_ratio_db(stacked(name, sources), sources).mean() for name in ("mixture", *MASKS)}
    assert mean["wfm"] > mean["irm"] > mean["mixture"] + 10 and mean["wfm"] > mean["ibm"] > mean["mixture"] + 10

def test_sharing_wins_in_a_crowd_and_all_or_nothing_in_a_duet():
    g = torch.Generator().manual_seed(0)
    gap = {}
    for stems in (2, 8):
        sources = torch.stack([noise(g, seconds=2.0)[None] for _ in range(stems)])
        mean = {name: energy_ratio_db(stacked(name, sources), sources).mean() for name in MASKS}
        assert mean["wfm"] > mean["irm"]
        gap[stems] = mean["irm"] - mean["ibm"]
    assert gap[2] < -0.3 < 0 < gap[8]

@pytest.mark.parametrize("level_db", [0, -10, -20, -40])
def test_the_wiener_like_mask_never_loses_against_the_mixture_on_independent_noise(level_db):
    g = torch.Generator().manual_seed(3)
    sources = torch.stack([noise(g, seconds=2.0)[None], 10 ** (level_db / 20) * noise(g, seconds=2.0)[None]])
    floor = energy_ratio_db(stacked("mixture", sources), sources)
    assert (energy_ratio_db(stacked("wfm", sources), sources) >= floor - 1e-3).all()
    if level_db <= -20: assert energy_ratio_db(stacked("irm", sources), sources)[0] < floor[0] - 0.5 # the lesson's warning

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 6000), channels=st.integers(1, 2),
       mixing=st.floats(-1, 1), level_db=st.floats(-60, 60))
def test_two_stems_ibm_is_never_below_the_mixture(seed, samples, channels, mixing, level_db):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, channels, samples, generator=g, dtype=torch.float64)
    sources = torch.stack([a, (b + mixing * a) * 10 ** (level_db / 20)])
    sources = torch.nn.functional.pad(sources, (1024, 1024)) # silence where the window sum is not constant
    out = stacked("ibm", sources, n_fft=1024, hop_length=256)
    assert ((out - sources).square().sum((1, 2)) <= (sources.sum(0) - sources).square().sum((1, 2)) * (1 + 1e-9)).all()

# Two routes

@pytest.mark.parametrize("name, exponent", [("irm", 1), ("wfm", 2)])
def test_ratio_masks_by_numpy_and_scipy(name, exponent):
    sources = toy(4, 8192, 1).double()
    window = make_window("hann", 1024, dtype=torch.float64).numpy()
    transform = ShortTimeFFT(window, 256, fs=1, phase_shift=None)
    specs = transform.stft(np.pad(sources.numpy(), ((0, 0), (0, 0), (2048, 2048))))
    powers = np.abs(specs) ** exponent
    total = powers.sum(0, keepdims=True)
    mask = np.divide(powers, total, out=np.full_like(powers, 0.25), where=total > 0)
    theirs = transform.istft(mask * specs.sum(0))[..., 2048:2048 + 8192]
    ours = stacked(name, sources, n_fft=1024, hop_length=256)
    assert np.abs(theirs - ours.numpy())[..., 1024:-1024].max() < 1e-9

def test_large_exponent_is_the_binary_mask():
    sources = toy(5)
    assert (stacked("irm", sources, exponent=400.0) - stacked("ibm", sources)).abs().max() < 2e-3
    assert torch.equal(stacked("irm", sources, exponent=2.0), stacked("wfm", sources))

def test_channels_are_independent():
    sources = toy(6)
    for name in MASKS:
        both = stacked(name, sources)
        assert all(torch.allclose(both[:, c:c + 1], stacked(name, sources[:, c:c + 1]), atol=1e-6) for c in range(2))
        assert torch.equal(both.flip(1), stacked(name, sources.flip(1)))

def test_segments_change_little_and_lose_nothing():
    sources = toy(7, 4 * RATE)
    for name in MASKS:
        whole, cut = stacked(name, sources), stacked(name, sources, segment_s=1.3)
        assert (cut.sum(0) - sources.sum(0)).abs().max() < 1e-5
        assert (energy_ratio_db(whole, sources) - energy_ratio_db(cut, sources)).abs().max() < 1

# Anything goes in

@settings(deadline=None, max_examples=25)
@given(name=st.sampled_from(MASKS), seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 3),
       stems=st.integers(1, 5), log_scale=st.floats(-4, 2), double=st.booleans(),
       n_fft=st.sampled_from([64, 1000, 4096]), silent=st.booleans())
def test_estimates_sum_to_the_mixture(name, seed, samples, channels, stems, log_scale, double, n_fft, silent):
    dtype = torch.float64 if double else torch.float32
    sources = 10**log_scale * torch.randn(stems, channels, samples, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if silent: sources[0] = 0
    before = sources.clone()
    out = stacked(name, sources, n_fft=n_fft, hop_length=n_fft // 4)
    assert out.shape == sources.shape and out.dtype == dtype and out.isfinite().all() and torch.equal(before, sources)
    assert (out.sum(0) - sources.sum(0)).abs().max() <= (1e-10 if double else 1e-5) * max(1e-30, sources.abs().max())
    if silent and stems > 1: assert out[0].abs().max() <= 1e-6 * sources.abs().max() # a silent stem gets nothing

@pytest.mark.parametrize("name", MASKS)
def test_silence(name):
    out = stacked(name, torch.zeros(4, 2, 1001))
    assert not out.any()

@pytest.mark.parametrize("name", MASKS)
def test_bounds_refuse_to_guess(name):
    mix = toy(8).sum(0)
    with pytest.raises(SepnbError, match="true sources"): build(name, STEMS)(mix, RATE)
    with pytest.raises(SepnbError, match="true sources"): build(name, STEMS)(mix, RATE, sources=torch.zeros(3, *mix.shape))
    with pytest.raises(SepnbError, match="does not take"): build(name, STEMS, depth=3)
    with pytest.raises(SepnbError): build(name, STEMS, n_fft=1024, hop_length=2048)

def test_an_exponent_of_zero_is_refused():
    with pytest.raises(SepnbError, match="exponent"): stacked("irm", toy(9, 100), exponent=0.0)

def test_the_base_class_has_no_mask():
    with pytest.raises(NotImplementedError): bounds.IdealMask(["a"]).mask(torch.ones(1, 1, 2, 2) + 0j, torch.ones(1, 2, 2) + 0j)

# The best real gain, the best complex gain, the truth about space

def cpx(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex64)

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), stems=st.integers(1, 4), upper=st.floats(1, 20), log_scale=st.floats(-4, 2), silent=st.booleans())
def test_no_gain_within_the_bounds_is_better(seed, stems, upper, log_scale, silent):
    truth = 10**log_scale * cpx(stems, 1, 5, 7, seed=seed)
    if silent: truth[:, :, 2] = 0
    spec = truth.sum(0)
    real, free = bounds.phase_sensitive_mask(truth, spec, bound=upper), bounds.complex_ratio_mask(truth, spec, bound=upper)
    assert real.min() >= 0 and real.max() <= upper and free.abs().max() <= upper * (1 + 1e-5)
    g = torch.Generator().manual_seed(seed)
    for _ in range(10):
        gain = upper * torch.rand(real.shape, generator=g); turn = torch.polar(gain, 2 * torch.pi * torch.rand(real.shape, generator=g))
        assert ((truth - real * spec).abs() <= (truth - gain * spec).abs() + 1e-5 * 10**log_scale).all()
        assert ((truth - free * spec).abs() <= (truth - turn * spec).abs() + 1e-5 * 10**log_scale).all()

def test_masks_where_the_mixture_is_nothing():
    truth, spec = torch.tensor([1.0 + 1j, -1 - 1j]).reshape(2, 1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.complex64)
    for mask in (bounds.phase_sensitive_mask(truth, spec), bounds.complex_ratio_mask(truth, spec)): assert not mask.any()

@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_order_of_all_bounds_by_si_sdr(seed, scale):
    sources = toy(seed, 3 * RATE, scale=scale)
    mean = {name: float(si_sdr(stacked(name, sources), sources, channels="joint").mean()) for name in ("mixture", *MASKS, *MORE)}
    assert mean["cirm"] > mean["psm"] > mean["wfm"] > mean["irm"] > mean["mixture"] + 10 and mean["psm"] > mean["ibm"] and mean["mwf"] > mean["mixture"] + 10
    one = stacked("cirm", sources, bound=1.0)
    assert mean["cirm"] > float(si_sdr(one, sources, channels="joint").mean()) > mean["psm"]

@settings(deadline=None, max_examples=25)
@given(name=st.sampled_from(["psm", "cirm"]), seed=st.integers(0, 10**6), samples=st.integers(1, 6000), channels=st.integers(1, 2),
       stems=st.integers(1, 4), mixing=st.floats(-1, 1), level_db=st.floats(-60, 60))
def test_psm_and_cirm_are_never_below_the_mixture(name, seed, samples, channels, stems, mixing, level_db):
    x = torch.randn(stems, channels, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[1:] = (x[1:] + mixing * x[:1]) * 10 ** (level_db / 20)
    sources = torch.nn.functional.pad(x, (1024, 1024))
    out = stacked(name, sources, n_fft=1024, hop_length=256)
    floor = (sources.sum(0) - sources).square().sum((1, 2))
    assert ((out - sources).square().sum((1, 2)) <= floor * (1 + 1e-9) + 1e-20 * sources.square().sum()).all()

def test_complex_mask_without_a_bound_to_speak_of_is_the_truth():
    sources = toy(3)
    assert (energy_ratio_db(stacked("cirm", sources, bound=1e6), sources) > 60).all()

def test_wiener_by_the_equation():
    sources = toy(4, 4096).double()
    stft = STFT(512, 256); truth, spec = stft(sources), stft(sources.sum(0))
    power = truth.abs().square().mean(1) # (s, f, n)
    outer = torch.einsum("scfn,sdfn->sfcd", truth, truth.conj()) / power.sum(-1)[..., None, None]
    mixed = torch.einsum("sfn,sfcd->fncd", power.to(outer.dtype), outer)
    u = torch.linalg.solve(mixed + 1e-12 * mixed.diagonal(dim1=-2, dim2=-1).real.mean() * torch.eye(2), spec.permute(1, 2, 0)[..., None])[..., 0]
    theirs = stft.inverse(torch.einsum("sfn,sfcd,fnd->scfn", power.to(outer.dtype), outer, u), 4096)
    assert (energy_ratio_db(stacked("mwf", sources, n_fft=512, hop_length=256), theirs) > 40).all()

@settings(deadline=None, max_examples=20)
@given(name=st.sampled_from(MORE), seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 3), stems=st.integers(1, 4),
       log_scale=st.floats(-4, 2), double=st.booleans(), silent=st.booleans())
def test_anything_goes_in(name, seed, samples, channels, stems, log_scale, double, silent):
    dtype = torch.float64 if double else torch.float32
    sources = 10**log_scale * torch.randn(stems, channels, samples, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if silent: sources[0] = 0
    before = sources.clone()
    out = stacked(name, sources, n_fft=512, hop_length=128)
    assert out.shape == sources.shape and out.dtype == dtype and out.isfinite().all() and torch.equal(before, sources)
    if name == "mwf": assert (out.sum(0) - sources.sum(0)).abs().max() <= 1e-5 * max(1e-30, sources.abs().max())
    assert not stacked(name, 0 * sources, n_fft=512, hop_length=128).any()

@pytest.mark.parametrize("name, wrong", [("psm", dict(bound=0.5)), ("cirm", dict(bound=0.0)), ("mwf", dict(depth=3)), ("psm", dict(hop_length=9999))])
def test_settings_that_cannot_work_are_refused_when_built(name, wrong):
    with pytest.raises(SepnbError) as error: build(name, STEMS, **wrong)
    assert "\n" not in str(error.value)

def test_more_bounds_are_registered_and_want_the_truth():
    kinds = {s.name: s for s in systems() if s.name in MORE}
    assert len(kinds) == 3 and all(s.kind == "bound" and s.cls.needs_sources for s in kinds.values())
    for name in MORE:
        with pytest.raises(SepnbError, match="true sources"): build(name, STEMS)(toy(8).sum(0), RATE)
