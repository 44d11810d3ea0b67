"""Tensor factorisation: falling costs, planted factors, matrices as a special case, places, and nothing lost."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.nmf import DIVERGENCES, divergence, factorise
from sepnb.classical.tensor_nmf import COMPONENTS, NTF, factorise_tensor, place_shares, source_images
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.synth import toy_sources

RATE, KINDS = 16000, list(DIVERGENCES)
SMALL = dict(n_fft=512, hop_length=256, rank=6, iterations=8)

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def rand(*shape, seed=0): return torch.rand(*shape, generator=gen(seed), dtype=torch.float64)
def model(x): return torch.einsum("cj,jk,fk,kn->cfn", *x)
def cost(v, x, kind): return float(divergence(v.flatten(0, 1), model(x).flatten(0, 1), kind=kind))
def stacked(mix, stems=("centre", "sides"), rate=RATE, **kwargs): return torch.stack(list(build("ntf", stems, **{**SMALL, **kwargs})(mix, rate).values()))

@settings(deadline=None, max_examples=20)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), c=st.integers(1, 3), f=st.integers(1, 12), n=st.integers(1, 12), rank=st.integers(1, 5), sources=st.sampled_from([None, 1, 2, 3]), log_scale=st.floats(-4, 2))
def test_cost_never_rises(kind, seed, c, f, n, rank, sources, log_scale):
    v = 10**log_scale * (0.01 + rand(c, f, n, seed=seed)); before = v.clone()
    costs = [cost(v, factorise_tensor(v, rank=rank, sources=sources, divergence=kind, iterations=i, generator=gen(seed)), kind) for i in range(7)]
    assert all(b <= a * (1 + 1e-9) + 1e-12 * float(v.sum()) for a, b in zip(costs, costs[1:])) and torch.equal(v, before)

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sources", [None, 2])
def test_one_turn_by_loops(kind, sources):
    v, rank, beta = 0.1 + rand(2, 5, 6), 3, DIVERGENCES[kind]
    a, b, w, h = (x.clone() for x in factorise_tensor(v, rank=rank, sources=sources, divergence=kind, iterations=0))
    h = h / v.amax(); y = v / v.amax()
    for name, rule in (("a", "cfn,jk,fk,kn->cj"), ("b", "cfn,cj,fk,kn->jk"), ("w", "cfn,cj,jk,kn->fk"), ("h", "cfn,cj,jk,fk->kn")):
        m = model((a, b, w, h)); rest = dict(a=(b, w, h), b=(a, w, h), w=(a, b, h), h=(a, b, w))[name]
        gain = torch.einsum(rule, y * m ** (beta - 2), *rest) / torch.einsum(rule, m ** (beta - 1), *rest)
        if beta == 0: gain = gain.sqrt()
        if name == "a": a = a * gain
        if name == "b": b = b * gain
        if name == "w": w = w * gain
        if name == "h": h = h * gain
    once = factorise_tensor(v, rank=rank, sources=sources, divergence=kind, iterations=1)
    assert torch.allclose(model(once), model((a, b, w, h)) * v.amax(), rtol=1e-9)

@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_is_a_matrix(kind):
    v = 0.05 + rand(1, 30, 40)
    x = factorise_tensor(v, rank=3, divergence=kind, iterations=300)
    w, h = factorise(v[0], rank=3, divergence=kind, iterations=300)
    assert abs(cost(v, x, kind) / float(divergence(v[0], w @ h, kind=kind)) - 1) < 0.05

def test_planted_factors_come_back():
    q, w, h = torch.tensor([[0.9, 0.5, 0.2], [0.1, 0.5, 0.8]], dtype=torch.float64), 0.3 + rand(40, 3), 0.3 + rand(3, 50, seed=1)
    x = factorise_tensor(torch.einsum("ck,fk,kn->cfn", q, w, h), rank=3, iterations=2500)
    order = x.gains[1].argsort()
    assert (x.gains[:, order] - q).abs().max() < 0.05 and torch.allclose(x.w[:, order], w / w.sum(0), atol=3e-3)

@pytest.mark.parametrize("sources", [None, 2, 4])
def test_columns_sum_to_one_and_images_to_the_model(sources):
    x = factorise_tensor(0.1 + rand(2, 20, 30), rank=5, sources=sources, iterations=10)
    for factor in x[:3]: assert torch.allclose(factor.sum(0), torch.ones(factor.shape[1], dtype=factor.dtype))
    assert torch.allclose(source_images(x).sum(0), model(x)) and source_images(x).shape == (sources or 5, 2, 20, 30)
    shares = rand(3, sources or 5)
    assert torch.allclose(source_images(x, shares=shares), torch.einsum("sj,jcfn->scfn", shares, source_images(x)))

def test_given_gains_and_their_zeros_stay():
    places = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    x = factorise_tensor(0.1 + rand(2, 20, 30), rank=6, gains=places, fixed=("gains",), iterations=10)
    assert torch.equal(x.gains, places.double()) and x.allot.shape == (3, 6)
    y = factorise_tensor(0.1 + rand(2, 20, 30), rank=6, gains=places, iterations=10)
    assert (y.gains[places == 0] == 0).all() and not torch.equal(y.gains, places.double())

@pytest.mark.parametrize("scale", [1e-4, 1e2])
@pytest.mark.parametrize("kind", KINDS)
def test_level_only_changes_activations(kind, scale):
    v = (0.01 + rand(2, 20, 30)).float()
    a, b = factorise_tensor(v, rank=4, divergence=kind, iterations=10), factorise_tensor(scale * v, rank=4, divergence=kind, iterations=10)
    assert torch.allclose(a.w, b.w, rtol=1e-3, atol=1e-6) and torch.allclose(scale * a.h, b.h, rtol=1e-3, atol=1e-4 * float(b.h.max())) and b.h.dtype == torch.float32

@pytest.mark.parametrize("kind", KINDS)
def test_silence(kind):
    x = factorise_tensor(torch.zeros(2, 5, 6), rank=3, divergence=kind)
    assert all(f.isfinite().all() for f in x) and model(x).abs().max() < 1e-8

@pytest.mark.parametrize("v, wrong", [(-torch.ones(2, 2, 2), {}), (torch.full((2, 2, 2), torch.nan), {}), (torch.ones(2, 2), {}), (torch.ones(0, 2, 2), {}), (torch.ones(2, 2, 2), dict(rank=0)), (torch.ones(2, 2, 2), dict(divergence="l1")),
                                      (torch.ones(2, 2, 2), dict(iterations=-1)), (torch.ones(2, 2, 2), dict(gains=torch.ones(3, 2))), (torch.ones(2, 2, 2), dict(gains=-torch.ones(2, 2))), (torch.ones(2, 2, 2), dict(gains=torch.ones(2, 2), sources=3))])
def test_refused(v, wrong):
    with pytest.raises(SepnbError) as error: factorise_tensor(v, **{**dict(rank=2), **wrong})
    assert "\n" not in str(error.value)

@settings(deadline=None, max_examples=25)
@given(left=st.floats(0, 10), right=st.floats(0, 10))
def test_places(left, right):
    centre, sides = place_shares(torch.tensor([[left], [right]], dtype=torch.float64))[:, 0].tolist()
    assert abs(centre + sides - 1) < 1e-12 and 0 <= centre <= 1
    if left + right > 1e-6: assert abs(sides - abs(left - right) / (left + right)) < 1e-9

# Stems

def test_registered_with_the_usual_stems():
    assert [s.kind for s in systems() if s.name == "ntf"] == ["classical"] and set(build("ntf").stems) == set(COMPONENTS)
    assert NTF(STEMS).shares[:, 0].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3]) and NTF(["backing", "guitar"], assign=dict(guitar="sides", backing="centre")).shares.tolist() == [[1, 0], [0, 1]]

@pytest.mark.parametrize("wrong, message", [(dict(assign=dict(kazoo="sides")), "kazoo"), (dict(assign=dict(vocals="above")), "above"), (dict(rank=0), "rank"), (dict(iterations=0), "iterations"), (dict(power=0), "power"),
                                            (dict(exponent=0), "exponent"), (dict(divergence="l1"), "l1"), (dict(hop_length=0), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(wrong, message):
    with pytest.raises(SepnbError, match=message) as error: build("ntf", STEMS, **wrong)
    assert "\n" not in str(error.value)

@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 4000), channels=st.integers(1, 5), log_scale=st.floats(-4, 2), double=st.booleans(), kind=st.sampled_from(KINDS))
def test_stems_sum_to_the_mixture(seed, samples, channels, log_scale, double, kind):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32)
    out = stacked(mix, STEMS, divergence=kind)
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (3, 5001)])
def test_silent_songs(shape): assert not stacked(torch.zeros(shape)).any()

def test_mono_is_centre():
    mix = toy_sources(gen(0), seconds=1.0, sample_rate=RATE, channels=1).sum(0)
    centre, sides = stacked(mix)
    assert power_to_db(sides.square().sum() / mix.square().sum()) < -40 and (centre - mix).abs().max() < 0.05

def test_sides_are_separated_from_the_centre():
    sources = toy_sources(gen(2), seconds=2.0, sample_rate=RATE, stems=["other", "vocals"], channels=1)
    two = torch.stack([sources[1] * torch.tensor([[0.7], [0.7]]), 2 * sources[0] * torch.tensor([[1.0], [0.0]])]); mix = two.sum(0)
    def ratio(x): return power_to_db(two.square().sum((1, 2)) / (x - two).square().sum((1, 2)))
    assert (ratio(stacked(mix, n_fft=1024, rank=16, iterations=40)) > ratio(mix.expand_as(two)) + 4).all()

@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_scaling_the_input_scales_the_output(scale):
    mix = toy_sources(gen(3), seconds=1.0, sample_rate=RATE).sum(0)
    whole, scaled = stacked(mix), stacked(scale * mix)
    assert power_to_db((scale * whole).square().sum() / (scaled - scale * whole).square().sum()) > 60
