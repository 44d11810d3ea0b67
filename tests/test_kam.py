"""Kernel additive modelling: kernels by loops and by SciPy, HPSS and REPET as special cases, and nothing lost."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from sepnb.classical.hpss import hpss_masks, median_along
from sepnb.classical.kam import KAM, KINDS, check_kernel, kam_masks, kernel_filter, shifted_median
from sepnb.classical.repet import periodic_model
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import click, tone, toy_sources

RATE = 16000
SMALL = dict(n_fft=512, hop_length=256)

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def rand(*shape, seed=0, dtype=torch.float32): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
def stacked(mix, stems=("drums", "other", "vocals"), rate=RATE, **kwargs): return torch.stack(list(build("kam", stems, **{**SMALL, **kwargs})(mix, rate).values()))
def song(seed=0, samples=RATE, channels=2): return toy_sources(torch.Generator().manual_seed(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)

# Kernels

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 12), frames=st.integers(1, 12), block=st.integers(1, 13),
       steps=st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=9))
def test_any_kernel_one_bin_at_a_time(seed, bins, frames, block, steps):
    x = rand(2, bins, frames, seed=seed, dtype=torch.float64); before = x.clone()
    padded = np.pad(x.numpy(), ((0, 0), (4, 4), (4, 4)), mode="symmetric")
    direct = [[[np.median([padded[c, 4 + f + df, 4 + n + dn] for df, dn in steps]) for n in range(frames)] for f in range(bins)] for c in range(2)]
    assert np.array_equal(shifted_median(x, steps, block=block).numpy(), np.array(direct)) and torch.equal(x, before)

@pytest.mark.parametrize("frames, bins", [(5, 3), (1, 7), (3, 1)])
def test_cross_equals_scipy_with_a_footprint(frames, bins):
    x = rand(1, 20, 30, seed=3)
    footprint = np.zeros((1, bins, frames), bool); footprint[:, bins // 2] = footprint[..., frames // 2] = True
    ours = kernel_filter(dict(kind="cross", frames=frames, bins=bins), x)(x)
    assert np.array_equal(ours.numpy(), median_filter(x.numpy(), footprint=footprint, mode="reflect"))

def test_straight_kernels_are_the_fast_filters():
    x = rand(2, 20, 30)
    assert torch.equal(kernel_filter(dict(kind="horizontal", frames=7), x)(x), shifted_median(x, [(0, k) for k in range(-3, 4)]))
    assert torch.equal(kernel_filter(dict(kind="vertical", bins=9), x)(x), median_along(x, 9, dim=-2))

def test_periodic_kernel_is_repet():
    x = rand(1, 16, 40, seed=5).repeat(1, 1, 6) + 0.01 * rand(1, 16, 240)
    assert torch.equal(kernel_filter(dict(kind="periodic", shortest=20, longest=60), x)(x), periodic_model(x, 40.0))

@pytest.mark.parametrize("wrong, message", [
    ("vertical", "kind"), (dict(bins=3), "kind"), (dict(kind="round"), "kind"), (dict(kind="vertical", frames=3), "no 'frames'"), (dict(kind="vertical", bins=4), "odd"),
    (dict(kind="cross", frames=0), "odd"), (dict(kind="similar", count=0), "at least 1"), (dict(kind="steps", steps=[]), "at least 1"), (dict(kind="horizontal", frames=2.5), "odd")])
def test_kernels_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(SepnbError, match=message) as error: check_kernel(wrong)
    assert "\n" not in str(error.value)

def test_sizes_are_filled_in():
    for kind in KINDS: assert check_kernel(dict(kind=kind)) == {"kind": kind, **KINDS[kind]}
    assert check_kernel(dict(kind="cross", bins=9))["bins"] == 9

# Masks

@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 30), frames=st.integers(1, 30), size=st.integers(0, 8).map(lambda n: 2 * n + 1), log_scale=st.floats(-4, 2))
def test_one_turn_is_hpss(seed, bins, frames, size, log_scale):
    mag = 10**log_scale * rand(1, bins, frames, seed=seed, dtype=torch.float64)
    ours = kam_masks(mag, [dict(kind="horizontal", frames=size), dict(kind="vertical", bins=7)], iterations=1)
    assert torch.allclose(ours, hpss_masks(mag, time_frames=size, freq_bins=7), atol=1e-9)

@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), frames=st.integers(1, 60), iterations=st.integers(1, 3), silent=st.booleans(), double=st.booleans())
def test_masks_sum_to_one(seed, kinds, frames, iterations, silent, double):
    mag = rand(2, 9, frames, seed=seed, dtype=torch.float64 if double else torch.float32); before = mag.clone()
    if silent: mag[..., frames // 2:] = 0; before = mag.clone()
    masks = kam_masks(mag, [dict(kind=k) for k in kinds], iterations=iterations)
    assert masks.shape == (len(kinds), *mag.shape) and masks.dtype == mag.dtype and torch.equal(mag, before)
    assert (masks.sum(0) - 1).abs().max() < 1e-6 and masks.min() >= 0

def test_equal_kernels_get_equal_shares():
    masks = kam_masks(rand(1, 20, 30), [dict(kind="vertical", bins=5)] * 3)
    assert torch.allclose(masks, torch.full_like(masks, 1 / 3))

def test_two_turns_by_hand():
    mag = rand(1, 20, 30, seed=7, dtype=torch.float64)
    power = (mag / mag.max()).square(); f = [median_along(power, 5, dim=-1), median_along(power, 5, dim=-2)]
    for k, m in enumerate([x / sum(f) for x in list(f)]): f[k] = median_along(m.square() * power, 5, dim=(-1, -2)[k])
    assert torch.allclose(kam_masks(mag, [dict(kind="horizontal", frames=5), dict(kind="vertical", bins=5)], iterations=2)[0], f[0] / sum(f), atol=1e-9)

@pytest.mark.parametrize("wrong", [dict(iterations=0), dict(kernels=[])])
def test_masks_refuse(wrong):
    with pytest.raises(SepnbError): kam_masks(rand(1, 3, 3), **{**dict(kernels=[dict(kind="vertical")]), **wrong})

# Stems

def test_registered():
    assert [s.kind for s in systems() if s.name == "kam"] == ["classical"] and KAM.segment_s is None
    assert [k["kind"] for k in KAM(STEMS).kernels] == ["vertical", "horizontal", "horizontal", "cross"]

@pytest.mark.parametrize("wrong, message", [
    (dict(kernels=dict(kazoo=dict(kind="cross"))), "kazoo"), (dict(kernels=dict(drums="vertical")), "kind"), (dict(kernels=dict(drums=[])), "empty"), (dict(kernels=3), "table"),
    (dict(iterations=0), "iterations"), (dict(hop_length=0), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(wrong, message):
    with pytest.raises(SepnbError, match=message) as error: build("kam", STEMS, **wrong)
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_tones_and_clicks(scale):
    parts = scale * torch.stack([sum(click(k / 4 + 0.1, seconds=3.0, amplitude=0.9) for k in range(12)), tone(440, seconds=3.0) / 2])[:, None]
    out = stacked(parts.sum(0), ["drums", "other"], n_fft=1024)
    assert (power_to_db(parts.square().sum((1, 2)) / (out - parts).square().sum((1, 2))) > 9).all()

def test_several_kernels_of_one_stem():
    mix = song(1); kernels = [dict(kind="vertical", bins=9), dict(kind="horizontal", frames=9)]
    together = build("kam", ["backing", "vocals"], kernels=dict(backing=kernels), **SMALL)(mix, RATE)
    apart = build("kam", ["drums", "other", "vocals"], kernels=dict(drums=kernels[0], other=kernels[1]), **SMALL)(mix, RATE)
    assert torch.allclose(together["backing"], apart["drums"] + apart["other"], atol=1e-5) and torch.allclose(together["vocals"], apart["vocals"], atol=1e-5)

@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 6000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans(), kind=st.sampled_from(sorted(KINDS)))
def test_stems_sum_to_the_mixture(seed, samples, channels, log_scale, double, kind):
    mix = 10**log_scale * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64 if double else torch.float32)
    out = stacked(mix, kernels=dict(drums=dict(kind=kind)))
    assert out.shape == (3, *mix.shape) and out.dtype == mix.dtype and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (3, 5001)])
def test_silence(shape): assert not stacked(torch.zeros(shape)).any()

def test_the_mask_of_a_magnitude_in_a_mixture():
    mag = magnitude(STFT(512, 256)(song(3)))
    assert torch.equal(kam_masks(mag, [dict(kind="vertical"), dict(kind="cross")]), kam_masks(mag.clone(), [dict(kind="vertical"), dict(kind="cross")]))
