"""The thesis' U-Nets: published sizes, every table trains, levels, lengths, slices, weights of the loss, checkpoints."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sepnb.core import SepnbError
from sepnb.models.deep_unet import TABLES, DeepUNet, MultiUNet, TableUNet, dense_table, energy_weights, gru_table, spleeter_table, table_strides, unet_table
from sepnb.models.layers import count_parameters
from sepnb.stft import magnitude
from sepnb.synth import toy_sources
from sepnb.train.checkpoint import load_checkpoint, save_checkpoint

TINY = dict(kernel=3, encoder=[[["point", 6], ["conv", 8], ["pool", 2, 2], ["conv", 12]], [["conv", 16], ["pool", 2, 1], ["conv", 16, 2]]],
            decoder=[[["up", 12, 2, 1], ["conv", 12]], [["up", 8, 2, 2]]], head=[["conv", 6]])
SMALL = dict(table=TINY, sample_rate=8000, n_fft=256, hop_length=64, compression=0.5)


@pytest.fixture(autouse=True)
def seeded(two_threads):
    torch.manual_seed(0); torch.set_num_threads(1) # many small layers: a second thread costs more than it brings


def weights(net): return sum(m.weight.numel() for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)))


def music(b=2, channels=2, seconds=0.4):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=8000, channels=channels, stems=["drums", "vocals"]) for _ in range(b)])


def lively(net):
    "Running statistics and affine parameters as after some training."
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1); m.running_var.uniform_(0.5, 1.5); m.weight.data.uniform_(0.5, 1.5); m.bias.data.normal_(0, 0.3)
    return net.eval()


@pytest.mark.parametrize("name, maps, millions", [("30M", 28, 30.23), ("9M", 28, 9.41), ("3M", 28, 3.02), ("baseline30M", 2, 29.94)])
def test_published_sizes(name, maps, millions):
    with torch.device("meta"): net = TableUNet(maps, 2, 1024, TABLES[name])
    assert round(weights(net) / 1e6, 2) == millions


def test_size_by_hand():
    widths = [5, 7, 11]
    with torch.device("meta"): net = TableUNet(4, 3, 64, unet_table(widths))
    encoder = 25 * (4 * 5 + 5 * 5 + 5 * 7 + 7 * 7 + 7 * 11 + 11 * 11)
    decoder = 25 * (11 * 7 + 7 * 7 + 14 * 5 + 5 * 5 + 10 * 5 + 5 * 5)
    assert weights(net) == encoder + decoder + 25 * 5 * 16 + 16 * 16 * 3


def test_spleeter_is_the_published_one():
    with torch.device("meta"): net = TableUNet(2, 2, 1024, spleeter_table([16, 32, 64, 128, 256, 512]))
    assert round(weights(net) / 1e6, 2) == 9.82


def test_gru_sees_sixteen_rows_and_half_the_frames_of_the_fourth_stage():
    with torch.device("meta"): net = TableUNet(28, 2, 1024, TABLES["gru30M"])
    bottom = net.encoder[-1][-1]
    assert bottom.squeeze.in_channels == 600 * 16 and bottom.gru.hidden_size == 350 and net.strides == (64, 16)
    assert abs(count_parameters(net) / 1e6 - 32.8) < 0.05


@pytest.mark.parametrize("name", list(TABLES))
def test_every_table_trains(name):
    f, n = table_strides(TABLES[name])
    net = TableUNet(3, 2, f, TABLES[name])
    y = net(torch.rand(2, 3, f, n))
    assert y.shape == (2, 2, f, n) and 0 <= y.min() and y.max() <= 1
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@settings(deadline=None, max_examples=15)
@given(widths=st.lists(st.integers(1, 6), min_size=1, max_size=4), kernel=st.sampled_from([1, 3, 5]), outputs=st.integers(1, 4), extra=st.integers(1, 3))
def test_any_widths_make_a_network(widths, kernel, outputs, extra):
    table = unet_table(widths, kernel=kernel)
    side = 2 ** len(widths)
    assert table_strides(table) == (side, side)
    assert TableUNet(3, outputs, side * extra, table).eval()(torch.rand(1, 3, side * extra, side)).shape == (1, outputs, side * extra, side)


@pytest.mark.parametrize("table", [gru_table([4, 6, 8], units=5), spleeter_table([4, 6, 8]), dense_table([(2, 3, 5), (2, 3, 6), (2, 3, 7)], [7, 6, 5, 4, 3, 2])])
def test_one_batch_by_heart(table):
    for stage in table["decoder"]: stage[:] = [row for row in stage if row[0] != "dropout"]
    x, target = torch.rand(2, 3, 64, 64), 0.8 * torch.rand(2, 1, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) + 0.1
    net = TableUNet(3, 1, 64, table); optimiser, losses = torch.optim.Adam(net.parameters(), 2e-2), []
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        optimiser.zero_grad(); loss.backward(); optimiser.step(); losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("table", [
    {}, dict(encoder=[], decoder=[]), unet_table([4]) | dict(encoder=[["conv", 4]]), unet_table([4]) | dict(encoder=[]), unet_table([4]) | dict(head=[["fly", 1]]),
    unet_table([4, 4]) | dict(decoder=unet_table([4])["decoder"]), unet_table([4]) | dict(head=None)])
def test_refuses_tables_that_cannot_be_built(table):
    with pytest.raises(SepnbError): table_strides(table)


@pytest.mark.parametrize("cls", [MultiUNet, DeepUNet])
@pytest.mark.parametrize("stems, channels", [(1, 1), (2, 2), (3, 1), (4, 3)])
def test_shapes_and_lengths(cls, stems, channels):
    net = cls(stems=stems, channels=channels, slice_frames=16, **SMALL).eval()
    with torch.no_grad():
        for length in (1, 63, 64, 1001, 4003):
            y = net(torch.randn(2, channels, length))
            assert y.shape == (2, stems, channels, length) and y.isfinite().all()
        assert not net(torch.zeros(1, channels, 3000)).any()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("exponent", [None, 1.0, 2.0])
def test_level_does_not_matter(scale, exponent):
    net, mix = lively(MultiUNet(mask_exponent=exponent, slice_frames=20, stems=2, **SMALL)), music().sum(1)
    before = mix.clone()
    with torch.no_grad(): y, scaled = net(mix), net(mix * scale)
    torch.testing.assert_close(scaled, y * scale, atol=2e-5 * scale, rtol=1e-3)
    assert torch.equal(mix, before)
    if exponent: torch.testing.assert_close(scaled.sum(1), mix * scale, atol=1e-5 * scale, rtol=1e-4)


def test_precision_and_batch():
    net, mix = lively(DeepUNet(stems=2, mask_exponent=2.0, **SMALL)), music().sum(1)
    with torch.no_grad():
        y = net(mix)
        torch.testing.assert_close(net(mix[1:])[0], y[1], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(net.double()(mix.double()).float(), y, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("frames", [1, 7, 16, 33, 200])
def test_slices_cover_every_frame(frames):
    net, mag = lively(MultiUNet(stems=2, slice_frames=frames, **SMALL)), magnitude(MultiUNet(stems=2, **SMALL).stft(music().sum(1)))
    for unet in net.nets: nn.init.zeros_(unet.last.weight)
    with torch.no_grad():
        y = net.magnitudes(mag)
        gains = torch.sigmoid(net.nets[0].last.bias).view(1, 2, 2, 1, 1)
    torch.testing.assert_close(y, (gains * mag[:, None]), atol=1e-5, rtol=1e-4)


def test_a_slice_hears_nothing_of_the_others():
    net, x = lively(MultiUNet(stems=2, slice_frames=16, **SMALL)), torch.rand(1, 2, 129, 64)
    y = x.clone(); y[..., 40:] = 0
    with torch.no_grad(): assert torch.equal(net.magnitudes(x)[..., :24], net.magnitudes(y)[..., :24])


def test_an_estimate_is_never_louder_than_the_mixture():
    net = lively(DeepUNet(stems=2, max_hz=2500.0, slice_frames=16, **SMALL)); mag = magnitude(net.stft(music().sum(1)))
    with torch.no_grad(): y = net.magnitudes(mag)
    assert (y <= mag[:, None] * (1 + 1e-5)).all() and y.min() >= 0
    mask = net.masks(mag)
    assert net.bins == 80 and torch.equal(mask[..., 80:, :], mask[..., 79:80, :].expand_as(mask[..., 80:, :]))


@pytest.mark.parametrize("cls", [MultiUNet, DeepUNet])
def test_checkpoint(cls, tmp_path):
    net, mix = lively(cls(stems=2, maps="3h+2s", mask_exponent=2.0, **SMALL)), music().sum(1)
    net.weigh(music())
    save_checkpoint(tmp_path, net, stems=["drums", "vocals"], sample_rate=8000, licence="CC0-1.0")
    again, card = load_checkpoint(tmp_path, device="cpu")
    with torch.no_grad(): assert torch.equal(again(mix), net(mix))
    assert torch.equal(again.stem_weights, net.stem_weights) and card["config"]["table"] == TINY  # a preset may change, a checkpoint not


def test_presets_are_the_thesis():
    for name, preset in DeepUNet.presets.items():
        if name not in ("cpu", "30M-44k"): assert (preset["sample_rate"], preset["n_fft"], preset["hop_length"], preset["mask_exponent"]) == (16000, 2048, 512, 2.0)
    net = MultiUNet.preset("cpu", stems=2)
    assert count_parameters(net) < 1e6 and net(torch.randn(1, 2, 44100)).shape == (1, 2, 2, 44100)
    assert DeepUNet.presets["baseline30M"]["maps"] == "1h" and MultiUNet.preset("mu9M").stems == 4
    with pytest.raises(SepnbError): DeepUNet.preset("12M")


@pytest.mark.parametrize("cls", [MultiUNet, DeepUNet])
@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
def test_other_maps_start_softer(cls, gain):
    def firsts(net): return [next(m for m in part.modules() if isinstance(m, nn.Conv2d)).weight for part in net.nets]
    torch.manual_seed(3); plain = cls(stems=2, maps="3h+2s", **SMALL).eval()
    torch.manual_seed(3); net = cls(stems=2, maps="3h+2s", other_maps=gain, **SMALL).eval()
    for a, b in zip(firsts(plain), firsts(net)):
        a, b = (w.detach().unflatten(1, (2, 5)) for w in (a, b))  # channels, then ratios, the spectrogram itself first
        assert torch.equal(a[:, :, 0], b[:, :, 0]) and torch.equal(a[:, :, 1:] * gain, b[:, :, 1:]) and a[:, :, 1:].abs().min() > 0
    with torch.no_grad():
        for w in firsts(plain): w.unflatten(1, (2, 5))[:, :, 1:] *= gain
        mix = music().sum(1); assert torch.equal(plain(mix), net(mix))


def test_the_fine_table_keeps_every_bin():
    with torch.device("meta"): nets = {name: TableUNet(28, 8, 64, TABLES[name]) for name in ("cpu", "fine")}
    def seen(net): return net.encoder[0](torch.empty(1, 28, 64, 16, device="meta")).shape[2]
    assert seen(nets["fine"]) == 64 == 2 * seen(nets["cpu"])
    assert nets["fine"].decoder[-1][0][0].in_channels == 16 + 8  # what the first stage found beside what came up


@settings(deadline=None, max_examples=25)
@given(stems=st.integers(1, 5), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4), scale=st.sampled_from([1e-4, 1.0, 1e2]), seed=st.integers(0, 99))
def test_energy_weights(stems, lengths, scale, seed):
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(stems, 2, n, generator=g) * torch.rand(stems, 1, 1, generator=g).add(0.1) for n in lengths]
    energy = torch.cat(parts, -1).double().square().mean((1, 2)); expected = energy.max() / energy
    found = energy_weights([scale * x for x in parts])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert found.min() == 1


def test_energy_weights_need_music():
    for bad in ([], torch.zeros(2, 3, 1, 10), [torch.rand(2, 1, 0)]):
        with pytest.raises(SepnbError): energy_weights(bad)
