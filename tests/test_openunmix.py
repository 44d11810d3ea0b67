"""Open-Unmix: the package's own network with the same weights, the published size, levels, lengths and gradients."""
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from sepnb.core import SepnbError
from sepnb.models.layers import bins_below, count_parameters
from sepnb.models.openunmix import OpenUnmix, OpenUnmixTarget, from_reference_state
from sepnb.stft import magnitude
from sepnb.synth import toy_sources

TINY = dict(sample_rate=8000, n_fft=256, hop_length=64, hidden=16, max_hz=2500.0)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.fixture
def reference(monkeypatch):
    "The package openunmix; its network does not use torchaudio, its imports want to see one."
    if importlib.util.find_spec("openunmix") is None: pytest.skip("package openunmix is not here; see tests/references.txt")
    try: importlib.import_module("torchaudio")
    except Exception: monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    return importlib.import_module("openunmix.model")


def music(b=2, channels=2, seconds=0.4):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=8000, channels=channels, stems=["bass", "vocals"]) for _ in range(b)])


def lively(net):
    "Random affine parameters and running statistics, as after some training."
    for name, x in (*net.named_parameters(), *net.named_buffers()):
        if any(k in name for k in ("scale", "var")): x.data = 0.5 + torch.rand_like(x)
        elif any(k in name for k in ("mean", "shift")): x.data = torch.randn_like(x) * 0.3
    return net


