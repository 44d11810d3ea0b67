"""U-Nets: published sizes, the two published orders of layers, slices, levels, gradients, a batch by heart, any length."""
import pytest
import torch
from torch.nn import functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.models.layers import count_parameters
from sepnb.models.unet import Double, Halve, SpecUNet, UNet, extend_mask, shared_powers, slices, unslice
from sepnb.stft import magnitude
from sepnb.synth import toy_sources

TINY = dict(sample_rate=8000, n_fft=256, hop_length=128, widths=[4, 6, 8], frames=None)
JANSSON = dict(down="conv norm act skip", up="conv norm act drop", last="conv")


@pytest.fixture(autouse=True)
def seeded(two_threads): torch.manual_seed(0); torch.set_num_threads(1)


def music(b=2, channels=2, seconds=0.5):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=8000, channels=channels, stems=["drums", "vocals"]) for _ in range(b)])


def test_published_sizes():
    conv = lambda net: sum(p.numel() for p in net.parameters() if p.ndim == 4)
    assert conv(UNet(2)) == 9_819_232 and conv(UNet(1, **JANSSON)) == 25 * (16 + 174592 + 131072 + 65536 + 16384 + 4096 + 1024 + 32)
    for stems in (2, 4): assert count_parameters(SpecUNet.preset("spleeter", stems=stems)) == stems * count_parameters(UNet(2))
    assert SpecUNet.preset("spleeter").seen == 1024 and SpecUNet.preset("jansson").seen == 512 and SpecUNet.preset("jansson").channels == 1


@pytest.mark.parametrize("act", ["leaky_relu", "elu"])
def test_order_of_layers_is_the_published_one(act):
    "Both networks written out by hand, with the same weights."
    acts = dict(leaky_relu=lambda x: F.leaky_relu(x, 0.2), elu=F.elu)[act]
    x = torch.rand(2, 2, 16, 24)
    net = UNet(2, [3, 4, 5], acts=[act, act]).eval()
    c1 = net.before[0](x); c2 = net.before[1](acts(net.after[0][0](c1))); c3 = net.before[2](acts(net.after[1][0](c2)))
    u1 = net.ups[0][2](acts(net.ups[0][0](c3))); u2 = net.ups[1][2](acts(net.ups[1][0](torch.cat([c2, u1], 1))))
    u3 = net.ups[2][2](acts(net.ups[2][0](torch.cat([c1, u2], 1))))
    torch.testing.assert_close(net(x), torch.sigmoid(net.ups[2][3](u3)))
    net = UNet(2, [3, 4, 5], acts=[act, "relu"], **JANSSON).eval()
    e = [x]
    for k in range(3): e.append(acts(net.before[k][1](net.before[k][0](e[-1]))))
    y = F.relu(net.ups[0][1](net.ups[0][0](e[3])))
    y = F.relu(net.ups[1][1](net.ups[1][0](torch.cat([e[2], y], 1))))
    torch.testing.assert_close(net(x), torch.sigmoid(net.ups[2][0](torch.cat([e[1], y], 1))))


