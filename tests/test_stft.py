"""The STFT pair against librosa and scipy, its length contract, and its behaviour under masks, casts and bad input."""
import copy, pickle

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.signal import ShortTimeFFT

from sepnb.core import SepnbError
from sepnb.stft import FLOOR, STFT, WINDOWS, analyse, magnitude, make_window, overlap_floor, plain_magnitude, synthesise
from sepnb.synth import chirp, click, tone, toy_sources



def tolerance(n_fft, dtype):
    "Peak error over peak: 1e-12, 1e-6, or 2e-6 in float32 if n_fft has a prime factor above 7."
    for prime in (2, 3, 5, 7):
        while n_fft % prime == 0: n_fft //= prime
    return 1e-12 if dtype == torch.float64 else 1e-6 if n_fft == 1 else 2e-6


def randn(*shape, seed=0, dtype=torch.float32): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stft_or_none(n_fft, hop_length, window):
    try: return STFT(n_fft, hop_length, window=window)
    except SepnbError: return None


@st.composite
def pairs(draw):
    n_fft = draw(st.one_of(st.sampled_from([2, 3, 16, 97, 128, 500, 1024]), st.integers(2, 600)))
    made = stft_or_none(n_fft, draw(st.integers(1 + n_fft // 20, n_fft)), draw(st.sampled_from(WINDOWS)))
    return made or STFT(n_fft, (n_fft + 1) // 2, window="sqrt_hamming")


@given(pairs(), st.integers(1, 1500), st.sampled_from([1e-4, 1.0, 1e2]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_round_trip_at_any_length(stft, length, scale, seed):
    for dtype in (torch.float32, torch.float64):
        x = scale * (randn(2, length, seed=seed, dtype=dtype) if seed % 2 else torch.cos(seed * torch.arange(2 * length, dtype=dtype)).reshape(2, -1))
        spec = stft(x)
        assert spec.shape == (2, stft.bins, stft.frames(length)) == (2, stft.n_fft // 2 + 1, -(-length // stft.hop_length) + 1)
        y = stft.inverse(spec, length)
        assert y.shape == x.shape and y.dtype == dtype
        assert (y - x).abs().max() <= tolerance(stft.n_fft, dtype) * x.abs().max()


@pytest.mark.parametrize("length", [1, 2, 1023, 1024, 4095, 4096, 4097, 44100, 65537, 100003])
@pytest.mark.parametrize("n_fft, hop_length, window", [(4096, 1024, "hann"), (4096, 2048, "sqrt_hann"), (4096, 2500, "hann"), (4099, 1000, "hamming")])
def test_round_trip_at_full_size(n_fft, hop_length, window, length):
    stft, x = STFT(n_fft, hop_length, window=window), randn(length, seed=length)
    assert (stft.inverse(stft(x), length) - x).abs().max() <= tolerance(n_fft, torch.float32) * x.abs().max()


@pytest.mark.parametrize("signal", [tone(440, amplitude=1.0), torch.ones(16000), click(0.5, amplitude=1.0), chirp(0, 8000, amplitude=1.0)], ids=["tone", "constant", "click", "chirp"])
def test_round_trip_of_other_signals(signal):
    stft = STFT(1024, 300)
    assert (stft.inverse(stft(signal), 16000) - signal).abs().max() < 1e-6


@given(pairs(), st.integers(1, 1500), st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_a_mask_cannot_raise_the_energy_beyond_the_floor(stft, length, seed):
    x = randn(length, seed=seed, dtype=torch.float64)
    spec = stft(x)
    mask = torch.rand(spec.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round(decimals=seed % 3)  # hard and soft masks
    bound = 1 / overlap_floor(make_window(stft.window_name, stft.n_fft, dtype=torch.float64), stft.hop_length)
    assert bound <= 1 / FLOOR
    assert stft.inverse(spec * mask, length).square().sum() <= (bound + 1e-9) * x.square().sum()


@pytest.mark.parametrize("hop_length", [256, 333, 512, 600])
@pytest.mark.parametrize("window", ["hann", "sqrt_hann", "hamming"])
def test_masked_signals_stay_calm_at_both_ends(window, hop_length):
    stft, x = STFT(1024, hop_length, window=window), randn(20, 8192 + 77).clamp(-3, 3)
    spec = stft(x)
    y = stft.inverse(spec * torch.rand(spec.shape, generator=torch.Generator().manual_seed(5)), x.shape[-1])
    inner = y[:, 2048:-2048].square().mean().sqrt()
    for end in (y[:, :64], y[:, -64:]):
        assert end.abs().max() < 3 and end.square().mean().sqrt() < 2 * inner


def test_the_floor_is_the_smallest_divisor_of_any_length():
    for window, hop_length in [("hann", 25), ("hann", 50), ("hamming", 77), ("rectangular", 100), ("blackman", 60)]:
        w = make_window(window, 100, dtype=torch.float64)
        sums = []
        for length in (1, 24, 49, 50, 99, 100, 350):
            frames = -(-length // hop_length) + 1
            total = torch.zeros(frames * hop_length + 200, dtype=torch.float64)
            for n in range(frames): total[n * hop_length : n * hop_length + 100] += w.square()
            sums.append(total[50 : 50 + length])
        smallest, largest = torch.cat(sums).min(), sums[-1].max()
        assert overlap_floor(w, hop_length) <= smallest / largest + 1e-12 and overlap_floor(w, hop_length) >= 0.5 * smallest / largest


@pytest.mark.parametrize("n_fft, hop_length", [(512, 128), (512, 200), (1024, 512), (600, 150)])
@pytest.mark.parametrize("window", ["hann", "hamming", "blackman"])
def test_equal_to_librosa(window, n_fft, hop_length):
    x = randn(2, 5003)
    ours, theirs = STFT(n_fft, hop_length, window=window)(x), librosa.stft(x.numpy(), n_fft=n_fft, hop_length=hop_length, window=window, pad_mode="constant")
    shared = theirs.shape[-1]
    assert shared in (ours.shape[-1], ours.shape[-1] - 1)
    np.testing.assert_allclose(ours[..., :shared].numpy(), theirs, atol=3e-5)
    interior = slice(n_fft // hop_length + 1, 5003 // hop_length - n_fft // hop_length - 1)
    reflected = librosa.stft(x.numpy(), n_fft=n_fft, hop_length=hop_length, window=window, pad_mode="reflect")
    np.testing.assert_allclose(ours[..., interior].numpy(), reflected[..., interior], atol=3e-5)


@pytest.mark.parametrize("n_fft, hop_length, length", [(512, 128, 4000), (512, 200, 4001), (333, 100, 1999), (256, 64, 131)])
def test_equal_to_scipy_both_ways(n_fft, hop_length, length):
    x, stft = randn(length, dtype=torch.float64), STFT(n_fft, hop_length)
    scipys = ShortTimeFFT(make_window("hann", n_fft, dtype=torch.float64).numpy(), hop_length, fs=1, phase_shift=None)
    np.testing.assert_allclose(stft(x).numpy(), scipys.stft(x.numpy(), p0=0, p1=stft.frames(length)), atol=1e-12)
    if length > n_fft:  # the same masked spectrogram, inverted by two implementations, where scipy's extra frames play no part
        spec = stft(x) * torch.rand(stft(x).shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        theirs = scipys.istft(np.pad(spec.numpy(), ((0, 0), (-scipys.p_min, 8))), k0=0, k1=length)
        inner = slice(n_fft, length - n_fft - hop_length)
        np.testing.assert_allclose(stft.inverse(spec, length)[inner].numpy(), theirs[inner], atol=1e-12)


def test_the_inverse_equals_a_plain_loop():
    n_fft, hop_length, length = 60, 23, 201
    w, spec = make_window("hann", n_fft, dtype=torch.float64), randn(31, -(-length // 23) + 1, dtype=torch.complex128)
    top, bottom = torch.zeros(500, dtype=torch.float64), torch.zeros(500, dtype=torch.float64)
    for n in range(spec.shape[-1]):
        top[n * hop_length : n * hop_length + n_fft] += w * torch.fft.irfft(spec[:, n], n=n_fft)
        bottom[n * hop_length : n * hop_length + n_fft] += w.square()
    torch.testing.assert_close(synthesise(spec, w, hop_length, length), (top / bottom)[30 : 30 + length])


def test_the_inverse_is_the_least_squares_one():
    stft = STFT(32, 12)
    spec = randn(stft.bins, stft.frames(100), dtype=torch.complex128)
    spec[[0, -1]] = spec[[0, -1]].real + 0j
    weight = torch.full((stft.bins, 1), 2.0, dtype=torch.float64); weight[[0, -1]] = 1
    nearest = stft.inverse(spec, 108)

    def distance(x): return float((weight * (stft(x) - spec).abs().square()).sum())
    best = distance(nearest)
    for seed in range(20): assert distance(nearest + 1e-3 * randn(108, seed=seed, dtype=torch.float64)) > best


@pytest.mark.parametrize("shape", [(700,), (1, 700), (2, 700), (3, 4, 2, 700)])
def test_leading_axes_are_free(shape):
    x, stft = randn(*shape), STFT(128, 50)
    spec = stft(x)
    assert spec.shape == (*shape[:-1], 65, 15) and stft.inverse(spec, 700).shape == shape
    single = torch.stack([stft(row) for row in x.reshape(-1, 700)]).reshape(spec.shape)
    torch.testing.assert_close(spec, single)


def test_linear_and_scale_equivariant():
    stft, sources = STFT(256, 64), toy_sources(torch.Generator().manual_seed(1), seconds=0.4)
    torch.testing.assert_close(stft(sources).sum(0), stft(sources.sum(0)), atol=1e-4, rtol=1e-4)
    for gain in (1e-4, 1e2): torch.testing.assert_close(stft(gain * sources), gain * stft(sources), atol=1e-5 * gain, rtol=1e-4)


def test_input_is_not_mutated_and_silence_stays_silent():
    stft, x = STFT(128, 32), randn(2, 333)
    kept, spec = x.clone(), stft(x)
    kept_spec = spec.clone()
    stft.inverse(spec, 333)
    assert torch.equal(x, kept) and torch.equal(spec, kept_spec)
    assert not stft(torch.zeros(2, 333)).abs().any() and not stft.inverse(torch.zeros_like(spec), 333).any()


def test_a_delay_of_one_hop_is_a_delay_of_one_frame():
    stft, x = STFT(256, 100), randn(2000, dtype=torch.float64)
    torch.testing.assert_close(stft(torch.nn.functional.pad(x, (300, 0)))[:, 5:20], stft(x)[:, 2:17])


def test_gradients_are_right():
    stft = STFT(16, 6)
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(stft(x)), randn(2, 37, dtype=torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(lambda s: stft.inverse(s, 37), randn(9, stft.frames(37), dtype=torch.complex128).requires_grad_())
    assert torch.autograd.gradcheck(magnitude, randn(5, dtype=torch.complex128).requires_grad_())


@pytest.mark.parametrize("x", [torch.zeros(1, 900), torch.full((1, 900), 1e-30), torch.cat([torch.zeros(1, 600), torch.ones(1, 300)], -1)], ids=["silence", "tiny", "half"])
def test_magnitude_has_a_finite_gradient(x):
    leaf, stft = x.clone().requires_grad_(), STFT(128, 32)
    mag = magnitude(stft(leaf))
    (mag.sum() + mag.square().sum()).backward()
    assert leaf.grad.isfinite().all()


def test_magnitude_neither_overflows_nor_underflows():
    z = torch.tensor([3e-25 + 4e-25j, 3 + 4j, 3e25 + 4e25j, 0])
    torch.testing.assert_close(magnitude(z), torch.tensor([5e-25, 5, 5e25, 0]))


@pytest.mark.parametrize("level", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_magnitude_is_the_magnitude_of_music(level, dtype):
    spec = STFT(256, 64)(level * randn(3, 2, 4001, dtype=dtype))
    torch.testing.assert_close(plain_magnitude(spec), magnitude(spec), rtol=1e-6, atol=0)
    assert torch.equal(plain_magnitude(spec.transpose(-1, -2)), plain_magnitude(spec).transpose(-1, -2))


def test_plain_magnitude_of_silence_and_with_a_gradient():
    assert not plain_magnitude(STFT(128, 32)(torch.zeros(1, 900))).any()
    leaf = torch.zeros(1, 900, requires_grad=True); plain_magnitude(STFT(128, 32)(leaf)).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    stft, x = STFT(256, 64), randn(1000).to(dtype)
    assert stft(x).dtype == torch.complex64 and torch.equal(stft(x), stft(x.float())) and stft.inverse(stft(x), 1000).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16): assert torch.equal(stft(x.float()), stft(x.float()))


def test_casts_and_copies_keep_the_window_and_the_state_dict_empty():
    stft, x = STFT(256, 64, window="hamming"), randn(1000, dtype=torch.float64)
    for other in (STFT(256, 64, window="hamming").half().float(), STFT(256, 64, window="hamming").double(), copy.deepcopy(stft), pickle.loads(pickle.dumps(stft)),
                  torch.nn.Sequential(STFT(256, 64, window="hamming")).to(torch.bfloat16)[0]):
        assert torch.equal(other.window, stft.window) and other.window.dtype == torch.float32 and not other.state_dict() and not list(other.parameters())
        assert torch.equal(other(x), stft(x)) and torch.equal(other(x.float()), stft(x.float()))
    stft.load_state_dict({})
    stft.requires_grad_(False), stft.train(), stft.eval()


def test_usable_after_inference_mode():
    with torch.inference_mode():
        stft = STFT(64, 16)
        y = stft.inverse(stft(randn(200)), 200)
    assert torch.isfinite(y).all()
    stft, leaf = STFT(64, 16), randn(200).requires_grad_()
    with torch.inference_mode(): stft(leaf)
    stft(leaf).abs().sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_on_a_gpu():
    stft, x = STFT(512, 128), randn(2, 3001)
    moved = STFT(512, 128).cuda()
    assert moved.window.is_cuda
    for module in (moved, STFT(512, 128)):  # a module that was left on the CPU follows its input
        spec = module(x.cuda())
        torch.testing.assert_close(spec.cpu(), stft(x), atol=1e-4, rtol=1e-4)
        assert (module.inverse(spec, 3001).cpu() - x).abs().max() < 1e-6 * x.abs().max()
    assert moved(x.cuda().bfloat16()).dtype == torch.complex64


@pytest.mark.parametrize("n_fft, hop_length, window", [(512, 513, "hann"), (512, 0, "hann"), (512, -3, "hann"), (512, 512, "hann"), (512, 512, "hamming"), (512, 384, "hann"), (512, 300, "blackman"),
                                                       (1, 1, "rectangular"), (0, 0, "hann"), (512.5, 128, "hann"), (512, 128.5, "hann"), (512, 128, "sine"), (512, 128, "sqrt_rectangular")])
def test_settings_without_an_inverse_are_refused(n_fft, hop_length, window):
    with pytest.raises(SepnbError) as e: STFT(n_fft, hop_length, window=window)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("call", [lambda s: s(torch.zeros(0)), lambda s: s(torch.zeros(0, 100)), lambda s: s(torch.tensor(1.0)), lambda s: s(torch.zeros(9, dtype=torch.int16)),
                                  lambda s: s(torch.zeros(9, dtype=torch.complex64)), lambda s: s.inverse(torch.zeros(65, 4), 90), lambda s: s.inverse(torch.zeros(64, 9, dtype=torch.complex64), 90),
                                  lambda s: s.inverse(torch.zeros(65, 3, dtype=torch.complex64), 97), lambda s: s.inverse(torch.zeros(65, 3, dtype=torch.complex64), 0)])
def test_bad_signals_are_refused_in_one_line(call):
    with pytest.raises(SepnbError) as e: call(STFT(128, 32))
    assert "\n" not in str(e.value)


def test_surplus_frames_are_cut():
    stft, x = STFT(128, 32), randn(100)
    spec = torch.cat([stft(x), torch.ones(65, 9)], -1)
    y = stft.inverse(spec, 100)
    assert y.shape == (100,) and torch.isfinite(y).all()


def test_crude_frames_from_sample_zero_blow_up():
    x, mask = randn(4096, dtype=torch.float64), torch.rand(257, 15, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = make_window("hann", 512, dtype=torch.float64)
    spec = torch.stft(x, 512, 256, window=w, center=False, return_complex=True) * mask
    frames = torch.fft.irfft(spec.T, n=512) * w
    top, bottom = torch.zeros_like(x), torch.zeros_like(x)
    for n, frame in enumerate(frames): top[n * 256 : n * 256 + 512] += frame; bottom[n * 256 : n * 256 + 512] += w.square()
    crude = (top / bottom.clamp_min(1e-11)).abs().max()
    ours = analyse(x, w, 256)
    ours = synthesise(ours * torch.rand(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64), w, 256, 4096).abs().max()
    assert crude > 20 * x.abs().max() and ours < x.abs().max()
