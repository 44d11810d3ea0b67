"""What all mask models share: levels, bins, axes, statistics, and the way from mixture to estimates."""
import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from sepnb.core import SepnbError
from sepnb.models.layers import (BinAffine, MaskModel, Standardise, WaveModel, bin_statistics, bins_below, centre_trim, count_parameters,
                                 extend_bins, frames_first, relative_db, rms_level, stems_from_frames)
from sepnb.stft import magnitude
from sepnb.synth import noise, toy_sources


def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class Shares(MaskModel):
    "Fixed shares of the mixture, one weight a stem: what comes out is known."
    def __init__(self, stems=2, channels=2, *, share=0.5, **shared):
        super().__init__(stems, channels, own=dict(share=share), **shared)
        self.share = torch.nn.Parameter(torch.full((stems, 1, 1, 1), share))

    def network(self, mag): return self.share * mag[:, None]


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e2, 1e6])
@pytest.mark.parametrize("channels", [1, 2])
def test_features_do_not_know_the_level(scale, channels):
    mag = rand(3, channels, 33, 20) ** 3 * torch.tensor([1e-3, 1.0, 30.0])[:, None, None, None]
    torch.testing.assert_close(relative_db(mag * scale), relative_db(mag), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close((rms_level(mag * scale) / rms_level(mag)).flatten(), torch.full((3,), scale), atol=0, rtol=1e-4)
    power = (10 ** (relative_db(mag, floor_db=-300) / 10)).mean((1, 2, 3))
    torch.testing.assert_close(power, torch.ones(3), atol=1e-4, rtol=1e-4)


def test_features_of_an_example_do_not_depend_on_its_neighbours():
    mag = rand(2, 2, 33, 20)
    torch.testing.assert_close(relative_db(mag)[:1], relative_db(mag[:1]))
    mag[1] = 0
    assert relative_db(mag)[0].isfinite().all() and (relative_db(mag)[1] == -80).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5000), st.sampled_from([8000, 16000, 44100, 48000]), st.floats(1, 30000))
@example(700, 8000, 80.0) # the limit is a bin; rfftfreq takes it for a little less
def test_bins_below_counts_frequencies(n_fft, rate, max_hz):
    assert bins_below(max_hz, rate, n_fft) == max(1, int((np.arange(n_fft // 2 + 1) * rate / n_fft < max_hz).sum()))
    assert bins_below(None, rate, n_fft) == n_fft // 2 + n_fft % 2


def test_bins_of_the_published_models():
    assert bins_below(16000, 44100, 4096) == 1487 and bins_below(None, 44100, 512) == 256 and bins_below(1e9, 44100, 4096) == 2049


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5), st.integers(0, 4))
def test_axes_go_there_and_back(b, s, c, f, n, more):
    x = rand(b, s, c, f, n)
    frames = torch.cat([frames_first(x[:, k]) for k in range(s)], -1)
    assert torch.equal(stems_from_frames(frames, s, c), x)
    wide = extend_bins(x, f + more)
    assert wide.shape == (b, s, c, f + more, n) and torch.equal(wide[..., :f, :], x)
    assert all(torch.equal(wide[..., k, :], x[..., -1, :]) for k in range(f, f + more))


def test_extended_masks_still_sum_to_one():
    mask = torch.softmax(torch.randn(1, 3, 2, 5, 4, generator=torch.Generator().manual_seed(0)), 1)
    torch.testing.assert_close(extend_bins(mask, 9).sum(1), torch.ones(1, 2, 9, 4))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3))
