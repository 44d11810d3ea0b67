"""TasNet and Conv-TasNet: the packages' own networks with the same weights, published sizes, levels, lengths, gradients, memory tricks."""
import importlib
import importlib.util
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.models.layers import count_parameters
from sepnb.models.tasnet import ChannelNorm, ConvTasNet, TasNet, frames_needed, from_asteroid_state, from_demucs_state
from sepnb.synth import toy_sources

TINY = dict(sample_rate=8000, filters=24, kernel=16, bottleneck=12, hidden=24, blocks=3, repeats=2)
RECURRENT = dict(sample_rate=8000, filters=24, kernel=16, hidden=12, layers=3, bypass=1)
BOTH = pytest.mark.parametrize("cls, sizes", [(ConvTasNet, TINY), (TasNet, RECURRENT)])


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0); torch.set_num_threads(1)


@pytest.fixture
def asteroid(monkeypatch):
    "The parts that asteroid builds its TasNets from; the package itself wants a dozen others at import, its networks do not."
    spec = importlib.util.find_spec("asteroid")
    if spec is None: pytest.skip("package asteroid is not here; see tests/references.txt")
    bare = types.ModuleType("asteroid"); bare.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "asteroid", bare)
    names = ("asteroid_filterbanks", "asteroid.masknn.convolutional", "asteroid.masknn.recurrent")
    return types.SimpleNamespace(**{n.split(".")[-1]: importlib.import_module(n) for n in names})


@pytest.fixture
def demucs(root, monkeypatch):
    "Version 2 of demucs has the network for music; it lies in a folder of its own, since version 4 has not."
    path = root / ".refs/demucs2/demucs/tasnet.py"
    if not path.is_file(): pytest.skip("package demucs 2.0.3 is not here; see tests/references.txt")
    package, tools = types.ModuleType("demucs2"), types.ModuleType("demucs2.utils")
    package.__path__, tools.capture_init = [], lambda f: f
    monkeypatch.setitem(sys.modules, "demucs2", package); monkeypatch.setitem(sys.modules, "demucs2.utils", tools)
    spec = importlib.util.spec_from_file_location("demucs2.tasnet", path)
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


def lively(net):
    "Every parameter away from its start, as after some training."
    for p in net.parameters(): p.data += 0.1 * torch.randn_like(p)
    return net.eval()


def music(b=1, channels=2, seconds=0.5, sample_rate=8000):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=sample_rate, channels=channels, stems=["drums", "vocals"]) for _ in range(b)])


class Speech(torch.nn.Module):
    "asteroid's ConvTasNet or LSTMTasNet from its parts: filterbank, masker, filterbank."
    def __init__(self, encoder, masker, decoder):
        super().__init__(); self.encoder, self.masker, self.decoder = encoder, masker, decoder

    def forward(self, x): # (b, 1, t) → (b, s, t)
        w = self.encoder(x)
        return self.decoder(self.masker(w) * w[:, None])


class Gated(torch.nn.Module):
    def __init__(self, filterbanks):
        super().__init__(); self.encoder_relu, self.encoder_sig = (fb[0] for fb in filterbanks)

    def forward(self, x): return torch.relu(self.encoder_relu(x)) * torch.sigmoid(self.encoder_sig(x))


def conv_pair(asteroid, stems, *, filters, kernel, bottleneck, hidden, blocks, repeats, skip, mask, width=3):
    encoder, decoder = asteroid.asteroid_filterbanks.make_enc_dec("free", kernel_size=kernel, n_filters=filters, stride=kernel // 2)
    theirs = lively(Speech(encoder, asteroid.convolutional.TDConvNet(filters, stems, n_blocks=blocks, n_repeats=repeats, bn_chan=bottleneck, hid_chan=hidden,
                                                                     skip_chan=skip, conv_kernel_size=width, mask_act=mask), decoder))
    ours = ConvTasNet.preset("speech", stems=stems, filters=filters, kernel=kernel, bottleneck=bottleneck, hidden=hidden, blocks=blocks, repeats=repeats,
                             skip=skip, mask=mask, width=width).eval()
    ours.load_state_dict(from_asteroid_state(theirs.state_dict()))
    return theirs, ours


@pytest.mark.parametrize("stems, sizes", [
    (2, dict(filters=32, kernel=16, bottleneck=16, hidden=32, blocks=4, repeats=2, skip=12, mask="sigmoid")),
    (3, dict(filters=20, kernel=40, bottleneck=8, hidden=24, blocks=2, repeats=3, skip=0, mask="relu")),
    (2, dict(filters=20, kernel=10, bottleneck=8, hidden=24, blocks=3, repeats=1, skip=8, mask="softmax", width=5))])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_equals_asteroid(asteroid, stems, sizes, scale):
    theirs, ours = conv_pair(asteroid, stems, **sizes)
    x = scale * music(2, 1, seconds=0.5).sum(1)
    with torch.no_grad(): torch.testing.assert_close(ours(x)[:, :, 0], theirs(x), atol=1e-5 * scale, rtol=1e-4)


def test_equals_asteroid_at_its_default_size(asteroid):
    theirs, ours = conv_pair(asteroid, 2, filters=512, kernel=16, bottleneck=128, hidden=512, blocks=8, repeats=3, skip=128, mask="sigmoid")
    x = music(1, 1, seconds=0.25).sum(1)
    with torch.no_grad(): torch.testing.assert_close(ours(x)[:, :, 0], theirs(x), atol=1e-4, rtol=0)
    unused = sum(p.numel() for p in theirs.masker.TCN[-1].res_conv.parameters())
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters()) - unused


