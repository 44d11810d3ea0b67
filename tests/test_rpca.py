"""Robust principal components: planted matrices come back, the fast way equals the direct one, and nothing is lost."""
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.rpca import COMPONENTS, RPCA, NotConverged, rpca, rpca_masks, shrink, singular_pairs
from sepnb.core import STEMS, SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

RATE = 16000
SMALL = dict(n_fft=512, hop_length=256)

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def stacked(mix, stems=(), rate=RATE, **kwargs): return torch.stack(list(build("rpca", stems, **{**SMALL, **kwargs})(mix, rate).values()))
def song(seed=0, samples=RATE, channels=2): return toy_sources(gen(seed), seconds=samples / RATE, sample_rate=RATE, channels=channels).sum(0)
def error(found, truth): return float((found - truth).norm() / truth.norm())

def planted(rows, columns, rank, share, seed=0, dtype=torch.float64):
    low = torch.randn(rows, rank, generator=gen(seed), dtype=dtype) @ torch.randn(rank, columns, generator=gen(seed + 1), dtype=dtype)
    return low, torch.where(torch.rand(rows, columns, generator=gen(seed + 2)) < share, 10 * torch.randn(rows, columns, generator=gen(seed + 3), dtype=dtype), 0)

def direct(x, tolerance=1e-7): # Lin, Chen and Ma (2010), algorithm 5
    weight, two = 1 / math.sqrt(max(x.shape)), torch.linalg.matrix_norm(x, 2)
    y, mu, s = x / torch.maximum(two, x.abs().max() / weight), 1.25 / two, torch.zeros_like(x)
    for _ in range(100):
        u, sigma, vh = torch.linalg.svd(x - s + y / mu, full_matrices=False)
        low = (u * (sigma - 1 / mu).clamp_min(0)) @ vh
        s = shrink(x - low + y / mu, weight / mu)
        y, mu = y + mu * (x - low - s), 1.5 * mu
        if (x - low - s).norm() < tolerance * x.norm(): break
    return low, s

# Parts

@settings(deadline=None, max_examples=25)
@given(x=st.floats(-5, 5), amount=st.floats(0, 5))
def test_shrink_minimises(x, amount):
    grid = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    best = grid[(amount * grid.abs() + 0.5 * (grid - x).square()).argmin()]
    assert abs(float(shrink(torch.tensor(x, dtype=torch.float64), amount)) - float(best)) < 1e-3

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), columns=st.integers(1, 40), share=st.floats(0.01, 0.99), warm=st.booleans(), log_scale=st.floats(-4, 2))
def test_singular_pairs_equal_the_decomposition(seed, rows, columns, share, warm, log_scale):
    rows, columns = max(rows, columns), min(rows, columns)
    a = 10**log_scale * torch.randn(rows, columns, generator=gen(seed), dtype=torch.float64)
    sigma = torch.linalg.svdvals(a); threshold = float(share * sigma[0] + (1 - share) * sigma[-1]) * 0.999
    if ((sigma / threshold - 1).abs() < 1e-3).any(): return # a value on the threshold may fall on either side
    expected = sigma[sigma > threshold]
    block = torch.linalg.svd(a, full_matrices=False).Vh[:len(expected) + 2].T # what a step before could have left
    block = block + 0.1 * torch.randn(block.shape, generator=gen(seed + 1), dtype=block.dtype)
    v, found = singular_pairs(a, threshold, start=block if warm else None, precision=1e-7)
    assert v.shape == (columns, len(expected)) and torch.allclose(found.sort(descending=True).values, expected, rtol=1e-6)
    assert torch.allclose((a @ v).norm(dim=0), found, rtol=1e-5) and torch.allclose(v.T @ v, torch.eye(len(found), dtype=v.dtype), atol=1e-6)

def test_tiny_thresholds_leave_the_gram_matrix():
    a = torch.diag(torch.logspace(0, -12, 13, dtype=torch.float64))
    assert len(singular_pairs(a, 3e-11)[1]) == 11

# Recovery

