"""The masking RNNs: sizes by formula, equations 4 and 5, levels, lengths, gradients, and another way to the same numbers."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError
from sepnb.masks import ratio_mask
from sepnb.models.layers import count_parameters
from sepnb.models.mask_rnn import DeepMaskInference, FrameLayer, JointMaskRNN, RecurrentLayer, joint_mask
from sepnb.stft import magnitude
from sepnb.synth import toy_sources

TINY = dict(sample_rate=8000, n_fft=256, hop_length=64)
MAKERS = dict(dmi=lambda **k: DeepMaskInference(**{**TINY, "hidden": 8, **k}), joint=lambda **k: JointMaskRNN(**{**TINY, "hidden": [16, 12, 8], **k}))
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def music(b=2, channels=2, seconds=0.4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=8000, channels=channels, stems=["bass", "vocals"]) for _ in range(b)])


@every
@pytest.mark.parametrize("stems", [2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 1001])
def test_shapes_and_conservation_of_the_input(make, stems, channels, length):
    model = make(stems=stems, channels=channels).eval()
    mix = torch.randn(2, channels, length); kept = mix.clone()
    out = model(mix)
    assert out.shape == (2, stems, channels, length) and out.isfinite().all() and torch.equal(mix, kept)
    masks = model.masks(magnitude(model.stft(mix)))
    assert masks.min() >= 0 and masks.max() <= 1
    assert torch.equal(masks[..., -1, :], masks[..., -2, :])  # the bin at half the rate


@every
@pytest.mark.parametrize("max_hz, bins", [(None, 128), (2000.0, 64), (1e9, 129)])
def test_bins_above_the_limit_are_not_heard_and_take_the_last_mask(make, max_hz, bins):
    model = make(max_hz=max_hz).eval()
    mag = torch.rand(1, 2, 129, 12) + 0.1
    masks = model.masks(mag)
    assert model.bins == bins and torch.equal(masks[..., bins:, :], masks[..., bins - 1 : bins, :].expand(-1, -1, -1, 129 - bins, -1))


@every
@pytest.mark.parametrize("scale", [2.0**-13, 2.0**7, 1e-4, 1e2])
@pytest.mark.parametrize("exponent", [None, 1.0, 2.0])
def test_estimates_scale_with_the_mixture(make, scale, exponent):
    model = make(mask_exponent=exponent).eval(); mix = music().sum(1)
    torch.testing.assert_close(model(mix * scale) / scale, model(mix), atol=2e-4, rtol=0)


@every
def test_estimates_never_exceed_what_a_mask_can_give(make):
    model = make(stems=3).eval(); mag = magnitude(model.stft(music().sum(1)))
    assert (model.magnitudes(mag) <= mag[:, None]).all() and not model(torch.zeros(1, 2, 500)).any()


@every
def test_double_precision_gives_the_same(make):
    model = make().eval(); mix = music().sum(1); single = model(mix)
    assert model(mix.double()).dtype == torch.float64  # weights in float32, transform in float64
    torch.testing.assert_close(model(mix.double()).float(), single, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.double()(mix.double()).float(), single, atol=1e-4, rtol=0)


@every
def test_examples_of_a_batch_are_separated_each_for_itself(make):
    model = make().eval(); mix = music(b=3).sum(1)
    torch.testing.assert_close(model(mix), torch.cat([model(x[None]) for x in mix]), atol=1e-6, rtol=1e-4)


@every
def test_every_parameter_gets_a_finite_gradient_even_beside_silence(make):
    model = make(); sources = music(); sources[1] = 0
    loss = (model(sources.sum(1)) - sources).abs().mean(); loss.backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and all(g.any() for g in grads)
    model.zero_grad(); model(torch.zeros(1, 2, 700)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@every
def test_config_rebuilds_the_model(make):
    model = make(stems=3, channels=1, mask_exponent=2.0); model(torch.randn(2, 1, 900))  # running statistics move
    again = type(model)(**model.config).eval(); again.load_state_dict(model.state_dict())
    mix = torch.randn(1, 1, 900)
    assert torch.equal(again(mix), model.eval()(mix)) and again.config == model.config


@every
@pytest.mark.parametrize("loss", [lambda e, s: (e - s).abs().mean(), lambda e, s: (e - s).square().mean()], ids=["l1", "mse"])
def test_learns_a_batch_by_heart(make, loss):
    model = make(**(dict(dropout=0.0, hidden=16) if make is MAKERS["dmi"] else dict(hidden=[48, 48, 48])))
    sources = music(); mag, truth = (magnitude(model.stft(x)) for x in (sources.sum(1), sources))
    optimiser, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(120):
        value = loss(model.magnitudes(mag), truth); optimiser.zero_grad(); value.backward(); optimiser.step(); losses.append(value.item())
    floor = loss(ratio_mask(truth) * mag[:, None], truth)
    assert losses[0] - losses[-1] > 0.8 * (losses[0] - floor)


@pytest.mark.parametrize("stems, channels, hidden, layers", [(1, 1, 50, 2), (2, 2, 50, 2), (4, 2, 16, 3), (1, 1, 8, 1)])
def test_deep_mask_inference_has_the_size_of_its_formula(stems, channels, hidden, layers):
    d = 128 * channels
    direction = lambda inputs: 4 * hidden * (inputs + hidden + 2)
    expected = 2 * d + 2 * direction(d) + (layers - 1) * 2 * direction(2 * hidden) + (2 * hidden + 1) * stems * d
    assert count_parameters(DeepMaskInference(stems, channels, hidden=hidden, layers=layers, **TINY)) == expected


def test_deep_mask_inference_of_the_source():
    model = DeepMaskInference.preset("published", stems=1, channels=1)
    assert (model.bins, model.blstm.hidden_size, model.blstm.num_layers, model.blstm.dropout, model.linear.in_features, model.linear.out_features) == (256, 50, 2, 0.3, 100, 256)
    assert model.blstm.bidirectional and model.norm.num_features == 256 and model.stft.frames(10 * 44100) == 1724


def test_any_unit_of_loudness_is_the_same_to_a_network_in_training():
    model = DeepMaskInference(dropout=0.0, hidden=8, **TINY)
    x = torch.randn(2, 30, 256)
    run = lambda x: model.linear(model.blstm(model.norm(x.transpose(1, 2)).transpose(1, 2))[0])
    torch.testing.assert_close(run(20 * x), run(10 * x), atol=1e-4, rtol=0)  # batch norm takes the factor away


def test_deep_mask_inference_frame_by_frame():
    "The same numbers from a BLSTM written out."
    model = DeepMaskInference(1, 1, hidden=4, layers=1, **TINY).eval(); lstm = model.blstm
    x = torch.randn(7, 128)
    def run(x, tail):
        h = c = torch.zeros(4); out = []
        for frame in x:
            gates = getattr(lstm, "weight_ih_l0" + tail) @ frame + getattr(lstm, "bias_ih_l0" + tail) + getattr(lstm, "weight_hh_l0" + tail) @ h + getattr(lstm, "bias_hh_l0" + tail)
            i, f, g, o = gates.split(4); c = f.sigmoid() * c + i.sigmoid() * g.tanh(); h = o.sigmoid() * c.tanh(); out.append(h)
        return torch.stack(out)
    slow = torch.cat([run(x, ""), run(x.flip(0), "_reverse").flip(0)], -1)
    torch.testing.assert_close(lstm(x[None])[0][0], slow, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(0, 99), st.sampled_from([1e-4, 1.0, 1e2]))
def test_joint_mask_is_equation_4(stems, seed, scale):
    y = scale * torch.randn(2, stems, 1, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = joint_mask(y)
    torch.testing.assert_close(mask.sum(1), torch.ones(2, 1, 4, 3, dtype=torch.float64))
    torch.testing.assert_close(mask, y.abs() / y.abs().sum(1, keepdim=True), atol=1e-3, rtol=0)
    torch.testing.assert_close(mask, ratio_mask(y.abs()), atol=1e-3, rtol=0)


def test_joint_estimates_are_equation_5_and_sum_to_the_mixture():
    model = JointMaskRNN(hidden=[8, 8], recurrent=[1], **TINY).eval(); mix = music().sum(1)
    mag = magnitude(model.stft(mix)); m = model.masks(mag)
    torch.testing.assert_close(model.magnitudes(mag)[:, 0], m[:, 0] * mag)
    torch.testing.assert_close(model.magnitudes(mag)[:, 1], (1 - m[:, 0]) * mag, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(mix).sum(1), mix, atol=1e-5, rtol=0)
    shared = JointMaskRNN(**{**model.config, "mask_exponent": 1.0}).eval(); shared.load_state_dict(model.state_dict())
    torch.testing.assert_close(shared(mix), model(mix), atol=1e-5, rtol=0)  # the masks are a ratio mask already


@pytest.mark.parametrize("hidden, recurrent", [([1000, 1000, 1000], [2]), ([8], []), ([8, 9], [1, 2]), ([7, 5, 6, 4], [1, 4])])
def test_joint_mask_rnn_has_the_size_of_its_formula(hidden, recurrent):
    model = JointMaskRNN(2, 1, hidden=hidden, recurrent=recurrent, **TINY)
    sizes = zip([128, *hidden], hidden)
    expected = sum(b * (a + (b + 2 if k in recurrent else 1)) for k, (a, b) in enumerate(sizes, 1)) + (hidden[-1] + 1) * 2 * 128
    assert count_parameters(model) == expected
    assert [isinstance(layer, RecurrentLayer) for layer in model.layers] == [k in recurrent for k in range(1, len(hidden) + 1)]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_recurrent_layer_step_by_step(activation):
    layer, x, h, slow = RecurrentLayer(3, 5, activation=activation), torch.randn(1, 6, 3), torch.zeros(5), []
    for frame in x[0]:
        h = getattr(torch, activation)(layer.rnn.weight_ih_l0 @ frame + layer.rnn.bias_ih_l0 + layer.rnn.weight_hh_l0 @ h + layer.rnn.bias_hh_l0); slow.append(h)
    torch.testing.assert_close(layer(x)[0], torch.stack(slow))
    plain = FrameLayer(3, 5, activation=activation)
    torch.testing.assert_close(plain(x), getattr(torch, activation)(x @ plain.linear.weight.T + plain.linear.bias))


def test_the_joint_network_looks_back_only_but_for_the_level():
    model = JointMaskRNN(hidden=[16, 16, 16], **TINY).eval()
    mag = torch.rand(1, 2, 129, 20); later = mag.clone()
    later[..., 10:] = later[..., 10:].flip(-1)  # same level, other future
    change = (model.masks(mag) - model.masks(later)).abs().amax((0, 1, 2, 3))
    assert change[:10].max() < 1e-6 and change[10:].max() > 1e-6


def test_mistakes_are_one_line():
    for call in (lambda: JointMaskRNN(1), lambda: JointMaskRNN(recurrent=[0]), lambda: JointMaskRNN(hidden=[]), lambda: JointMaskRNN(activation="silu"),
                 lambda: DeepMaskInference(2, 1, **TINY)(torch.zeros(1, 2, 9)), lambda: DeepMaskInference.preset("big")):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    for cls in (DeepMaskInference, JointMaskRNN):
        with pytest.raises(TypeError, match="depth"): cls(depth=9)
