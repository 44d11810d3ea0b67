"""Multichannel Wiener filter: norbert's and Open-Unmix's numbers, conservation, levels, channels, silence, blocks and windows."""
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb import wiener as chapter
from sepnb.core import SepnbError
from sepnb.masks import apply_mask, ratio_mask
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources
from sepnb.wiener import refine, spatial_model, wiener

sys.path.append(str(Path(__file__).parents[1] / ".refs"))
EPS = 2.0**-52


@pytest.fixture(autouse=True)
def one_thread(two_threads): torch.set_num_threads(1) # tiny tensors


@pytest.fixture
def norbert():
    if importlib.util.find_spec("norbert") is None: pytest.skip("package norbert is not here; see tests/references.txt")
    found = sys.modules.get("scipy.ndimage.filters")
    if found is None: # norbert imports a name that newer scipy has elsewhere
        import scipy.ndimage
        try: importlib.import_module("scipy.ndimage.filters")
        except ImportError:
            shim = types.ModuleType("scipy.ndimage.filters"); shim.gaussian_filter1d = scipy.ndimage.gaussian_filter1d
            sys.modules["scipy.ndimage.filters"] = shim
    return importlib.import_module("norbert")


def music(stems=4, channels=2, seconds=0.5, rate=8000):
    "A mixture's spectrogram and magnitudes that are wrong by a third, both in double precision; bins of music and bins of almost nothing."
    g = torch.Generator().manual_seed(0); names = ["drums", "bass", "other", "vocals"][:stems]
    sources = toy_sources(g, seconds=seconds, sample_rate=rate, channels=channels, stems=names).double()
    specs = STFT(256, 64)(sources)
    return specs.sum(0), specs.abs() * (1 + torch.randn(specs.shape, generator=g, dtype=torch.float64) / 3).abs()


def noisy(stems, channels, bins, frames, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    spec = torch.randn(channels, bins, frames, generator=g, dtype=torch.complex128) * 30
    return spec.to(torch.complex128 if dtype == torch.float64 else torch.complex64), (torch.rand(stems, channels, bins, frames, generator=g, dtype=torch.float64) * 30).to(dtype)


def theirs(norbert, spec, mag, iterations=1, initial="phase", eps=EPS):
    out = norbert.wiener(mag.permute(3, 2, 1, 0).numpy().copy(), spec.permute(2, 1, 0).numpy().copy(), iterations=iterations, use_softmask=initial == "ratio", eps=eps)
    return torch.from_numpy(out).permute(3, 2, 1, 0)


def close(ours, reference, tolerance): assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("initial", ["phase", "ratio"])
@pytest.mark.parametrize("iterations", [0, 1, 2])
@pytest.mark.parametrize("stems, channels", [(1, 1), (2, 1), (2, 2), (4, 2), (3, 3), (2, 5)])
def test_equals_norbert(norbert, stems, channels, iterations, initial):
    for spec, mag in (noisy(stems, channels, 9, 21), noisy(stems, channels, 33, 4)):
        kept = spec.clone(), mag.clone()
        close(wiener(spec, mag, iterations=iterations, initial=initial, conserve=False), theirs(norbert, spec, mag, iterations, initial), 1e-6)
        assert torch.equal(spec, kept[0]) and torch.equal(mag, kept[1])


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e2])
def test_equals_norbert_on_music(norbert, channels, scale):
    spec, mag = music(channels=channels); loud = scale * 10 / spec.abs().max() # norbert only scales down what is above 10
    close(wiener(spec * loud, mag * loud, conserve=False), theirs(norbert, spec * loud, mag * loud), 1e-6)


@pytest.mark.parametrize("eps", [1e-10, EPS, 1e-4])
def test_equals_norbert_for_any_eps_and_one_magnitude_for_all_channels(norbert, eps):
    spec, mag = noisy(3, 2, 10, 15)
    close(wiener(spec, mag[:, :1], eps=eps, conserve=False), theirs(norbert, spec, mag[:, :1], eps=eps), 1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2])
def test_quiet_music_is_filtered_like_loud_music(norbert, scale):
    spec, mag = music()
    loud = 10 / spec.abs().max()
    close(wiener(spec * scale, mag * scale, conserve=False) / scale, theirs(norbert, spec * loud, mag * loud) / loud, 1e-6)