def test_statistics_in_pieces_are_those_of_the_whole(lengths, channels):
    whole = 1e3 + rand(channels, 7, sum(lengths))
    mean, deviation = bin_statistics(whole.split(lengths, -1))
    mono = whole.double().numpy().mean(0)
    np.testing.assert_allclose(mean, mono.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(deviation, mono.std(-1), atol=1e-6)


def test_standardise_and_affine_have_their_formulas_and_gradients():
    standardise, affine, x = Standardise(4), BinAffine(4), rand(3, 2, 4)
    mean, deviation = torch.arange(6.0).double(), torch.tensor([1.0, 2.0, 0.0, 1e-9, 5.0, 10.0]).double()
    standardise.set_statistics(mean, deviation)
    floored = deviation.clamp_min(1e-3)[:4].float()
    torch.testing.assert_close(standardise(x), (x - mean[:4].float()) / floored)
    torch.testing.assert_close(affine(x), x + 1)
    (standardise(x).sum() + affine(x).sum()).backward()
    assert all(p.grad is not None and p.requires_grad for m in (standardise, affine) for p in m.parameters())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("exponent", [None, 1.0, 2.0])
def test_known_shares_come_out_at_any_length(channels, length, exponent):
    model = Shares(2, channels, sample_rate=8000, n_fft=256, hop_length=64, mask_exponent=exponent, share=0.25)
    mix = noise(torch.Generator().manual_seed(length), seconds=1, channels=3)[None, :channels, :length].expand(2, -1, -1)
    kept = mix.clone(); out = model(mix)
    expected = 0.25 if exponent is None else 0.5  # equal magnitudes share the mixture equally
    assert out.shape == (2, 2, channels, length) and torch.equal(mix, kept)
    torch.testing.assert_close(out, expected * mix[:, None].expand_as(out), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [None, 1.0])
def test_linear_network_gives_linear_separator(scale, dtype, exponent):
    model = Shares(2, 2, sample_rate=8000, n_fft=256, hop_length=64, mask_exponent=exponent).to(dtype)
    mix = toy_sources(torch.Generator().manual_seed(0), seconds=0.3, sample_rate=8000).sum(0)[None].to(dtype)
    torch.testing.assert_close(model(mix * scale), scale * model(mix), atol=1e-6 * scale, rtol=1e-4)
    assert model(mix).dtype == dtype and not model(0 * mix).any()


def test_gradients_reach_weights_and_are_finite_in_silence():
    for exponent in (None, 1.0, 2.0):
        model = Shares(2, 1, sample_rate=8000, n_fft=256, hop_length=64, mask_exponent=exponent)
        mix = torch.zeros(1, 1, 800); mix[..., 400:] = 0.1 * rand(400)
        mix.requires_grad_()
        (model(mix)[:, 0] - mix).abs().sum().backward()
        assert model.share.grad.isfinite().all() and mix.grad.isfinite().all()


def test_a_nan_does_not_reach_its_neighbours():
    model = Shares(2, 1, sample_rate=8000, n_fft=256, hop_length=64)
    mix = rand(2, 1, 800); clean = model(mix)
    mix[0, 0, 5] = torch.nan
    assert torch.equal(model(mix)[1], clean[1]) and model(mix)[0].isnan().any()


def test_config_is_plain_and_rebuilds_the_model():
    model = Shares(3, 1, share=0.2, sample_rate=8000, n_fft=256, hop_length=64, mask_exponent=2)
    config = json.loads(json.dumps(model.config))
    assert config == model.config == dict(stems=3, channels=1, sample_rate=8000, n_fft=256, hop_length=64, mask_exponent=2, share=0.2)
    again = Shares(**config); again.load_state_dict(model.state_dict())
    mix = rand(1, 1, 500)
    assert torch.equal(again(mix), model(mix)) and count_parameters(model) == 3
    assert list(model.state_dict()) == ["share"]  # the STFT owes the checkpoint nothing


def test_mistakes_are_one_line():
    model = Shares(2, 2, sample_rate=8000, n_fft=256, hop_length=64)
    bad = [lambda: Shares(0), lambda: Shares(2, 0), lambda: Shares(1, mask_exponent=1.0), lambda: Shares(mask_exponent=0.0), lambda: Shares(n_fft=256, hop_length=256),
           lambda: Shares.preset("none"), lambda: model(rand(2, 100)), lambda: model(rand(1, 1, 100)), lambda: model(torch.zeros(1, 2, 0)),
           lambda: model.magnitudes(rand(1, 2, 128, 5)), lambda: bin_statistics([]), lambda: Standardise(5).set_statistics(rand(4), rand(4))]
    for call in bad:
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="depth"): Shares(depth=3)
    with pytest.raises(NotImplementedError): MaskModel(n_fft=256, hop_length=64)(rand(1, 2, 100))


def test_magnitudes_and_waveforms_agree():
    model = Shares(2, 2, sample_rate=8000, n_fft=256, hop_length=64)
    mix = rand(1, 2, 1024)
    torch.testing.assert_close(model.magnitudes(magnitude(model.stft(mix))), magnitude(model.stft(model(mix))), atol=1e-4, rtol=1e-4)


