"""Nonnegative factorisation: scikit-learn's costs, falling costs, planted factors, zeros that stay, and nothing lost."""
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.nmf import DIVERGENCES, FEATURES, NMF, divergence, factorise, feature_of, harmonic_templates, source_models, split_in_two, template_features
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.metrics import si_sdr
from sepnb.synth import click, tone, toy_sources
from sepnb.stft import STFT, magnitude

RATE = 16000
SMALL = dict(n_fft=512, hop_length=256, rank=8, iterations=10)
KINDS = list(DIVERGENCES)

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def rand(*shape, seed=0, dtype=torch.float64): return torch.rand(*shape, generator=gen(seed), dtype=dtype)
def stacked(mix, stems=("drums", "rest"), rate=RATE, **kwargs): return torch.stack(list(build("nmf", stems, **{**SMALL, **kwargs})(mix, rate).values()))
def song(seed=0, samples=RATE, channels=2): return toy_sources(gen(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)
def starts(f, n, k, seed=0): return 0.1 + rand(f, k, seed=seed), 0.1 + rand(k, n, seed=seed + 1)

# The factorisation

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("f, n, k", [(40, 60, 5), (257, 33, 3), (3, 200, 2), (30, 30, 40)])
def test_cost_equals_scikit_learn_after_equal_iterations(kind, f, n, k):
    from sklearn.decomposition import non_negative_factorization
    v, (w0, h0) = 0.01 + rand(f, n, seed=5) ** 3, starts(f, n, k)
    with warnings.catch_warnings(action="ignore"):
        w, h, _ = non_negative_factorization(v.numpy(), W=w0.numpy().copy(), H=h0.numpy().copy(), n_components=k, init="custom", solver="mu", beta_loss=dict(euclidean="frobenius").get(kind, kind.replace("_", "-")), tol=0, max_iter=25)
    ours, theirs = (float(divergence(v, a @ b, kind=kind)) for a, b in (factorise(v, w=w0, h=h0, divergence=kind, iterations=25), (torch.from_numpy(w), torch.from_numpy(h))))
    assert abs(ours / theirs - 1) < 1e-6

@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), f=st.integers(1, 30), n=st.integers(1, 30), k=st.integers(1, 6), zeros=st.booleans(), log_scale=st.floats(-4, 2))
def test_cost_never_rises(kind, seed, f, n, k, zeros, log_scale):
    v = 10**log_scale * rand(f, n, seed=seed)
    if zeros and kind != "itakura_saito": v = v * (rand(f, n, seed=seed + 1) < 0.5)
    pair, last = starts(f, n, k, seed), math.inf
    for _ in range(8):
        pair = factorise(v, w=pair[0], h=pair[1], divergence=kind, iterations=1)
        cost = float(divergence(v, pair[0] @ pair[1], kind=kind))
        assert cost <= last + 1e-9 * abs(last if last < math.inf else 0) + 1e-12 * float(v.sum()); last = cost

@pytest.mark.parametrize("kind", KINDS)
def test_one_call_equals_many(kind):
    v, (w, h) = 0.01 + rand(50, 70), starts(50, 70, 4)
    at_once = factorise(v, w=w, h=h, divergence=kind, iterations=12)
    for _ in range(12): w, h = factorise(v, w=w, h=h, divergence=kind, iterations=1)
    assert torch.allclose(at_once[0], w, rtol=1e-6) and torch.allclose(at_once[1], h, rtol=1e-6)

@pytest.mark.parametrize("kind", KINDS)
def test_planted_factors_come_back(kind):
    w, h = torch.block_diag(*[1 + rand(10, 1, seed=j) for j in range(3)]), 0.05 + rand(3, 40, seed=9)
    v = w @ h + (1e-6 if kind == "itakura_saito" else 0)
    a, b = factorise(v, rank=3, divergence=kind, iterations=500, generator=gen(3))
    assert (a @ b - v).norm() < 1e-2 * v.norm() and a.sum(0).sub(1).abs().max() < 1e-9

@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_loops(kind):
    v, w, h = 0.01 + rand(3, 2, 20, 30), 0.1 + rand(20, 4, seed=2), 0.1 + rand(4, 30, seed=3)
    a, b = factorise(v, w=w, h=h, divergence=kind, iterations=10)
    assert a.shape == (3, 2, 20, 4) and b.shape == (3, 2, 4, 30)
    one = factorise(v[2, 1], w=w, h=h, divergence=kind, iterations=10)
    assert torch.allclose(a[2, 1], one[0], rtol=1e-9) and torch.allclose(b[2, 1], one[1], rtol=1e-9)