@pytest.mark.parametrize("rows, columns, rank, share", [(100, 100, 5, 0.05), (180, 90, 3, 0.1), (60, 150, 4, 0.05), (101, 97, 1, 0.2)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_planted_matrices_come_back(rows, columns, rank, share, scale):
    low, sparse = planted(rows, columns, rank, share, seed=rows)
    x = scale * (low + sparse); before = x.clone()
    found = rpca(x)
    assert error(found[0], scale * low) < 1e-6 and error(found[1], scale * sparse) < 1e-6 and torch.equal(x, before)
    assert torch.linalg.matrix_rank(found[0], rtol=1e-6) == rank and ((found[1] != 0) == (sparse != 0)).float().mean() > 0.999

def test_float32():
    low, sparse = planted(100, 80, 4, 0.05, dtype=torch.float32)
    found = rpca(low + sparse, tolerance=1e-6)
    assert found[0].dtype == torch.float32 and error(found[0], low) < 1e-5 and error(found[1], sparse) < 1e-5

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fast_equals_direct(seed):
    low, sparse = planted(90, 70, 5, 0.08, seed=seed)
    assert error(rpca(low + sparse, precision=1e-7)[0], direct(low + sparse)[0]) < 1e-6

def test_fast_equals_direct_on_music_where_the_rank_is_high():
    mag = magnitude(STFT(512, 256)(song(1, 2 * RATE, 1)))[0].double()
    for precision, bound in ((1e-5, 1e-3), (3e-3, 0.05)):
        assert error(rpca(mag, tolerance=1e-4, precision=precision)[0], direct(mag.T, 1e-4)[0].T) < bound

def test_another_generator_changes_little():
    low, sparse = planted(90, 70, 5, 0.08)
    assert error(rpca(low + sparse, generator=gen(7))[0], rpca(low + sparse, generator=gen(8))[0]) < 1e-6

@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 20), columns=st.integers(1, 20))
def test_parts_sum_to_the_whole(seed, rows, columns):
    x = torch.randn(rows, columns, generator=gen(seed), dtype=torch.float64)
    low, sparse = rpca(x)
    assert low.shape == sparse.shape == x.shape and (low + sparse - x).norm() <= 1e-6 * x.norm()

def test_nothing_in_nothing_out():
    assert not any(part.any() for part in rpca(torch.zeros(5, 7))) and rpca(torch.zeros(0, 3))[0].shape == (0, 3)

@pytest.mark.parametrize("x, wrong", [(torch.ones(3), {}), (torch.full((2, 2), torch.nan), {}), (torch.ones(2, 2), dict(sparsity=0)), (torch.ones(2, 2), dict(tolerance=0)), (torch.ones(2, 2), dict(steps=0))])
def test_refused(x, wrong):
    with pytest.raises(SepnbError): rpca(x, **wrong)

# Stems

def test_registered_with_the_usual_stems():
    assert [s.kind for s in systems() if s.name == "rpca"] == ["classical"] and RPCA.segment_s == 30
    assert RPCA(STEMS).shares[:, COMPONENTS.index("sparse")].tolist() == [0, 0, 0, 1]
    assert RPCA(["backing", "guitar"], assign=dict(guitar="sparse")).shares.tolist() == [[1, 0], [0, 1]]

@pytest.mark.parametrize("wrong, message", [
    (dict(assign=dict(kazoo="sparse")), "kazoo"), (dict(assign=dict(vocals="loud")), "loud"), (dict(mask="hard"), "mask"), (dict(gain=0), "gain"), (dict(sparsity=-1.0), "above 0"),
    (dict(tolerance=0.0), "above 0"), (dict(hop_length=0), "hop_length"), (dict(depth=3), "settings")])
def test_settings_that_cannot_work_are_refused_when_built(wrong, message):
    with pytest.raises(SepnbError, match=message) as error: build("rpca", STEMS, **wrong)
    assert "\n" not in str(error.value)

@pytest.mark.parametrize("mask", ["binary", "soft"])
def test_masks_sum_to_one(mask):
    mag = magnitude(STFT(512, 256)(song(2))); before = mag.clone()
    masks = rpca_masks(mag, mask=mask, tolerance=1e-3)
    assert masks.shape == (2, *mag.shape) and (masks.sum(0) - 1).abs().max() < 1e-6 and torch.equal(mag, before)
    if mask == "binary": assert set(masks.unique().tolist()) <= {0.0, 0.5, 1.0}

def test_a_larger_gain_gives_less_to_the_sparse_part():
    mag = magnitude(STFT(512, 256)(song(2)))
    shares = [float(rpca_masks(mag, gain=g, tolerance=1e-3)[1].mean()) for g in (0.5, 1.0, 2.0)]
    assert shares == sorted(shares, reverse=True)

@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), double=st.booleans(), mask=st.sampled_from(["binary", "soft"]))
def test_stems_sum_to_the_mixture(seed, samples, channels, log_scale, double, mask):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32)
    out = stacked(mix, STEMS, mask=mask)
    assert out.shape == (4, *mix.shape) and out.dtype == mix.dtype and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

@pytest.mark.parametrize("shape", [(1, 1), (2, 100), (3, 5001)])
def test_silence(shape): assert not stacked(torch.zeros(shape)).any()

@pytest.mark.parametrize("scale", [1e-4, 1e2])
def test_scaling_the_input_scales_the_output(scale):
    whole, scaled = stacked(song(3), mask="soft"), stacked(scale * song(3), mask="soft")
    assert (power_to_db((scale * whole).square().sum() / (scaled - scale * whole).square().sum()) > 40)

def test_nan_is_refused():
    with pytest.raises(SepnbError, match="NaN"): stacked(torch.full((2, 100), torch.nan))

def test_says_when_it_stopped_too_early():
    low, sparse = planted(60, 50, 2, 0.05)
    with pytest.warns(NotConverged, match="after 4 steps at a residual"): rpca(low + sparse, steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error"); rpca(low + sparse); rpca(torch.zeros(3, 4)); stacked(song())