def test_equals_asteroid_on_ten_seconds_of_music(asteroid):
    theirs, ours = conv_pair(asteroid, 2, filters=32, kernel=20, bottleneck=16, hidden=32, blocks=8, repeats=2, skip=16, mask="sigmoid")
    x = music(1, 1, seconds=10.0, sample_rate=44100).sum(1)
    with torch.no_grad(): a, b = ours(x)[:, :, 0], theirs(x)
    assert a.shape == b.shape == (1, 2, 441000) and (a - b).abs().max() <= 1e-4 and a.std() > 1e-3


def test_gradients_equal_asteroid(asteroid):
    theirs, ours = conv_pair(asteroid, 2, filters=32, kernel=16, bottleneck=16, hidden=32, blocks=4, repeats=2, skip=12, mask="sigmoid")
    x = music(2, 1).sum(1)
    ours(x).square().sum().backward(); theirs(x).square().sum().backward()
    grads = from_asteroid_state({k: p.grad for k, p in theirs.named_parameters() if p.grad is not None})
    for name, p in ours.named_parameters(): torch.testing.assert_close(p.grad, grads[name], atol=1e-3 * grads[name].abs().max().item() + 1e-6, rtol=1e-3)


def test_recurrent_equals_asteroid(asteroid):
    banks = [asteroid.asteroid_filterbanks.make_enc_dec("free", kernel_size=16, n_filters=24, stride=8) for _ in range(2)]
    theirs = lively(Speech(Gated(banks), asteroid.recurrent.LSTMMasker(24, 2, hid_size=12, n_layers=3, mask_act="sigmoid", dropout=0.0), banks[0][1]))
    ours = TasNet(2, 1, normalise=False, entry="global", mask="sigmoid", **{**RECURRENT, "bypass": 0}).eval()
    ours.load_state_dict(from_asteroid_state(theirs.state_dict() | {"encoder.filterbank._filters": torch.zeros(1)}))
    x = music(2, 1, seconds=0.5).sum(1)
    with torch.no_grad(): torch.testing.assert_close(ours(x)[:, :, 0], theirs(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mask", ["relu", "softmax"])
@pytest.mark.parametrize("stems, channels, blocks, repeats", [(4, 2, 4, 2), (2, 1, 3, 1), (3, 3, 2, 3)])
def test_equals_demucs(demucs, stems, channels, blocks, repeats, mask):
    theirs = lively(demucs.ConvTasNet(["x"] * stems, N=24, L=20, B=12, H=24, X=blocks, R=repeats, audio_channels=channels, mask_nonlinear=mask))
    ours = ConvTasNet(stems, channels, filters=24, bottleneck=12, hidden=24, blocks=blocks, repeats=repeats, mask=mask, normalise=False).eval()
    ours.load_state_dict(from_demucs_state(theirs.state_dict()))
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())
    x = torch.randn(2, channels, 4420)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_equals_demucs_on_ten_seconds_of_music(demucs):
    theirs = lively(demucs.ConvTasNet(["a", "b"], N=32, B=16, H=32, X=8, R=2))
    ours = ConvTasNet(2, 2, filters=32, bottleneck=16, hidden=32, repeats=2, normalise=False).eval(); ours.load_state_dict(from_demucs_state(theirs.state_dict()))
    x = music(1, 2, seconds=10.0, sample_rate=44100).sum(1)
    with torch.no_grad(): assert (ours(x) - theirs(x)).abs().max() <= 1e-4


@pytest.mark.parametrize("name, stems, millions", [("music", 4, 8.85), ("music_x10", 4, 10.98), ("speech", 2, 4.984)])
def test_published_sizes(demucs, name, stems, millions):
    model = ConvTasNet.preset(name, stems=stems)
    assert abs(count_parameters(model) / 1e6 - millions) < 0.006
    if name == "music": assert count_parameters(model) == sum(p.numel() for p in demucs.ConvTasNet(["x"] * 4).parameters())


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 3000), kernel=st.integers(1, 60))
def test_valid_lengths(length, kernel):
    k = frames_needed(length, 2 * kernel); covered = (k - 1) * kernel + 2 * kernel
    assert covered >= length and (k == 1 or covered - kernel < length)


