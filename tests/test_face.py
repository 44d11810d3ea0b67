"""Diagrams: what a trace says of networks whose ways are known, and that drawing them fits and repeats itself."""
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyBboxPatch
from torch import nn

from sepnb.core import SepnbError
from sepnb.models.face import Step, command, in_use, network, plot_network, trace
from sepnb.plots import png_bytes


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    plt.close("all")


class Way(nn.Module):
    "Three layers, and a forward of one's own."
    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv1d(2, 2, 3, padding=1) for _ in range(3))
        self.way = way

    def forward(self, x): return self.way(self, x)


WAYS = {
    "chain": (lambda m, x: m.c(m.b(m.a(x))), [(0,), (1,), (2,), (3,)], ["", "", "", ""]),
    "sum": (lambda m, x: m.c(m.b(y := m.a(x)) + y), [(0,), (1,), (1, 2), (3,)], ["", "", "+", ""]),
    "mask": (lambda m, x: torch.sigmoid(m.c(m.b(m.a(x)))) * x, [(0,), (1,), (2,), (0, 3)], ["", "", "", "×"]),
    "rest": (lambda m, x: x - m.c(m.b(m.a(x))), [(0,), (1,), (2,), (0, 3)], ["", "", "", "−"]),
    "beside": (lambda m, x: torch.cat([m.a(x), m.b(x), m.c(x)], 1), [(0,), (0,), (0,), (1, 2, 3)], ["", "", "", "‖"]),
    "in place": (lambda m, x: m.c(m.b(y := m.a(x)).add_(y)), [(0,), (1,), (1, 2), (3,)], ["", "", "+", ""]),
    "around a view": (lambda m, x: m.c(m.b(y := m.a(x))[..., 1:] * y.flip(-1)[..., :-1].abs()), [(0,), (1,), (1, 2), (3,)], ["", "", "×", ""]),
    "not at all": (lambda m, x: (m.a(x), m.b(x), m.c(x))[2], [(0,), (0,), (0,), (3,)], ["", "", "", ""]),
}


@pytest.mark.parametrize("way, after, joins", WAYS.values(), ids=WAYS)
def test_a_trace_says_where_inputs_come_from(way, after, joins):
    model = Way(way)
    steps = trace(model, (2, 8))
    assert [s.after for s in steps[1:]] == after and [s.join for s in steps[1:]] == joins
    assert [s.name for s in steps] == ["input", "a", "b", "c", "output"] and steps[1].parameters == 14 and steps[1].layers == "conv 3"
    assert trace(model, (2, 8)) == steps # and no hook was left behind
    x = torch.randn(1, 2, 8)
    assert type(model(x)) is torch.Tensor and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_even_if_the_network_fails():
    model = Way(lambda m, x: m.a(x) @ torch.ones(3, 3))
    with pytest.raises(RuntimeError):
        trace(model, (2, 8))
    assert not model.a._forward_hooks and not model.a._forward_pre_hooks


MODELS = {
    "demucs": ("demucs.Demucs", dict(width=4, depth=3, lstm=1, resample=1), (2, 3000), {}, 3, "+"),
    "wave_unet": ("wave_unet.WaveUNet", dict(levels=12, filters=2, down=5, up=3), (2, 4096), dict(parts=["down.*", "bottom", "up.*", "out"]), 13, "‖"),
    "openunmix": ("openunmix.OpenUnmixTarget", dict(bins=65, seen=40, hidden=8), (2, 65, 9), {}, 1, "‖"),
}


@pytest.mark.parametrize("name, config, shape, how, skips, join", MODELS.values(), ids=MODELS)
def test_sizes_and_skips_are_the_models_own(name, config, shape, how, skips, join):
    small, real = network(name, **config), network(name, device="cpu", **config)
    steps = trace(small, shape, **how)
    assert trace(real, shape, **how) == steps # shapes alone say the same as numbers
    assert steps[-1].shape == tuple(real(torch.zeros(1, *shape)).shape[1:])
    assert sum(s.join == join for s in steps[1:-1]) == skips
    ax = plot_network(steps)
    boxes = sum(isinstance(p, FancyBboxPatch) for p in ax.patches)
    assert boxes == len(steps) or name.startswith("wave") and boxes < 20 and any("more" in t.get_text() for t in ax.texts)


def test_layers_that_are_not_called_are_not_met():
    "Conv-TasNet computes its blocks by hand where no gradient is wanted, but not on meta."
    steps = trace(network("tasnet.ConvTasNet", filters=16, kernel=20, bottleneck=8, hidden=16, blocks=2, repeats=1), (2, 4000))
    assert [s.name for s in steps if s.name.startswith("blocks")] == ["blocks.0", "blocks.1"] and steps[-2].join == "+" and steps[-2].name == "decoder"


def ladder(depth, bottom=1):
    "A U of known form."
    down = [Step(f"down.{k}", "conv 3", (2**k, 4096 >> k), 10, (k,)) for k in range(depth)]
    mid = [Step(f"mid.{k}", "LSTM", (9, 4), 10, (depth + k,)) for k in range(bottom)]
    up = [Step(f"up.{k}", "conv 3", (2, 8 << k), 10, (depth - k, depth + bottom + k), "+") for k in range(depth)]
    return [Step("input", "", (2, 4096), 0, ()), *down, *mid, *up, Step("output", "", (2, 4096), 0, (2 * depth + bottom,))]


@pytest.mark.parametrize("depth, bottom", [(3, 1), (6, 2), (12, 1), (4, 3)])
def test_nothing_in_a_diagram_overlaps_or_sticks_out(depth, bottom):
    ax = plot_network(ladder(depth, bottom), title="a ladder")
    fig = ax.figure; fig.canvas.draw()
    whole, boxes = fig.bbox, [p.get_window_extent() for p in ax.patches if isinstance(p, FancyBboxPatch)]
    words = [t.get_window_extent() for t in ax.texts if t.get_text()]
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes + words)
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert fig.get_size_inches()[0] <= 4.8 and min(t.get_fontsize() for t in ax.texts) >= 8


def test_drawing_twice_gives_the_same_bytes():
    assert png_bytes(plot_network(ladder(5)).figure) == png_bytes(plot_network(ladder(5)).figure)


def test_a_given_axes_is_used():
    fig, (one, two) = plt.subplots(1, 2)
    before = fig.get_size_inches().tolist()
    assert plot_network(ladder(3), ax=one) is one and not two.patches and fig.get_size_inches().tolist() == before


def test_post_nets_can_be_in_use(capsys):
    base = network("mask_rnn.JointMaskRNN", device="cpu", sample_rate=4000, n_fft=256, hop_length=64, hidden=[8], recurrent=[])
    net = network("panet.PANet", device="cpu", sample_rate=4000, widths=[4, 8], head=4, n_fft=256, hop_length=64, frames=16, phrases=1)
    with in_use(base, torch.randn(2, 6000) / 9, kind="mask_rnn.JointMaskRNN", name="panet", stems=("drums", "vocals"), postnets={"drums": net}) as folder:
        command("sepnb separate song.wav --system runs/panet --two-stems drums")
        assert capsys.readouterr().out.split() == ["stems/song/drums.wav", "stems/song/no_drums.wav"]
        with pytest.raises(SepnbError, match="exit code 2"):
            command("sepnb separate nowhere.wav --system runs/panet")
    assert not folder.exists()
