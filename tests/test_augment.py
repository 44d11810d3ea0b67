"""Augmentation: what each operation keeps, how often it acts, one seed one result, and the same music by another route."""
import math

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.data.augment import (AUGMENTATIONS, augment, change_speed, choose, fir_taps, flip_sign, random_fir, random_gain,
                                random_shift, remix, saturate, shared_resample, swap_channels)
from sepnb.synth import tone

EACH = {name: {} for name in AUGMENTATIONS if name != "choose"} | {"choose": dict(shares=[1, 1], steps=[{}, {"random_gain": {}}])}


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def stems(b=3, s=2, c=2, t=500, dtype=torch.float32): return torch.randn(b, s, c, t, generator=seeded(99), dtype=dtype)


def level(x): return x.square().sum((-2, -1)).sqrt()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 2, 501), (5, 4, 1, 64), (2, 3, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_seed_and_input(name, shape, dtype):
    x = stems(*shape, dtype=dtype); kept = x.clone()
    first, again = (augment(x, seeded(1), {name: EACH[name]}) for _ in range(2))
    assert first.shape == x.shape and first.dtype == dtype and first.isfinite().all()
    assert torch.equal(first, again) and torch.equal(x, kept)
    assert not augment(0 * x, seeded(), {name: EACH[name]}).any()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 2, 501), (5, 4, 1, 64)])
def test_overwriting_the_batch_gives_the_same(name, shape):
    x = stems(*shape)
    assert torch.equal(augment(x.clone(), seeded(1), {name: EACH[name]}, inplace=True), augment(x, seeded(1), {name: EACH[name]}))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_level_does_not_matter(name, scale):
    x = stems()
    torch.testing.assert_close(augment(scale * x, seeded(2), {name: EACH[name]}) / scale, augment(x, seeded(2), {name: EACH[name]}), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EACH)
def test_stays_on_its_device_and_keeps_gradients(name):
    x = stems(t=64).to("meta")
    if name not in ("shared_resample",): assert augment(x, seeded(), {name: EACH[name]}).device.type == "meta"
    y = stems(t=64).requires_grad_()
    augment(y, seeded(), {name: EACH[name]}).sum().backward()
    assert y.grad.isfinite().all()


@pytest.mark.parametrize("operation", [swap_channels, flip_sign, random_fir])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_how_often(operation, p):
    x = stems(b=300, s=4, t=8)
    changed = (operation(x, seeded(3), p=p) != x).flatten(2).any(-1).float()
    assert abs(changed.mean() - p) < 4 * math.sqrt(p * (1 - p) / 1200) + 1e-9
    if 0 < p < 1: assert 0 < changed.sum(1).unique().numel() > 1  # each stem by itself


def test_gain_is_uniform():
    x = torch.ones(500, 4, 1, 1)
    gain = random_gain(x, seeded(4)).flatten()
    assert 0.25 <= gain.min() < 0.27 and 1.23 < gain.max() <= 1.25 and abs(gain.mean() - 0.75) < 0.03


@pytest.mark.parametrize("edge", ["wrap", "crop"])
def test_shift_is_uniform_and_independent(edge):
    x = torch.arange(50.0).expand(400, 2, 2, 50)
    y = random_shift(x, seeded(5), max_samples=7, edge=edge)
    first = y[:, :, 0, 0]
    assert torch.equal(y[:, :, 0], y[:, :, 1]) and set(first.flatten().tolist()) == set(range(8))
    assert abs(np.corrcoef(first.T.numpy())[0, 1]) < 0.15 and abs(first.mean() - 3.5) < 0.3
    assert torch.equal(y, (first[..., None, None] + torch.arange(y.shape[-1])) % 50 + torch.zeros(2, 1)) and y.shape[-1] == dict(wrap=50, crop=43)[edge]


def test_shift_longer_than_the_excerpt_wraps():
    x = stems(t=5)
    assert torch.equal(random_shift(x, seeded(6), max_samples=100).sort(-1).values, x.sort(-1).values)
    with pytest.raises(SepnbError): random_shift(x, seeded(6), max_samples=5, edge="crop")


@settings(deadline=None, max_examples=25)
@given(b=st.integers(1, 13), s=st.integers(1, 4), group=st.integers(1, 6))
def test_remix_permutes_within_groups(b, s, group):
    x = torch.arange(b * s, dtype=torch.float64).reshape(b, s, 1, 1)
    y = remix(x, seeded(7), group=group)
    for k in range(0, b, group): assert torch.equal(y[k: k + group].sort(0).values, x[k: k + group])


def test_remix_draws_every_permutation():
    x = torch.arange(3.0).reshape(3, 1, 1, 1)
    orders = [tuple(remix(x, seeded(i), group=3).flatten().tolist()) for i in range(300)]
    assert len(set(orders)) == 6 and max(map(orders.count, set(orders))) < 90


def test_fir_law():
    taps = fir_taps(seeded(8), 2000)
    torch.testing.assert_close(taps.square().sum(-1), torch.ones(2000))
    lengths = (taps != 0).sum(-1)
    assert set(lengths.tolist()) == set(range(2, 33)) and (taps[:, 0] >= 1 / math.sqrt(1.25) - 1e-6).all()
    assert abs(taps[:, 1:].mean()) < 0.01
    short = fir_taps(seeded(8), 50, shortest=2, longest=2, tail=0.1)
    assert short.shape == (50, 2) and (short[:, 1].abs() <= 0.1 * short[:, 0] + 1e-6).all()