@BOTH
@settings(deadline=None, max_examples=20)
@given(length=st.integers(1, 700), stems=st.integers(1, 4), channels=st.integers(1, 3))
def test_any_length_in_same_length_out(cls, sizes, length, stems, channels):
    model = cls(stems, channels, **sizes).eval()
    y = model(torch.randn(2, channels, length))
    assert y.shape == (2, stems, channels, length) and y.isfinite().all()


@BOTH
def test_level_silence_and_precision(cls, sizes):
    model = cls(2, 2, **sizes).eval(); x = music(2).sum(1); kept = x.clone()
    with torch.no_grad():
        y = model(x)
        for scale in (1e-4, 1e2): torch.testing.assert_close(model(scale * x) / scale, y, atol=1e-4, rtol=1e-3)
        assert not model(0 * x).any() and torch.equal(x, kept)
        torch.testing.assert_close(model.double()(x.double()).float(), y, atol=1e-4, rtol=1e-3)


@BOTH
def test_gradients_are_finite_everywhere_and_on_silence(cls, sizes):
    model = cls(2, 2, **sizes); s = music(2)
    (model(s.sum(1)) - s).abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.zero_grad(); model(torch.zeros(2, 2, 500)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@BOTH
def test_config_rebuilds_the_model(cls, sizes):
    model = lively(cls(3, 1, **sizes)); x = torch.randn(1, 1, 500)
    again = cls(**model.config).eval(); again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x)) and again.config == model.config


@BOTH
def test_softmax_masks_share_the_representation(cls, sizes):
    model = lively(cls(3, 2, **{**sizes, "mask": "softmax"})); x = music().sum(1)
    w = []
    model.encoder.register_forward_hook(lambda module, args, out: w.append(out))
    total = model(x).sum(1)
    alone = cls(1, 2, **{**sizes, "mask": "softmax"}); alone.load_state_dict({k: v for k, v in model.state_dict().items() if "to_masks" not in k}, strict=False)
    torch.testing.assert_close(total - (model.stems - 1) * x.mean((1, 2))[:, None, None], alone(x).sum(1), atol=1e-4, rtol=1e-3)


def test_a_batch_by_heart():
    model = ConvTasNet(2, 2, **{**TINY, "filters": 32, "bottleneck": 16, "hidden": 32}); s = music(seconds=0.25)
    optimiser, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(120):
        loss = (model(s.sum(1)) - s).abs().mean()
        optimiser.zero_grad(); loss.backward(); losses.append(loss.item()); torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0); optimiser.step()
    assert losses[0] > 4 * losses[-1]


def test_recompute_changes_memory_and_nothing_else():
    whole, frugal = ConvTasNet(2, 2, **TINY), ConvTasNet(2, 2, **TINY, recompute=True); frugal.load_state_dict(whole.state_dict())
    x = music(2).sum(1); kept = []
    for net in (whole, frugal):
        held = 0
        def pack(t):
            nonlocal held
            held += t.numel(); return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): y = net(x)
        kept.append(held); y.square().sum().backward()
    assert kept[1] < 0.6 * kept[0] and torch.equal(whole(x), frugal(x))
    for a, b in zip(whole.parameters(), frugal.parameters()): torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_channel_norm_is_layer_norm():
    x = torch.randn(2, 7, 11, dtype=torch.float64); norm = ChannelNorm(7).double(); lively(norm)
    expected = torch.nn.functional.layer_norm(x.transpose(1, 2), (7,), norm.weight, norm.bias, 1e-8).transpose(1, 2)
    torch.testing.assert_close(norm(x), expected)


def test_mistakes_are_one_line():
    for call in (lambda: ConvTasNet(kernel=3), lambda: ConvTasNet(width=4), lambda: ConvTasNet(encode="tanh"), lambda: ConvTasNet(mask="softmin"),
                 lambda: ConvTasNet(entry="batch"), lambda: ConvTasNet(head="relu"), lambda: TasNet(bypass=4), lambda: ConvTasNet.preset("huge"),
                 lambda: ConvTasNet(2, 2, **TINY)(torch.zeros(1, 1, 9)), lambda: from_demucs_state({}), lambda: from_asteroid_state({}), lambda: ConvTasNet(0)):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="depth"): ConvTasNet(depth=9)
