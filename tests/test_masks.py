"""Masks: conservation at every scale, known answers, gradients, and ideal masks against the untouched mixture."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from librosa.util import softmask

from sepnb.core import SepnbError
from sepnb.masks import apply_mask, binary_mask, ratio_mask, wiener_mask
from sepnb.stft import STFT, magnitude
from sepnb.synth import noise, toy_sources

MAKERS = dict(binary=binary_mask, ratio=ratio_mask, wiener=wiener_mask, root=lambda m: ratio_mask(m, exponent=0.5), steep=lambda m: ratio_mask(m, exponent=30.0))
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def rand(*shape, seed=0, dtype=torch.float32): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sums_to_one(mask): return (mask.double().sum(-4) - 1).abs().max() <= mask.shape[-4] * torch.finfo(mask.dtype).eps


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e2, 1e30])
@pytest.mark.parametrize("stems", [1, 2, 4, 7])
def test_masks_sum_to_one_at_any_scale(make, dtype, scale, stems):
    mag = rand(3, stems, 2, 9, 5, dtype=dtype) ** 4
    mag[..., 0] = 0; mag[:, 0, :, 3] = 0  # silent frames, a stem without one bin
    mask = make(scale * mag)
    assert mask.shape == mag.shape and mask.dtype == dtype and mask.min() >= 0 and mask.max() <= 1 and sums_to_one(mask)
    assert torch.allclose(mask[..., 0], torch.full((), 1 / stems, dtype=dtype)) and (stems == 1 or not mask[:, 0, :, 3, 1:].any())
    torch.testing.assert_close(mask, make(mag), atol=3e-5, rtol=1e-4)


@every
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1.0, torch.finfo(torch.float32).max])
def test_equal_magnitudes_get_equal_shares(make, value):
    mask = make(torch.full((4, 1, 3, 2), value))
    assert torch.equal(mask, torch.full((4, 1, 3, 2), 0.25))


@every
@given(st.lists(st.floats(0, 2.0**127, width=32, allow_subnormal=False), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_any_float32_numbers(make, values):
    mag = torch.tensor(values).reshape(-1, 1, 1, 1)
    mask = make(mag)
    assert mask.isfinite().all() and sums_to_one(mask) and mask.flatten()[mag.flatten().argmax()] == mask.max()


def test_known_answers():
    mag = torch.tensor([3.0, 1.0, 0.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(ratio_mask(mag).flatten(), torch.tensor([0.75, 0.25, 0.0]))
    torch.testing.assert_close(wiener_mask(mag).flatten(), torch.tensor([0.9, 0.1, 0.0]))
    torch.testing.assert_close(binary_mask(mag).flatten(), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(ratio_mask(mag.square()), wiener_mask(mag))
    assert binary_mask(torch.tensor([2.0, 2.0, 1.0]).reshape(3, 1, 1, 1)).flatten().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.7])
def test_equal_to_librosa_for_two_stems(exponent):
    mag = rand(2, 1, 40, 30, seed=1)
    theirs = softmask(mag[0].numpy(), mag[1].numpy(), power=exponent)
    np.testing.assert_allclose(ratio_mask(mag, exponent=exponent)[0].numpy(), theirs, atol=1e-6)
    np.testing.assert_array_equal(binary_mask(mag)[0].numpy(), softmask(mag[0].numpy(), mag[1].numpy(), power=np.inf))


@every
def test_stems_may_be_permuted_and_input_is_not_mutated(make):
    mag = rand(2, 4, 1, 6, 7, seed=2); kept = mag.clone()
    order = [2, 0, 3, 1]
    torch.testing.assert_close(make(mag[:, order]), make(mag)[:, order])
    assert torch.equal(mag, kept)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_gradients(exponent):
    mag = (rand(3, 1, 2, 2, seed=3, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: ratio_mask(m, exponent=exponent), mag)  # the detached maximum cancels
    holes = rand(3, 1, 4, 4, seed=4); holes[:, :, 0] = 0; holes[0, :, 1] = 0; holes[:2, :, 2] = 0
    holes.requires_grad_()
    (ratio_mask(holes, exponent=exponent) * rand(3, 1, 4, 4, seed=5)).sum().backward()
    assert holes.grad.isfinite().all() and not holes.grad[:, :, 0].any()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@every
def test_estimates_add_up_to_the_mixture(make, scale):
    sources = scale * toy_sources(torch.Generator().manual_seed(7), seconds=0.7, sample_rate=8000)[..., :5003]
    mix, stft = sources.sum(0), STFT(512, 128)
    spec = stft(mix)
    masked = apply_mask(make(magnitude(stft(sources))), spec)
    torch.testing.assert_close(masked.sum(0), spec, atol=1e-5 * scale, rtol=1e-5)
    estimates = stft.inverse(masked, mix.shape[-1])
    assert estimates.shape == sources.shape and (estimates.sum(0) - mix).abs().max() < 2e-6 * mix.abs().max()


def error(estimates, sources): return (estimates - sources).square().sum((-2, -1))


@given(st.integers(0, 50), st.integers(1, 12000), st.sampled_from([(1024, 256, "hann"), (1024, 512, "hann"), (512, 512, "rectangular"), (1000, 333, "hamming"), (256, 128, "sqrt_hann")]),
       st.sampled_from([1, 2]), st.sampled_from([("drums", "bass", "other", "vocals"), ("bass", "vocals")]), st.sampled_from(["binary", "ratio", "wiener"]))
@settings(deadline=None, max_examples=25)
def test_an_ideal_mask_never_falls_under_the_mixture(seed, length, transform, channels, stems, name):
    sources = toy_sources(torch.Generator().manual_seed(seed), seconds=1.5, sample_rate=8000, channels=channels, stems=stems)[..., :length]
    mix, stft = sources.sum(0), STFT(transform[0], transform[1], window=transform[2])
    estimates = stft.inverse(apply_mask(MAKERS[name](magnitude(stft(sources))), stft(mix)), length)
    floor = error(mix.expand_as(sources), sources)
    assert (error(estimates, sources).sum() <= floor.sum() * (1 + 1e-6)) and (error(estimates, sources) <= 1.05 * floor + 1e-4 * sources.square().sum()).all()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("n_fft, hop_length", [(1024, 256), (1024, 512), (4096, 1024)])
def test_order_of_the_oracles(seed, n_fft, hop_length):
    sources = toy_sources(torch.Generator().manual_seed(seed), seconds=2.0)
    mix, stft = sources.sum(0), STFT(n_fft, hop_length)
    mag, spec = magnitude(stft(sources)), stft(mix)
    estimates = {n: stft.inverse(apply_mask(MAKERS[n](mag), spec), mix.shape[-1]) for n in ("binary", "ratio", "wiener")}
    total = {n: float(10 * torch.log10(error(e, sources)).mean()) for n, e in {"mixture": mix.expand_as(sources), **estimates}.items()}
    assert total["wiener"] < total["ratio"] and total["wiener"] < total["binary"] + 0.1 and max(total["binary"], total["ratio"]) < total["mixture"] - 10


def test_stems_in_phase_are_restored_exactly_by_the_ratio_mask():
    x = noise(torch.Generator().manual_seed(0), seconds=0.5)
    sources = torch.stack([0.2 * x, 0.8 * x])[:, None]
    stft = STFT(512, 128)
    estimates = stft.inverse(apply_mask(ratio_mask(magnitude(stft(sources))), stft(sources.sum(0))), x.shape[-1])
    torch.testing.assert_close(estimates, sources, atol=1e-6, rtol=1e-5)


def test_a_silent_stem_gets_silence():
    sources = toy_sources(torch.Generator().manual_seed(1), seconds=0.5); sources[2] = 0
    stft = STFT(512, 128)
    for name in ("binary", "ratio", "wiener"):
        estimates = stft.inverse(apply_mask(MAKERS[name](magnitude(stft(sources))), stft(sources.sum(0))), sources.shape[-1])
        assert not estimates[2].any()


@every
def test_nan_stays_in_its_bin(make):
    mag = rand(2, 1, 4, 4); mag[0, 0, 1, 2] = torch.nan
    assert make(mag).isnan().nonzero().tolist() == [[0, 0, 1, 2], [1, 0, 1, 2]]


@every
def test_negative_magnitudes_count_as_zero_and_halves_become_floats(make):
    mag = torch.tensor([-3.0, 1.0]).reshape(2, 1, 1, 1)
    assert make(mag).flatten().tolist() == [0.0, 1.0]
    for dtype in (torch.float16, torch.bfloat16): assert make(rand(4, 1, 5, 5).to(dtype)).dtype == torch.float32


def test_complex_masks_and_stretched_axes():
    spec = torch.randn(2, 5, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert apply_mask(torch.ones(3, 1, 5, 4), spec).shape == (3, 2, 5, 4) and apply_mask(torch.ones(6, 3, 2, 5, 4), spec.expand(6, 2, 5, 4)).shape == (6, 3, 2, 5, 4)
    truth = torch.randn(3, 2, 5, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(apply_mask(truth / spec, spec), truth)


@pytest.mark.parametrize("call", [lambda: ratio_mask(torch.ones(2, 3, 4)), lambda: ratio_mask(torch.ones(2, 1, 3, 4), exponent=0), lambda: ratio_mask(torch.ones(2, 1, 3, 4), exponent=float("nan")),
                                  lambda: binary_mask(torch.ones(2, 1, 3, 4, dtype=torch.complex64)), lambda: apply_mask(torch.ones(2, 1, 3, 4), torch.ones(1, 3, 5)),
                                  lambda: apply_mask(torch.ones(1, 3, 4), torch.ones(1, 3, 4)), lambda: apply_mask(torch.ones(2, 3, 3, 4), torch.ones(2, 3, 4))])
def test_bad_input_is_refused_in_one_line(call):
    with pytest.raises(SepnbError) as e: call()
    assert "\n" not in str(e.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@every
def test_on_a_gpu(make):
    mag = rand(4, 2, 33, 9); mag[:, :, :, 0] = 0
    torch.testing.assert_close(make(mag.cuda()).cpu(), make(mag))