def test_fir_is_a_causal_convolution_and_keeps_the_power_of_noise():
    x = stems(b=4, s=3, t=20000, dtype=torch.float64); y = random_fir(x, seeded(9), p=1.0)
    g = seeded(9); torch.rand(4, 3, 1, 1, generator=g); taps = fir_taps(g, 12).reshape(4, 3, -1).double()
    for i in range(4):
        for j in range(3): np.testing.assert_allclose(y[i, j], scipy.signal.lfilter(taps[i, j], 1, x[i, j]), atol=1e-10)
    assert ((level(y) / level(x) - 1).abs() < 0.06).all()


def test_change_of_speed_is_the_resampling_of_a_loop():
    x = stems(1, 1, 1, 600, torch.float64)[0, 0, 0]
    for m in (1, 2, 299, 300, 601, 1200, 1201):
        y = change_speed(x, m)
        if m > 600: torch.testing.assert_close(change_speed(y, 600), change_speed(change_speed(x, 601), 600))  # nothing lost but the topmost bin
        assert y.shape[-1] == m and abs(y.mean() - x.mean()) < 1e-12
        band = scipy.signal.resample(change_speed(x, 599).numpy(), m) if m < 599 and m % 2 else None
        if band is not None: np.testing.assert_allclose(change_speed(change_speed(x, 599), m), band, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(t=st.integers(1, 9000), b=st.integers(1, 3), semitones=st.floats(0, 12))
def test_resampled_length(t, b, semitones):
    x = torch.ones(b, 2, 1, t)
    y = shared_resample(x, seeded(t), semitones=semitones)
    assert y.shape == x.shape and torch.allclose(y, x, atol=1e-5)  # a constant stays a constant
    if t > 2: assert shared_resample(x, seeded(t), semitones=semitones, edge="crop").shape[-1] == int(t / 2 ** (semitones / 12))


def test_resampling_keeps_stems_together():
    x = stems(b=6, s=3, t=4000)
    y = shared_resample(x, seeded(10)); mixed = shared_resample(x.sum(1, keepdim=True), seeded(10))
    torch.testing.assert_close(y.sum(1, keepdim=True), mixed, atol=1e-4, rtol=1e-4)  # linear, and the same for all stems


@pytest.mark.parametrize("edge", ["wrap", "crop"])
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_how_many_examples_are_played_at_another_speed(edge, p):
    x = stems(b=200, s=1, c=1, t=2000); y = shared_resample(x, seeded(12), edge=edge, p=p); length = y.shape[-1]
    kept = torch.tensor([(a.unfold(-1, length, 1) == b[..., None, :]).all(-1).any() for a, b in zip(x, y)]) # found somewhere as it was
    assert abs(kept.float().mean() - (1 - p)) < 0.08 and (p > 0 or kept.all())


def test_resampling_draws_speeds_uniform_in_semitones():
    x = tone(800, seconds=0.25, sample_rate=8000).expand(300, 1, 1, -1)
    y = shared_resample(x, seeded(11), edge="crop")
    hz = torch.fft.rfft(y * torch.hann_window(y.shape[-1]), 32000).abs().argmax(-1).flatten() * 8000 / 32000
    u = 12 * torch.log2(hz / 800)
    assert u.min() > -6.1 and u.max() < 6.1 and abs(u.mean()) < 0.7 and 3.0 < u.std() < 3.9


def test_saturated_stems_sum_to_the_saturated_mixture():
    x = stems(b=50, t=300, dtype=torch.float64); y = saturate(x, seeded(12), drive=3.0)
    mix, drive = x.sum(1), 3.0 * torch.rand(50, 1, 1, 1, generator=seeded(12))[:, 0].double()
    lam = drive / mix.abs().amax((-2, -1), keepdim=True)
    torch.testing.assert_close(y.sum(1), torch.tanh(lam * mix) / lam, atol=1e-6, rtol=1e-6)
    assert ((y.abs() <= x.abs() + 1e-12) & (y * x >= 0)).all()
    assert torch.equal(saturate(x, seeded(12), drive=0.0), x)


def test_barely_audible():
    x = tone(440, seconds=0.5, sample_rate=8000).expand(1, 1, 1, -1)
    worst = max((torch.fft.rfft(saturate(x, seeded(i))).abs()[..., 660] / torch.fft.rfft(x).abs()[..., 220]).item() for i in range(30))
    assert 0.005 < worst < 0.02  # third harmonic: between −46 and −34 dB


def test_choose_by_the_odds_and_from_the_whole_batch():
    x = torch.arange(1000.0).reshape(1000, 1, 1, 1) + 1
    y = choose(x, seeded(13), shares=[2, 1, 1], steps=[{}, {"random_gain": {"low": -2.0, "high": -1.0}}, {"remix": {"group": 1000}}])[:, 0, 0, 0]
    same, negative = (y == x.flatten()).sum(), (y < 0).sum()
    assert abs(same - 500) < 65 and abs(negative - 250) < 60
    for shares, steps in (([1.0], []), ([], []), ([-1, 2], [{}, {}]), ([0, 0], [{}, {}]), ([1, 1], [{}, {"random_shift": {"max_samples": 0, "edge": "crop"}, "reverb": {}}]),
                          ([1, 1], [{}, {"shared_resample": {"edge": "crop"}}])):
        with pytest.raises(SepnbError) as caught: choose(stems(), seeded(), shares=shares, steps=steps)
        assert "\n" not in str(caught.value)


def test_order_matters_and_names_are_checked():
    x = stems()
    a, b = augment(x, seeded(14), {"random_gain": None, "swap_channels": {}}), augment(x, seeded(14), {"swap_channels": {}, "random_gain": {}})
    assert not torch.equal(a, b) and torch.equal(augment(x, seeded(), {}), x)
    with pytest.raises(SepnbError, match="unknown augmentation 'reverb'"): augment(x, seeded(), {"reverb": {}})
    with pytest.raises(SepnbError, match="unknown edge"): shared_resample(x, seeded(), edge="fold")