def test_equals_openunmix_in_windows(monkeypatch):
    if importlib.util.find_spec("openunmix") is None: pytest.skip("package openunmix is not here; see tests/references.txt")
    try: importlib.import_module("torchaudio")
    except Exception: monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    filtering = importlib.import_module("openunmix.filtering")
    spec, mag = noisy(4, 2, 12, 90)
    args = lambda part: part.permute(3, 2, 1, 0) if part.ndim == 4 else torch.view_as_real(part.permute(2, 1, 0))
    parts = [filtering.wiener(args(m), args(x), iterations=1, softmask=False, residual=False) for m, x in zip(mag.split(30, -1), spec.split(30, -1))]
    reference = torch.view_as_complex(torch.cat(parts).transpose(-1, -2).contiguous())
    close(wiener(spec, mag, window_frames=30, conserve=False).permute(3, 2, 1, 0), reference, 1e-5) # its regularisation differs a little


def test_spatial_model_equals_norbert(norbert):
    spec, mag = noisy(3, 2, 10, 15); y = apply_mask(mag, spec)
    power, covariance = spatial_model(y)
    for j in range(3):
        v, r = norbert.get_local_gaussian_model(y[j].permute(2, 1, 0).numpy(), EPS)
        np.testing.assert_allclose(power[j].T, v, rtol=1e-12); np.testing.assert_allclose(covariance[j], r[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance, covariance.mH); torch.testing.assert_close(torch.einsum("sfcc->sf", covariance).real, torch.full((3, 10), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conserves_the_mixture_at_any_level(channels, scale, dtype):
    spec, mag = music(channels=channels)
    complex_of = {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype]
    out = wiener((spec * scale).to(complex_of), (mag * scale).to(dtype), iterations=2)
    assert out.dtype == complex_of
    close(out.sum(0), spec.to(complex_of) * scale, 1e-6 if dtype == torch.float32 else 1e-12)
    close(out.to(torch.complex128) / scale, wiener(spec, mag, iterations=2), 2e-5 if dtype == torch.float32 else 1e-7)


def test_single_precision_in_and_out_is_double_inside():
    spec, mag = noisy(4, 2, 20, 40)
    close(wiener(spec.to(torch.complex64), mag.float()).to(torch.complex128), wiener(spec, mag), 1e-6)


def test_a_device_without_doubles_leaves_it_to_the_processor(monkeypatch):
    moved = []
    class Apple: # stands for a tensor on that device
        device = torch.device("mps")
        def cpu(self): moved.append(1); return "on the processor"
    assert chapter._with_doubles(Apple()) == "on the processor" and moved
    spec, mag = noisy(2, 2, 5, 9); planes = []
    monkeypatch.setattr(chapter, "_planes", lambda z, dtype, real=chapter._planes: planes.append(dtype) or real(z, dtype))
    wiener(spec.to(torch.complex64), mag.float())
    assert planes and set(planes) == {torch.float64}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 12), st.integers(0, 3), st.integers(0, 99))
def test_any_shape(stems, channels, bins, frames, iterations, seed):
    spec, mag = noisy(stems, channels, bins, frames, seed)
    out = wiener(spec, mag, iterations=iterations)
    assert out.shape == mag.shape and out.isfinite().all()
    close(out.sum(0), spec, 1e-9)
    if frames > 1: assert torch.equal(wiener(spec, mag, iterations=iterations, window_frames=frames), out)


def test_blocks_do_not_matter(monkeypatch):
    spec, mag = noisy(3, 2, 33, 17); whole = wiener(spec, mag)
    for bins in (1, 2, 7, 33, 99):
        monkeypatch.setattr(chapter, "_block_bins", lambda *_: bins)
        torch.testing.assert_close(wiener(spec, mag), whole, rtol=1e-8, atol=1e-8)


def test_windows_are_filtered_by_themselves():
    spec, mag = noisy(3, 2, 8, 50)
    spec[..., 10] *= 100 # the level is set by the whole
    parts = wiener(spec, mag, window_frames=13)
    for a, b in ((0, 13), (13, 26), (26, 38), (38, 50)):
        close(parts[..., a:b], wiener(spec[..., a:b], mag[..., a:b]), 1e-4)


def test_a_batch_is_a_loop():
    items = [noisy(2, 2, 6, 9, seed) for seed in range(6)]
    spec, mag = (torch.stack(v).unflatten(0, (2, 3)) for v in zip(*items))
    out = wiener(spec, mag)
    for k, (x, m) in enumerate(items): assert torch.equal(out[k // 3, k % 3], wiener(x, m))


def test_true_directions_separate_two_stems_perfectly():
    g = torch.Generator().manual_seed(1)
    pan = torch.tensor([[1.0, 0.2], [0.5, 1.0]], dtype=torch.complex128)
    truth = pan[:, :, None, None] * torch.randn(2, 1, 5, 200, generator=g, dtype=torch.complex128)
    close(wiener(truth.sum(0), truth), truth, 1e-4)


def test_complex_estimates_and_masks_are_the_same():
    spec, mag = noisy(3, 2, 6, 20)
    close(wiener(spec, apply_mask(ratio_mask(mag), spec)), wiener(spec, mag, initial="ratio"), 1e-9)


def test_exponent_and_spread():
    spec, mag = music(channels=1)
    shared = apply_mask(ratio_mask(mag), spec)
    close(wiener(spec, shared, exponent=1.0), shared, 1e-5) # one channel: the same shares
    spec, mag = music()
    isotropic = wiener(spec, mag, spread=1.0, exponent=3.0, eps=1e-300) # no directions left: a mask by the mean power of the channels
    close(isotropic, apply_mask(ratio_mask(mag.square().mean(1, keepdim=True).sqrt(), exponent=3), spec), 1e-9)
    sharp, blunt = (wiener(spec, mag, spread=v) for v in (0.0, 0.5))
    assert (sharp - blunt).abs().max() > 0.01 * spec.abs().max()
    for out in (sharp, blunt): close(out.sum(0), spec, 1e-9)


def test_silence_and_stems_that_give_up():
    spec, mag = noisy(3, 2, 6, 20)
    assert not wiener(0 * spec, 0 * mag).any() and not wiener(0 * spec, mag).any()
    close(wiener(spec, 0 * mag), spec.expand(3, -1, -1, -1) / 3, 1e-12)
    mag[1] = 0
    assert wiener(spec, mag)[1].abs().max() < 1e-6 * spec.abs().max()
    spec[..., 5:9] = 0; mag[..., 5:9] = 0 # a pause
    out = wiener(spec, mag); assert out.isfinite().all() and not out[..., 5:9].any()
    twin = spec[:1].expand(2, -1, -1).contiguous() # dual mono: every covariance is singular
    out = wiener(twin, mag[:, :1]); assert out.isfinite().all(); close(out[:, 0], out[:, 1], 1e-6)


def test_a_broken_bin_stays_in_its_frequency_and_window():
    spec, mag = noisy(2, 2, 9, 40); spec[1, 4, 3] = torch.nan
    bad = wiener(spec, mag, window_frames=20).isnan().any(0).any(0)
    assert bad.any(1).nonzero().flatten().tolist() == [4] and not bad[:, 20:].any()


@pytest.mark.parametrize("stems, channels, length", [(1, 2, 4000), (2, 1, 4001), (4, 2, 3999), (2, 3, 1), (2, 2, 63)])
def test_refine_waveforms(stems, channels, length):
    g = torch.Generator().manual_seed(0); mix = torch.randn(channels, length, generator=g)
    shares = torch.rand(stems, 1, 1, generator=g); estimates = mix * shares / max(1, shares.sum()) + 0.01 * torch.randn(stems, channels, length, generator=g)
    out = refine(estimates, mix, stft=STFT(256, 64))
    assert out.shape == estimates.shape and out.isfinite().all()
    if stems > 1: torch.testing.assert_close(out.sum(0), mix, atol=1e-5, rtol=1e-5)


def test_refine_helps_and_one_stem_gets_a_companion():
    sources = toy_sources(torch.Generator().manual_seed(4), seconds=2.0); mix, stft = sources.sum(0), STFT(1024, 256)
    error = lambda e, s: 10 * np.log10(float((e - s).square().sum() / s.square().sum()))
    mag = magnitude(stft(sources)); wrong = mag * (1 + 0.6 * torch.randn(mag.shape, generator=torch.Generator().manual_seed(0))).abs()
    rough = stft.inverse(apply_mask(ratio_mask(wrong, exponent=2), stft(mix)), mix.shape[-1])
    assert error(refine(rough, mix, stft=stft), sources) < error(rough, sources) + 0.5
    assert error(refine(rough, mix, stft=stft, exponent=2.0, spread=0.0), sources) < error(rough, sources) - 0.5
    pair = torch.stack([rough[3], mix - rough[3]])
    torch.testing.assert_close(refine(rough[3:], mix, stft=stft)[0], refine(pair, mix, stft=stft)[0])


def test_mistakes_are_one_line():
    spec, mag = noisy(2, 2, 4, 5)
    for call in (lambda: wiener(spec, mag[:, :, :3]), lambda: wiener(spec.real, mag), lambda: wiener(spec, mag[0]), lambda: wiener(spec, mag, iterations=-1), lambda: wiener(spec, mag, spread=-0.1), lambda: wiener(spec, mag, exponent=0), lambda: wiener(spec, mag, window_frames=0),
                 lambda: wiener(spec, mag, initial="softmask"), lambda: wiener(spec, apply_mask(mag, spec)[:, :1]), lambda: refine(torch.zeros(2, 1, 9), torch.zeros(2, 9), stft=STFT(4, 2))):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