class Blocks(WaveModel):
    "Whole blocks only, a bias and a curve: loses samples and knows the level, unless its base does its work."
    def __init__(self, stems=2, channels=2, *, block=4, bend=0.0, **shared):
        super().__init__(stems, channels, own=dict(block=block, bend=bend), **shared)
        self.bend = torch.nn.Parameter(torch.tensor(bend))

    def valid_length(self, length): return -(-length // self.config["block"]) * self.config["block"]

    def network(self, x):
        assert x.shape[-1] % self.config["block"] == 0
        return (x + self.bend * (1 + x.square()))[:, None].expand(-1, self.stems, -1, -1)


class Context(WaveModel):
    "Looks two samples to each side and gives nothing for them, as networks without padding do."
    def valid_length(self, length): return length + 4
    def network(self, x): return x.unfold(-1, 5, 1).sum(-1)[:, None].expand(-1, self.stems, -1, -1)


def waves(b=3, channels=2, length=501): return torch.randn(b, channels, length, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_waves_keep_their_length_and_place(length, block, channels, stems, normalise):
    model, mix = Blocks(stems, channels, block=block, normalise=normalise), waves(2, channels, length); kept = mix.clone()
    torch.testing.assert_close(model(mix), mix[:, None].expand(-1, stems, -1, -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(mix, kept)


@pytest.mark.parametrize("length", [1, 2, 5, 100, 101])
def test_a_shorter_output_is_the_middle(length):
    mix = waves(1, 1, length); padded = torch.nn.functional.pad(mix, (2, 2))
    expected = sum(padded[..., k : k + length] for k in range(5))
    torch.testing.assert_close(Context(1, 1, normalise=False)(mix)[:, 0], expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 1e2, 1e6])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_normalised_waves_do_not_know_the_level(scale, channels):
    model, mix = Blocks(2, channels, bend=0.3), waves(channels=channels)
    torch.testing.assert_close(model(scale * mix) / scale, model(mix), atol=1e-4, rtol=1e-4)
    raw = Blocks(2, channels, bend=0.3, normalise=False)
    if scale != 1: assert not torch.allclose(raw(scale * mix) / scale, raw(mix), atol=1e-3)


def test_what_the_network_sees_has_mean_zero_and_deviation_one():
    seen = []
    class Spy(WaveModel):
        def network(self, x): seen.append(x); return x[:, None].expand(-1, self.stems, -1, -1)
    mix = 5 + torch.tensor([1e-3, 1.0, 30.0])[:, None, None] * waves()
    out = Spy()(mix); mono = seen[0].mean(1)
    torch.testing.assert_close(mono.mean(-1), torch.zeros(3), atol=1e-3, rtol=0); torch.testing.assert_close(mono.std(-1, correction=0), torch.ones(3), atol=1e-2, rtol=0)
    torch.testing.assert_close(out[:, 1], mix, atol=1e-4, rtol=1e-5)
    Spy(normalise=False)(mix); assert torch.equal(seen[1], mix)


def test_silence_constants_and_cancelling_channels():
    model = Blocks(bend=0.3)
    assert not model(torch.zeros(2, 2, 77)).any()
    torch.testing.assert_close(model(torch.full((1, 2, 77), 0.25)), torch.full((1, 2, 2, 77), 0.25))
    side = waves(1, 1); opposite = torch.cat([side, -side], 1)
    assert model(opposite).isfinite().all() and model(opposite).abs().max() < 20 * opposite.abs().max()
    mixed = torch.cat([waves(1), torch.zeros(1, 2, 501)])
    torch.testing.assert_close(model(mixed)[:1], model(waves(1))); assert not model(mixed)[1].any()
    mix = torch.zeros(2, 2, 50); mix[0] = waves(1, 2, 50)[0]; mix.requires_grad_()
    model(mix).square().sum().backward()
    assert mix.grad.isfinite().all() and model.bend.grad.isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_waves_keep_their_precision(dtype):
    assert Blocks().to(dtype)(waves().to(dtype)).dtype == dtype and Blocks()(waves().double()).dtype == torch.float64


def test_a_nan_in_a_wave_does_not_reach_its_neighbours():
    model, mix = Blocks(bend=0.3), waves(); clean = model(mix); mix[0, 0, 5] = torch.nan
    assert torch.equal(model(mix)[1:], clean[1:]) and model(mix)[0].isnan().any()


def test_wave_models_have_a_config_and_say_what_is_wrong():
    model = Blocks(3, 1, block=8, bend=0.1, sample_rate=8000); again = Blocks(**json.loads(json.dumps(model.config)))
    assert model.config == again.config == dict(stems=3, channels=1, sample_rate=8000, normalise=True, block=8, bend=0.1)
    assert torch.equal(again(waves(1, 1)), model(waves(1, 1))) and (model.stems, model.channels, model.sample_rate) == (3, 1, 8000)
    for call in (lambda: Blocks(0), lambda: Blocks(2, 0), lambda: model(waves()), lambda: model(waves(1, 1)[0]), lambda: model(torch.zeros(1, 1, 0)),
                 lambda: Blocks.preset("huge"), lambda: centre_trim(torch.zeros(3), 4)):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(NotImplementedError): WaveModel()(waves())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(0, 60))
def test_centre_trim_takes_as_much_from_both_ends(length, more):
    x = torch.arange(length + more); y = centre_trim(x, length)
    assert len(y) == length and 0 <= (x[-1] - y[-1]) - (y[0] - x[0]) <= 1