@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    w, h = starts(40, 50, 4); w, h = w * (rand(40, 4, seed=3) < 0.6), h * (rand(4, 50, seed=4) < 0.6)
    a, b = factorise(0.01 + rand(40, 50), w=w, h=h, divergence=kind, iterations=30)
    assert (a[w == 0] == 0).all() and (b[h == 0] == 0).all() and a.isfinite().all() and b.isfinite().all()

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [2, 4])
def test_fixed_templates_stay(kind, fixed):
    v, (w, h) = 0.01 + rand(40, 50), starts(40, 50, 4)
    a, b = factorise(v, w=w, h=h, divergence=kind, iterations=20, fixed=fixed)
    assert torch.equal(a[:, :fixed], w[:, :fixed]) and not torch.allclose(b, h)
    assert divergence(v, a @ b, kind=kind) < divergence(v, w @ h, kind=kind)

@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("kind", KINDS)
def test_level_only_changes_activations(kind, scale):
    v = (0.01 + rand(40, 50)).float(); a, b = factorise(v, rank=4, divergence=kind, iterations=20)
    c, d = factorise(scale * v, rank=4, divergence=kind, iterations=20)
    assert c.dtype == torch.float32 and torch.allclose(a, c, rtol=1e-3, atol=1e-6) and torch.allclose(scale * b, d, rtol=1e-3, atol=1e-4 * float(d.max()))

def test_layout_of_memory_does_not_matter_and_input_is_left_alone():
    v = rand(40, 50); lying = v.T.contiguous().T; before = v.clone()
    for a, b in zip(factorise(v, rank=3), factorise(lying, rank=3)): assert torch.equal(a, b)
    assert torch.equal(v, before)

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (2, 5, 1)])
def test_silence(kind, shape):
    w, h = factorise(torch.zeros(shape), rank=3, divergence=kind)
    assert w.isfinite().all() and h.isfinite().all() and (w @ h).abs().max() < 1e-8

@pytest.mark.parametrize("v, wrong", [(-torch.ones(2, 2), {}), (torch.full((2, 2), math.nan), {}), (torch.full((2, 2), math.inf), {}), (torch.ones(3), {}), (torch.ones(2, 2).to(torch.complex64), {}), (torch.ones(0, 2), {}),
                                      (torch.ones(2, 2), dict(rank=0)), (torch.ones(2, 2), dict(rank=None)), (torch.ones(2, 2), dict(rank=1.5)), (torch.ones(2, 2), dict(divergence="l1")), (torch.ones(2, 2), dict(fixed=4)),
                                      (torch.ones(2, 2), dict(iterations=-1)), (torch.ones(2, 2), dict(w=torch.ones(3, 2))), (torch.ones(2, 2), dict(h=-torch.ones(2, 2)))])
def test_refused(v, wrong):
    with pytest.raises(SepnbError) as error: factorise(v, **{**dict(rank=2), **wrong})
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("kind", KINDS)
def test_divergence_is_zero_for_the_truth_and_positive_elsewhere(kind):
    v = 0.1 + rand(3, 10, 12)
    assert divergence(v, v, kind=kind).abs().max() < 1e-9 and (divergence(v, v + 0.1, kind=kind) > 0).all() and divergence(v, v, kind=kind).shape == (3,)
    assert divergence(torch.zeros(2, 2), torch.zeros(2, 2), kind=kind).abs() < 1e-9

# A musical start, features

@pytest.mark.parametrize("pitch", [45, 57, 69.0, 81.5])
def test_a_tone_lies_within_its_comb(pitch):
    f0 = 440 * 2 ** ((pitch - 69) / 12)
    comb = harmonic_templates([pitch], n_fft=4096, sample_rate=RATE)[:, 0]
    mag = magnitude(STFT(4096, 1024)(tone(f0) + tone(3 * f0)))[:, 8]
    assert mag[comb > 0].square().sum() > 0.99 * mag.square().sum() and (comb == 0).float().mean() > 0.3 and comb[0] == 0

def test_combs_are_refused_above_half_the_rate():
    for wrong in ([], [140]):
        with pytest.raises(SepnbError): harmonic_templates(wrong, n_fft=512, sample_rate=8000)