@pytest.mark.parametrize("f, n", [(2, 2), (8, 4), (16, 10)])
def test_halving_is_tensorflows_same_and_doubling_its_transpose(f, n):
    halve, double = Halve(2, 3).double(), Double(3, 2).double()
    with torch.no_grad(): double.weight.copy_(halve.weight); halve.bias.zero_(); double.bias.zero_()
    x, y = torch.randn(1, 2, f, n, dtype=torch.float64), torch.randn(1, 3, f // 2, n // 2, dtype=torch.float64)
    loop = torch.zeros(1, 3, f // 2, n // 2, dtype=torch.float64)
    for i in range(f // 2):
        for j in range(n // 2):
            for a in range(5):
                for b in range(5):
                    if 0 <= 2 * i + a - 1 < f and 0 <= 2 * j + b - 1 < n: loop[0, :, i, j] += halve.weight[:, :, a, b] @ x[0, :, 2 * i + a - 1, 2 * j + b - 1]
    torch.testing.assert_close(halve(x), loop)
    torch.testing.assert_close((halve(x) * y).sum(), (x * double(y)).sum())


def test_dropout_is_in_the_three_deepest_stages():
    net = UNet(2, [2, 2, 2, 2, 2])
    assert [sum(isinstance(m, torch.nn.Dropout) for m in up) for up in net.ups] == [1, 1, 1, 0, 0]
    assert not any(isinstance(m, torch.nn.Dropout) for m in UNet(2, [2, 2], dropout=0.0).modules())


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 20), st.integers(1, 30), st.integers(1, 16))
def test_slices_come_together_again(b, n, f, bins, frames):
    mag = torch.rand(b, 2, f, n)
    cut = slices(mag, bins, frames)
    assert cut.shape == (b * -(-n // frames), 2, bins, frames)
    whole = unslice(cut, b, min(f, bins), n)
    assert torch.equal(whole, mag[:, :, :bins]) and torch.isclose(cut.sum(), mag[:, :, :bins].sum())


def test_masks_above_and_shares():
    mag = torch.rand(2, 3, 2, 7, 5); mag[..., 2, :] = 0
    for exponent in (0.5, 1.0, 2.0):
        shares = shared_powers(mag, exponent)
        torch.testing.assert_close(shares.sum(1), torch.ones(2, 2, 7, 5)); torch.testing.assert_close(shares[..., 2, :], torch.full((2, 3, 2, 5), 1 / 3))
    torch.testing.assert_close(shares, (mag**2 + 1e-10 / 3) / ((mag**2).sum(1, keepdim=True) + 1e-10))
    assert torch.equal(extend_mask(shares, 7, "zeros"), shares) and not extend_mask(shares, 9, "zeros")[..., 7:, :].any()
    torch.testing.assert_close(extend_mask(shares, 9, "average")[..., 8, :], shares.mean(-2))


@pytest.mark.parametrize("stems, channels", [(1, 1), (1, 2), (2, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("level, exponent", [("none", None), ("rms", 2.0), ("peak", 1.0)])
def test_shapes_lengths_and_levels(stems, channels, level, exponent):
    exponent = None if stems == 1 else exponent
    model = SpecUNet(stems, channels, level=level, mask_exponent=exponent, extension="average", max_hz=2500.0, **{**TINY, "frames": 16}).eval()
    with torch.no_grad():
        for length in (1, 127, 128, 129, 3001):
            mix = torch.randn(2, channels, length); kept = mix.clone(); out = model(mix)
            assert out.shape == (2, stems, channels, length) and out.isfinite().all() and torch.equal(mix, kept)
            if exponent: torch.testing.assert_close(out.sum(1), mix, atol=1e-5, rtol=1e-4)
        for scale in (1e-4, 1e2):
            scaled = model(mix * scale); assert scaled.isfinite().all()
            if level != "none": torch.testing.assert_close(scaled / scale, out, atol=1e-4, rtol=1e-3)
        assert not model(torch.zeros(1, channels, 700)).any()


def test_zeros_above_leave_nothing_there():
    model = SpecUNet(2, 1, max_hz=2000.0, mask_exponent=2.0, **TINY).eval()
    with torch.no_grad(): spec = model.stft(model(torch.randn(1, 1, 4096))).abs()
    assert spec[..., 70:, 3:-3].max() < 0.01 * spec[..., :60, 3:-3].max() # 2 kHz is bin 64; overlapping windows smear a little


def test_slices_are_independent_and_one_by_one_is_all_at_once():
    model = SpecUNet(2, 2, **{**TINY, "frames": 16}).eval(); mag = torch.rand(2, 2, 129, 50)
    with torch.no_grad():
        out = model.masks(mag)
        for k, (a, b) in enumerate(((0, 16), (16, 32), (32, 48))): torch.testing.assert_close(model.masks(mag[..., a:b]), out[..., a:b])
        torch.testing.assert_close(model.masks(mag[1:]), out[1:])


def test_a_frame_centred_after_the_end_is_not_shown():
    model = SpecUNet(2, 1, mask_exponent=2.0, **{**TINY, "frames": 32}).eval(); mix = torch.randn(1, 1, 128 * 20 + 60)
    seen = []
    model.masks = lambda mag, masks=model.masks: seen.append(mag.shape[-1]) or masks(mag)
    with torch.no_grad(): model(mix); model(mix[..., : 128 * 20])
    assert seen == [21, 21]


def test_training_and_a_batch_by_heart():
    model = SpecUNet(2, 2, level="rms", power=0.5, extension="average", dropout=0.0, **TINY); sources = music(); mix = sources.sum(1)
    mag, truth = magnitude(model.stft(mix)), magnitude(model.stft(sources))
    optimiser, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(60):
        loss = (model.magnitudes(mag) - truth).abs().mean(); optimiser.zero_grad(); loss.backward(); optimiser.step(); losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[0] > 3 * losses[-1]


def test_every_published_parameter_has_a_gradient_and_silence_is_harmless():
    for preset in ("spleeter", "jansson"):
        model = SpecUNet.preset(preset, widths=[4, 4, 4, 4, 4, 4], frames=64).train()
        model(torch.randn(1, model.channels, 20000)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model = SpecUNet(2, 2, level="rms", mask_exponent=1.0, **TINY); model(torch.zeros(2, 2, 2000)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_config_rebuilds_the_model():
    for config in (dict(), dict(level="peak", power=0.5, extension="average", mask_exponent=2.0, acts=["elu", "elu"]), JANSSON):
        model = SpecUNet(2, 1, **TINY, **config); mix = torch.randn(2, 1, 900); model(mix)
        again = SpecUNet(**model.config).eval(); again.load_state_dict(model.state_dict())
        assert torch.equal(again(mix), model.eval()(mix)) and again.config == model.config


def test_mistakes_are_one_line():
    model = SpecUNet(2, 2, **TINY)
    for call in (lambda: SpecUNet(frames=100), lambda: SpecUNet(widths=[]), lambda: SpecUNet(level="loud"), lambda: SpecUNet(extension="more"), lambda: SpecUNet(up="conv swish"),
                 lambda: SpecUNet(acts=["tanh", "relu"]), lambda: SpecUNet.preset("huge"), lambda: model(torch.zeros(1, 1, 9)), lambda: SpecUNet(1, mask_exponent=2.0)):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="depth"): SpecUNet(depth=9)
