"""Wave-U-Net: published sizes, the network written out by another route, context, conservation, levels, lengths, gradients."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sepnb.core import SepnbError
from sepnb.models.layers import count_parameters
from sepnb.models.wave_unet import Between, WaveUNet, bottom_for, lengths_from_bottom
from sepnb.synth import toy_sources

TINY = dict(sample_rate=8000, levels=3, filters=6, down=7, up=3)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0); torch.set_num_threads(1)


def music(b=1, channels=2, seconds=0.25):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=8000, channels=channels, stems=["drums", "vocals"]) for _ in range(b)])


def test_published_sizes_and_lengths():
    m4, m5, m6 = (count_parameters(WaveUNet.preset(name)) for name in ("m4", "m5", "m6"))
    assert m4 == 10_263_390 and round(m4 / 1e6, 2) == 10.26
    assert m5 - m4 == sum(24 * i for i in range(2, 14)) and m6 - m4 == 4 * 27  # a share for each interpolated channel; two more stereo outputs
    model = WaveUNet.preset("m4")
    assert [layer.out_channels for layer in model.down] == [24 * i for i in range(1, 13)] and model.bottom.out_channels == 312
    assert lengths_from_bottom(bottom_for(16384, levels=12, down=15, up=5), levels=12, down=15, up=5) == (147443, 16389) and model.valid_length(16384) == 147443
    assert model.config["sample_rate"] == 22050 and not model.config["normalise"] and model.config["activation"] == "tanh"


@pytest.mark.parametrize("upsampling", ["linear", "learnt"])
@pytest.mark.parametrize("activation", ["linear", "tanh"])
@pytest.mark.parametrize("output", ["difference", "direct"])
def test_network_written_out(upsampling, activation, output):
    model = WaveUNet(3, 2, **TINY, upsampling=upsampling, activation=activation, output=output, normalise=False).double()
    for p in model.parameters(): p.data += 0.05 * torch.randn_like(p)
    w = {k: v.detach() for k, v in model.state_dict().items()}
    t = 101; n = model.valid_length(t)
    mix = torch.randn(1, 2, t, dtype=torch.float64)
    x = y = F.pad(mix, ((n - t) // 2, n - t - (n - t) // 2))
    convolve = lambda x, name: F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"])
    act = lambda x: torch.maximum(x, 0.2 * x)
    cut = lambda x, like: x[..., (x.shape[-1] - like.shape[-1]) // 2:][..., : like.shape[-1]]
    skips = []
    for i in range(3):
        skips.append(act(convolve(y, f"down.{i}"))); y = skips[-1][..., ::2]
    y = act(convolve(y, "bottom"))
    for i in range(3):
        up = torch.zeros(*y.shape[:2], 2 * y.shape[-1] - 1, dtype=y.dtype)
        a = torch.sigmoid(w[f"between.{i}.share"])[:, None] if upsampling == "learnt" else 0.5
        up[..., ::2] = y; up[..., 1::2] = a * y[..., :-1] + (1 - a) * y[..., 1:]
        y = act(convolve(torch.cat([cut(skips[-1 - i], up), up], 1), f"up.{i}"))
    y = convolve(torch.cat([cut(x, y), y], 1), "out")
    y = (torch.tanh(y) if activation == "tanh" else y)[..., (y.shape[-1] - t) // 2:][..., :t].reshape(1, -1, 2, t)
    if output == "difference": y = torch.cat([y, (mix - y.sum(1))[:, None]], 1)
    torch.testing.assert_close(model(mix), y)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 5000), levels=st.integers(0, 6), down=st.integers(0, 5), up=st.integers(0, 3))
def test_lengths_are_the_smallest_that_fit(length, levels, down, up):
    shape = dict(levels=levels, down=2 * down + 1, up=2 * up + 1)
    n = bottom_for(length, **shape)
    assert n >= 1 and lengths_from_bottom(n, **shape)[1] >= length
    assert n == 1 or lengths_from_bottom(n - 1, **shape)[1] < length


@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 700), stems=st.integers(1, 4), channels=st.integers(1, 3), output=st.sampled_from(["difference", "direct"]), levels=st.integers(0, 4))
def test_any_length_in_same_length_out(length, stems, channels, output, levels):
    x = torch.randn(2, channels, length)
    y = WaveUNet(stems, channels, **{**TINY, "levels": levels}, output=output).eval()(x)
    assert y.shape == (2, stems, channels, length) and y.isfinite().all()
    if output == "difference" and stems > 1: torch.testing.assert_close(y.sum(1), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("normalise", [True, False])
def test_difference_output_conserves_at_any_level(scale, normalise):
    x = scale * (music(2).sum(1) + 0.1); kept = x.clone()  # with an offset, too
    y = WaveUNet(4, 2, **TINY, normalise=normalise)(x)
    torch.testing.assert_close(y.sum(1), x, atol=1e-6 * y.abs().max().item(), rtol=1e-5)
    assert torch.equal(x, kept)


def test_level_silence_and_precision():
    model = WaveUNet(2, 2, **TINY).eval(); x = music(2).sum(1)
    with torch.no_grad():
        y = model(x)
        for scale in (1e-4, 1e2): torch.testing.assert_close(model(scale * x) / scale, y, atol=1e-5, rtol=1e-3)
        assert not model(0 * x).any()
        torch.testing.assert_close(model.double()(x.double()).float(), y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["m4", "m6"])
def test_published_output_is_bounded(name):
    model = WaveUNet.preset(name, levels=3, filters=4).eval()
    with torch.no_grad(): y = model(50 * torch.randn(1, 2, 300))
    assert y[:, :-1].abs().max() <= 1 and y.shape[1] == model.stems


def test_chunks_with_context_equal_the_whole():
    model = WaveUNet(2, 2, **TINY, normalise=False).eval(); x = torch.randn(1, 2, 3000)
    context = 8 * (model.valid_length(400) - 400)  # generous, a multiple of 2^levels
    with torch.no_grad(): whole, chunk = model(x), model(x[..., 1200 - context: 1600 + context])[..., context: -context]
    offset = (model.valid_length(3000) - 3000) // 2 % 8, (model.valid_length(400 + 2 * context) - 400 - 2 * context) // 2 % 8
    if offset[0] == offset[1]: torch.testing.assert_close(chunk, whole[..., 1200:1600], atol=1e-5, rtol=1e-4)
    moved = model(x.roll(8, -1))
    torch.testing.assert_close(moved[..., 400:-400], whole.roll(8, -1)[..., 400:-400], atol=1e-5, rtol=1e-4)


def test_receptive_field_is_the_context():
    model = WaveUNet(1, 1, **TINY, normalise=False).double()
    n = model.valid_length(1); x = torch.randn(1, 1, n, dtype=torch.float64, requires_grad=True)
    y = model.network(x); y[..., y.shape[-1] // 2].sum().backward()
    seen = x.grad[0, 0].nonzero().flatten()
    assert 0.8 * n < len(seen) <= n


def test_interpolation_is_torchs():
    x = torch.randn(2, 3, 17, dtype=torch.float64)
    torch.testing.assert_close(Between(3)(x), F.interpolate(x, size=33, mode="linear", align_corners=True))
    learnt = Between(3, learnt=True).double(); learnt.share.data = torch.tensor([-2.0, 0.0, 3.0]).double()
    y, a = learnt(x), 1 / (1 + np.exp([2.0, 0.0, -3.0]))
    np.testing.assert_allclose(y[:, :, 1::2].detach(), a[:, None] * x[..., :-1].numpy() + (1 - a[:, None]) * x[..., 1:].numpy())
    assert torch.equal(y[..., ::2], x) and Between(3)(x[..., :1]).shape[-1] == 1


@pytest.mark.parametrize("output", ["difference", "direct"])
def test_gradients_and_a_batch_by_heart(output):
    model = WaveUNet(2, 2, **{**TINY, "filters": 8, "levels": 4}, output=output, upsampling="learnt"); s = music()
    optimiser, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(120):
        loss = (model(s.sum(1)) - s).abs().mean()
        optimiser.zero_grad(); loss.backward(); losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        optimiser.step()
    assert losses[0] > 4 * losses[-1]
    model.zero_grad(); model(torch.zeros(2, 2, 500)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_config_rebuilds_the_model():
    model = WaveUNet(3, 1, **TINY, output="direct"); x = torch.randn(1, 1, 500)
    again = WaveUNet(**model.config); again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x)) and again.config == model.config


def test_mistakes_are_one_line():
    for call in (lambda: WaveUNet(down=4), lambda: WaveUNet(up=2), lambda: WaveUNet(output="sum"), lambda: WaveUNet(upsampling="nearest"),
                 lambda: WaveUNet(activation="relu"), lambda: WaveUNet(activation="tanh"), lambda: WaveUNet.preset("m9"), lambda: WaveUNet(0),
                 lambda: WaveUNet(2, 2, **TINY)(torch.zeros(1, 1, 9)), lambda: WaveUNet(2, 2, **TINY)(torch.zeros(1, 2, 0))):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="depth"): WaveUNet(depth=9)