@settings(deadline=None, max_examples=25)
@given(values=st.lists(st.integers(-100, 100), min_size=1, max_size=9), sharpness=st.floats(0.1, 50))
def test_sides_sum_to_one_and_keep_the_order(values, sharpness):
    low, high = split_in_two(torch.tensor(values, dtype=torch.float64), sharpness=sharpness)
    assert torch.allclose(low + high, torch.ones(len(values), dtype=torch.float64)) and (low >= 0).all() and (high >= 0).all()
    order = torch.tensor(values).argsort()
    assert (high[order].diff() >= -1e-12).all() and (len(set(values)) == 1) == bool((high == high[0]).all() and abs(float(high[0]) - 0.5) < 1e-12)

def test_features_of_silent_components_are_finite():
    for value in template_features(torch.zeros(10, 3), torch.zeros(3, 2, 5)).values(): assert value.isfinite().all()
    for value in template_features(torch.ones(10, 3), torch.ones(3, 1, 1)).values(): assert value.isfinite().all()

def test_width_and_brightness_are_what_they_say():
    w = torch.eye(4)[:, [3, 0]]; h = torch.ones(2, 2, 6); h[1, 0] = 0
    found = template_features(w, h)
    assert found["brightness"].tolist() == [3, 0] and found["width"][1] > found["width"][0] == 0

def test_source_models_share_out_the_model():
    w, h, shares = rand(5, 3), rand(3, 2, 7), rand(4, 3); shares = shares / shares.sum(0)
    models = source_models(w, h, shares)
    assert models.shape == (4, 2, 5, 7) and torch.allclose(models.sum(0), torch.einsum("fk,kcn->cfn", w, h))

# Stems

def test_registered_with_the_usual_stems():
    assert [s.kind for s in systems() if s.name == "nmf"] == ["classical"] and set(build("nmf").stems) == set(FEATURES["steadiness"])
    assert NMF(STEMS).shares[:, 0].tolist() == [1, 0, 0, 0] and NMF(["backing", "guitar"], assign=dict(guitar="wide", backing="narrow")).feature == "width"
    assert [feature_of(dict(a=word)) for pair in FEATURES.values() for word in pair] == [name for name in FEATURES for _ in range(2)]

@pytest.mark.parametrize("wrong, message", [
    (dict(assign=dict(kazoo="steady")), "kazoo"), (dict(assign=dict(drums="loud")), "loud"), (dict(assign={}), "table"), (dict(assign="steady"), "table"), (dict(rank=0), "rank"), (dict(iterations=0), "iterations"),
    (dict(power=0), "power"), (dict(sharpness=0.0), "sharpness"), (dict(divergence="l1"), "l1"), (dict(hop_length=0), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(wrong, message):
    with pytest.raises(SepnbError, match=message) as error: build("nmf", STEMS, **wrong)
    assert "\n" not in str(error.value)

@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans(), kind=st.sampled_from(KINDS), power=st.sampled_from([1.0, 2.0]))
def test_stems_sum_to_the_mixture(seed, samples, channels, log_scale, double, kind, power):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32)
    out = stacked(mix, STEMS, divergence=kind, power=power)
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (3, 5001)])
def test_silent_songs(shape): assert not stacked(torch.zeros(shape)).any()

@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_scaling_the_input_scales_the_output(scale):
    whole, scaled = stacked(song(3)), stacked(scale * song(3))
    assert power_to_db((scale * whole).square().sum() / (scaled - scale * whole).square().sum()) > 60

def test_the_same_each_time_and_another_with_another_seed():
    system = build("nmf", ["drums", "rest"], **SMALL)
    a, b = system(song(1), RATE), system(song(1), RATE); system.seed = 1
    assert torch.equal(a["drums"], b["drums"]) and not torch.equal(a["drums"], system(song(1), RATE)["drums"])

def test_drums_come_out_better_than_they_went_in():
    chord, beats = (tone(440, seconds=2.0) + tone(1250, seconds=2.0)) / 4, sum(click(k / 4 + 0.1, seconds=2.0, amplitude=0.9) for k in range(8))
    two = torch.stack([beats * (chord.norm() / beats.norm()), chord])[:, None].float(); mix = two.sum(0)
    def score(x): return si_sdr(x, two, channels="joint") # a mere gain gains nothing
    assert (score(stacked(mix, n_fft=1024, rank=4, iterations=30)) > score(mix.expand_as(two)) + 8).all()