def pair(reference, bins, seen, channels, hidden, layers):
    theirs = lively(reference.OpenUnmix(nb_bins=bins, nb_channels=channels, hidden_size=hidden, nb_layers=layers, max_bin=seen))
    ours = OpenUnmixTarget(bins, seen, channels, hidden=hidden, layers=layers)
    ours.load_state_dict(from_reference_state(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("bins, seen, channels, hidden, layers, frames", [
    (2049, 1487, 2, 512, 3, 20), (129, 80, 2, 32, 3, 50), (129, 129, 1, 32, 2, 7), (65, 1, 2, 8, 1, 1), (33, 20, 4, 6, 3, 200)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_equals_the_package(reference, bins, seen, channels, hidden, layers, frames, scale):
    theirs, ours = pair(reference, bins, seen, channels, hidden, layers)
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())
    mag = scale * torch.rand(2, channels, bins, frames)
    with torch.no_grad(): torch.testing.assert_close(ours.eval()(mag), theirs.eval()(mag), atol=1e-5 * scale, rtol=1e-5)


def test_equals_the_package_in_training_with_its_gradients(reference):
    theirs, ours = pair(reference, 129, 80, 2, 32, 3)
    theirs.lstm.dropout = ours.lstm.dropout = 0.0
    mag, truth = torch.rand(3, 2, 129, 20), torch.rand(3, 2, 129, 20)
    for net in (theirs, ours): (net(mag) - truth).square().mean().backward()
    grads = from_reference_state({k: p.grad for k, p in theirs.named_parameters()})
    for name, p in ours.named_parameters(): torch.testing.assert_close(p.grad, grads[name], atol=1e-6, rtol=1e-4)
    after = from_reference_state(theirs.state_dict())
    for name, x in ours.state_dict().items(): torch.testing.assert_close(x, after[name])  # running statistics moved alike


def test_statistics_start_the_package_and_ours_alike(reference):
    mean, deviation = np.random.default_rng(0).random(129), 0.1 + np.random.default_rng(1).random(129)
    theirs = reference.OpenUnmix(nb_bins=129, nb_channels=2, hidden_size=16, max_bin=80, input_mean=mean, input_scale=deviation)
    ours = OpenUnmixTarget(129, 80, 2, hidden=16); ours.input.set_statistics(torch.from_numpy(mean), torch.from_numpy(deviation))
    renamed = from_reference_state(theirs.state_dict())
    for name in ("input.shift", "input.scale", "output.shift", "output.scale"): torch.testing.assert_close(ours.state_dict()[name], renamed[name])


def test_whole_separator_equals_the_package(reference):
    "Both pad differently, so the music begins and ends with silence; a whole number of hops gives both the same frames."
    pairs = {name: pair(reference, 129, 80, 2, 32, 3) for name in ("a", "b")}
    theirs = reference.Separator({k: v[0] for k, v in pairs.items()}, niter=0, sample_rate=8000.0, n_fft=256, n_hop=64).eval()
    ours = OpenUnmix(2, 2, **{**TINY, "hidden": 32, "max_hz": 80 * 8000 / 256}).eval()
    for target, (_, net) in zip(ours.targets, pairs.values()): target.load_state_dict(net.state_dict())
    mix = torch.nn.functional.pad(music().sum(1)[..., : 64 * 40], (256, 256))
    with torch.no_grad(): torch.testing.assert_close(ours(mix), theirs(mix), atol=1e-5, rtol=1e-4)


def test_published_size():
    assert bins_below(16000, 44100, 4096) == 1487
    model = OpenUnmix.preset("published", stems=1)
    linear, norms, affine = 2974 * 512 + 1024 * 512 + 512 * 4098, 2 * (512 + 512 + 4098), 2 * 1487 + 2 * 2049
    assert count_parameters(model) == linear + norms + affine + 3 * 2 * 4 * 256 * (512 + 256 + 2) == 8_893_348
    assert set(OpenUnmix.preset("small", stems=1).config.items()) ^ set(model.config.items()) == {("hidden", 512), ("hidden", 128)}  # width only


@pytest.mark.parametrize("stems", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1001])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_shapes_lengths_and_levels(stems, channels, length, scale):
    model = OpenUnmix(stems, channels, **TINY).eval()
    mix = scale * torch.randn(2, channels, length); kept = mix.clone()
    out = model(mix)
    assert out.shape == (2, stems, channels, length) and out.isfinite().all() and torch.equal(mix, kept)
    assert out.abs().max() < 20 * mix.abs().max()
    if stems > 1: torch.testing.assert_close(OpenUnmix(stems, channels, mask_exponent=1.0, **TINY).eval()(mix).sum(1), mix, atol=1e-5 * scale, rtol=1e-3)


def test_silence_and_precision():
    model = OpenUnmix(2, 2, **TINY).eval(); mix = music().sum(1); single = model(mix)
    assert not model(0 * mix).any()
    torch.testing.assert_close(model.double()(mix.double()).float(), single, atol=1e-5, rtol=1e-4)


def test_networks_are_independent():
    model = OpenUnmix(2, 2, **TINY).eval(); mix = music().sum(1); before = model(mix)
    for p in model.targets[1].parameters(): p.data += 0.1
    after = model(mix)
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.allclose(before[:, 1], after[:, 1])
    assert all((a != b).any() for (n, a), b in zip(model.targets[0].named_parameters(), model.targets[1].parameters()) if "fc" in n)


def test_calibration_takes_the_statistics_of_the_mono_magnitude():
    model = OpenUnmix(2, 2, **TINY); mix = music(b=3).sum(1)
    model.calibrate(mix)
    mono = magnitude(model.stft(mix)).double().mean(1).transpose(0, 1).flatten(1).numpy()[:80]  # (f, all frames)
    deviation = np.maximum(mono.std(1), 1e-4 * magnitude(model.stft(mix)).double().mean(1).transpose(0, 1).flatten(1).numpy().std(1).max())
    for target in model.targets:
        np.testing.assert_allclose(target.input.shift.detach(), -mono.mean(1), rtol=1e-5)
        np.testing.assert_allclose(target.input.scale.detach(), 1 / deviation, rtol=1e-4)
        assert target.input.shift.requires_grad and target.input.scale.requires_grad


def test_gradients_and_a_batch_by_heart():
    model = OpenUnmix(2, 2, **{**TINY, "hidden": 32}, dropout=0.0); sources = music(); mix = sources.sum(1); model.calibrate(mix)
    mag, truth = magnitude(model.stft(mix)), magnitude(model.stft(sources))
    optimiser, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(120):
        loss = (model.magnitudes(mag) - truth).square().mean()
        optimiser.zero_grad(); loss.backward(); losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimiser.step()
    assert losses[0] > 10 * losses[-1]


def test_silent_batch_gives_finite_gradients():
    model = OpenUnmix(2, 2, mask_exponent=1.0, **TINY)
    model(torch.zeros(2, 2, 500)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_config_rebuilds_the_model():
    model = OpenUnmix(3, 1, mask_exponent=2.0, **TINY); mix = torch.randn(2, 1, 900); model.calibrate(mix); model(mix)
    again = OpenUnmix(**model.config).eval(); again.load_state_dict(model.state_dict())
    assert torch.equal(again(mix), model.eval()(mix)) and again.config == model.config


def test_mistakes_are_one_line():
    model = OpenUnmix(2, 2, **TINY)
    for call in (lambda: OpenUnmix(hidden=7), lambda: model.calibrate(torch.zeros(1, 2, 900)), lambda: model(torch.zeros(1, 1, 9)),
                 lambda: model.set_statistics(torch.ones(5), torch.ones(5)), lambda: from_reference_state({}), lambda: OpenUnmix.preset("huge")):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="depth"): OpenUnmix(depth=9)
