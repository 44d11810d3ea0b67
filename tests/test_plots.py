"""Pictures: the same bytes from the same arrays, numbers on the axes that are the arrays' numbers, and odd input."""
import hashlib, os, subprocess, sys
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sepnb.core import SepnbError
from sepnb.plots import COLORS, MEAN, MEDIAN, level_db, plot_bars, plot_boxes, plot_density, plot_grid, plot_history, plot_spectrogram, plot_waveform, png_bytes
from sepnb.stft import STFT, magnitude
from sepnb.synth import tone

RATE, HOP = 16000, 256
NAN = float("nan")
MAG = np.abs(np.random.default_rng(0).normal(size=(2, 129, 40)))
DRAW = dict(
    spectrogram=lambda ax=None: plot_spectrogram(MAG, sample_rate=RATE, hop_length=HOP, ax=ax, title="mixture"),
    waveform=lambda ax=None: plot_waveform(MAG[:, 0].repeat(200, -1), sample_rate=RATE, ax=ax),
    history=lambda ax=None: plot_history({"train": [3, 2, 1.5], "valid": [3, 2.5, NAN]}, ax=ax, log=True, best="valid"),
    density=lambda ax=None: plot_density(MAG[0, 0], ax=ax, label="UMX", xlabel="dB"),
    boxes=lambda ax=None: plot_boxes({"a": MAG[0, 0], "b": MAG[0, 1]}, ax=ax),
    bars=lambda ax=None: plot_bars({"a": {"x": 1, "y": -2}, "b": {"x": NAN, "y": 3}}, ax=ax))
every = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)


@pytest.fixture(autouse=True)
def no_figure_left():
    yield
    plt.close("all")


def labels(ax): return [text.get_text() for text in ax.get_legend().get_texts()]


def bytes_of(draw):
    fig = Figure(figsize=(4, 2), layout="constrained")
    draw(fig.subplots())
    return png_bytes(fig)


@every
def test_drawing_twice_gives_the_same_bytes(draw):
    assert bytes_of(draw) == bytes_of(draw)


@every
def test_an_axes_that_is_given_is_used_and_pyplot_is_left_alone(draw):
    before = plt.figure(); current = plt.gca()
    fig = Figure(); ax, other = fig.subplots(1, 2)
    assert draw(ax) is ax and not other.has_data() and plt.get_fignums() == [before.number] and plt.gca() is current and not current.has_data()


@every
def test_without_an_axes_a_figure_is_made(draw):
    ax = draw()
    assert plt.get_fignums() and ax.figure is plt.gcf() and len(png_bytes(ax.figure, dpi=50)) > 500


def test_another_process_draws_the_same_bytes():
    code = ("import hashlib; import matplotlib; matplotlib.use('Agg'); from sepnb.plots import *\n"
            "ax = plot_boxes({'mixture': [1.0, 2, 3, float('nan')], 'network': [2.0, 4, 9]}); plot_grid({'a': {'x': [[1.0, 2], [3, 4]]}}, sample_rate=8, hop_length=2)\n"
            "print(hashlib.sha256(png_bytes(ax.figure)).hexdigest())")
    root = str(Path(__file__).resolve().parents[1])
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root,
                           env=os.environ | {"PYTHONHASHSEED": str(k)}).stdout for k in (1, 2)}
    assert len(runs) == 1 and len(runs.pop().strip()) == 64


def test_bytes_do_not_depend_on_earlier_drawings():
    def grid():
        fig = Figure(figsize=(6, 3), layout="constrained")
        plot_grid({"truth": {"mix": MAG, "a": MAG[0]}, "estimate": {"a": MAG[1]}}, sample_rate=RATE, hop_length=HOP, fig=fig)
        return fig
    fresh, drawn = grid(), grid()
    for _ in range(3): png_bytes(drawn, dpi=72)
    assert hashlib.sha256(png_bytes(fresh)).digest() == hashlib.sha256(png_bytes(fresh)).digest() == hashlib.sha256(png_bytes(drawn)).digest()


def test_inputs_of_all_kinds_give_one_picture():
    x = torch.linspace(0, 1, 60)
    pictures = {bytes_of(lambda ax: plot_density(v, ax=ax)) for v in (x, x.double().numpy().astype(np.float32), x.tolist(), x.clone().requires_grad_())}
    assert len(pictures) == 1


def test_a_tone_is_where_it_should_be():
    stft = STFT(1024, HOP)
    ax = plot_spectrogram(magnitude(stft(tone(2000, seconds=1.0))), sample_rate=RATE, hop_length=HOP)
    image = ax.images[0]; left, right, bottom, top = image.get_extent(); values = image.get_array()
    row = int(values[:, 20].argmax())
    assert bottom + (row + 0.5) * (top - bottom) / len(values) == pytest.approx(2.0) and values.max() == 0
    frame = left + (np.arange(values.shape[1]) + 0.5) * (right - left) / values.shape[1]
    np.testing.assert_allclose(frame, np.arange(values.shape[1]) * HOP / RATE, atol=1e-12)
    assert ax.get_ylim() == (0, 8) and plot_spectrogram(MAG, sample_rate=RATE, hop_length=HOP, max_hz=3000).get_ylim() == (0, 3)


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e2, 1e30])
def test_level_follows_the_reference(scale):
    np.testing.assert_allclose(level_db(scale * MAG), level_db(MAG), atol=1e-9)
    np.testing.assert_allclose(level_db(MAG, reference=10.0 * MAG.max(), floor_db=-300), level_db(MAG, floor_db=-300) - 20, atol=1e-9)


def test_level_of_silence_nan_and_infinity():
    assert (level_db(np.zeros((2, 3)), floor_db=-60) == -60).all()
    db = level_db([1.0, NAN, 0.5, np.inf])
    assert db[0] == 0 and np.isnan(db[1]) and db[2] == pytest.approx(-6.0206, abs=1e-4) and db[3] == np.inf
    for bad in (dict(reference=0), dict(reference=-1), dict(reference=NAN), dict(floor_db=0), dict(floor_db=10)):
        with pytest.raises(SepnbError): level_db([1.0], **bad)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 7), (2, 5, 3), (1, 5, 3)])
def test_small_spectrograms(shape):
    for fill in (0.0, 1.0, NAN): assert png_bytes(plot_spectrogram(np.full(shape, fill), sample_rate=RATE, hop_length=HOP).figure, dpi=40)


def test_channels_are_averaged_in_power():
    image = plot_spectrogram(np.stack([3 * np.ones((4, 4)), 4 * np.ones((4, 4))]), sample_rate=RATE, hop_length=HOP, reference=1.0, floor_db=-90).images[0]
    np.testing.assert_allclose(image.get_array(), 10 * np.log10(12.5))


def test_grid_shares_one_scale_and_leaves_gaps():
    axes = plot_grid({"truth": {"mix": MAG, "a": MAG[0] / 2}, "net": {"a": 0 * MAG[0], "b": MAG[1] / 100}}, sample_rate=RATE, hop_length=HOP)
    assert axes.shape == (2, 3) and [bool(ax.images) for ax in axes.flat] == [True, True, False, False, True, True]
    top = {k: ax.images[0].get_array().max() for k, ax in enumerate(axes.flat) if ax.images}
    assert max(top.values()) == 0 and top[4] == -80 and top[5] < -38 and {ax.images[0].get_clim() for ax in axes.flat if ax.images} == {(-80, 0)}
    assert [ax.get_title() for ax in axes.flat] == ["mix", "a", "", "", "", "b"]
    assert len(axes[0, 0].figure.axes) == 7  # six and the scale


@pytest.mark.parametrize("samples", [1, 2, 3999, 4001, 100_003])
def test_waveform_keeps_the_peak(samples):
    x = np.zeros((2, samples)); x[1, samples // 3] = -0.7
    ax = plot_waveform(x, sample_rate=RATE)
    drawn = np.concatenate([line.get_ydata() for line in ax.lines] + [patch.get_paths()[0].vertices[:, 1] for patch in ax.collections])
    assert drawn.min() == -0.7 and ax.get_ylim() == (-1.05 * 0.7, 1.05 * 0.7) and ax.get_xlim()[1] == max(samples, 2) / RATE


def test_waveform_of_silence_and_nan():
    assert plot_waveform(np.zeros(10), sample_rate=RATE).get_ylim() == (-1.05, 1.05)
    x = np.ones(50_000); x[1000:9000] = NAN
    assert png_bytes(plot_waveform(x, sample_rate=RATE).figure, dpi=40) and png_bytes(plot_waveform(np.full(9, NAN), sample_rate=RATE).figure, dpi=40)


def test_history_marks_the_best_epoch():
    ax = plot_history({"train": [5, 4, 3, 2], "valid": [5, NAN, 2.5, 3]}, best="valid", log=True)
    assert labels(ax) == ["train", "valid", "best: epoch 3"] and ax.get_yscale() == "log"
    assert ax.lines[2].get_xdata() == [3] and ax.lines[2].get_ydata() == [2.5]
    assert len({(line.get_linestyle(), to_hex(line.get_color())) for line in ax.lines[:2]}) == 2
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3, 4])
    one = plot_history({"loss": [0.5], "later": []})
    assert len(one.lines) == 1 and one.lines[0].get_marker() == "." and labels(one) == ["loss"]


def test_density_shows_mean_and_median_of_all_finite_values():
    x = np.concatenate([np.random.default_rng(1).normal(5, 2, 1000), [-200.0] * 3, [NAN] * 4, [np.inf, -np.inf]])
    ax = plot_density(x, label="vocals", xlabel="SI-SDR (dB)")
    good = x[np.isfinite(x)]
    assert labels(ax)[0].startswith("vocals: n = 1003, 6 dropped, ") and labels(ax)[0].endswith("beyond")
    lines = {to_hex(line.get_color()).upper(): line.get_xdata()[0] for line in ax.lines}
    assert lines == {MEAN: pytest.approx(good.mean()), MEDIAN: pytest.approx(np.median(good))}
    assert labels(ax)[1:] == [f"mean {good.mean():.2f}", f"median {np.median(good):.2f}"]
    assert ax.get_xlim()[0] <= good.mean() <= ax.get_xlim()[1] and ax.get_xlabel() == "SI-SDR (dB)"


def test_density_keeps_a_spike_and_integrates_to_one():
    x = np.concatenate([np.random.default_rng(2).normal(6, 3, 2000), np.zeros(400)])
    ax = plot_density(x, limits=(-20, 20), bins=80)
    data = ax.patches[0].get_data()
    assert (data.values * np.diff(data.edges)).sum() == pytest.approx(1) and abs(data.edges[data.values.argmax()]) <= 0.5
    half = plot_density(x, limits=(6, 20)); data = half.patches[0].get_data()
    assert (data.values * np.diff(data.edges)).sum() == pytest.approx((x >= 6).mean()) and f"{(x < 6).sum()} beyond" in labels(half)[0]


@pytest.mark.parametrize("x", [[3.0], [2.0, 2.0], [1e-4, 2e-4], [1e2, 1e8], [0, -0.0]])
def test_density_of_few_values(x):
    ax = plot_density(x)
    assert labels(ax)[0] == f"n = {len(x)}" and png_bytes(ax.figure, dpi=40)
    assert "2 beyond" in labels(plot_density([1.0, 2.0], limits=(5, 6)))[0]


def test_boxes_count_what_they_drop_and_keep_empty_rows():
    ax = plot_boxes({"mixture": [1, 2, NAN, 3.0], "broken": [NAN, np.inf], "missing": [], "IRM": [5.0]}, xlabel="dB")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["mixture\nn = 3, 1 dropped", "broken\nno finite value", "missing\nno finite value", "IRM\nn = 1"]
    assert ax.yaxis_inverted() and [line.get_xdata()[0] for line in ax.lines if to_hex(line.get_color()).upper() == MEDIAN][0] == 2


def test_bars_carry_their_numbers():
    ax = plot_bars({"mixture": {"drums": -6.04, "bass": 0.0}, "UMX": {"drums": 5.54, "voice": NAN}}, ylabel="dB")
    assert sorted(t.get_text() for t in ax.texts) == sorted(["-6.0", "0.0", "n/a", "5.5", "n/a", "n/a"])
    assert labels(ax) == ["drums", "bass", "voice"] and [t.get_text() for t in ax.get_xticklabels()] == ["mixture", "UMX"]
    assert len({(to_hex(p.get_facecolor()), p.get_hatch()) for p in ax.patches}) == 3


def test_eight_colours_differ(): assert len(set(COLORS)) == 8 and {MEAN, MEDIAN} < set(COLORS)


@pytest.mark.parametrize("call", [
    lambda: plot_spectrogram([], sample_rate=RATE, hop_length=HOP), lambda: plot_spectrogram(np.zeros((0, 4)), sample_rate=RATE, hop_length=HOP),
    lambda: plot_spectrogram(np.zeros(4), sample_rate=RATE, hop_length=HOP), lambda: plot_waveform([], sample_rate=RATE), lambda: plot_waveform(np.zeros((2, 0)), sample_rate=RATE),
    lambda: plot_history({}), lambda: plot_history({"a": []}), lambda: plot_history({"a": [NAN]}), lambda: plot_history({"a": [-1.0]}, log=True), lambda: plot_history({"a": [1.0]}, best="b"),
    lambda: plot_density([]), lambda: plot_density([NAN, np.inf]), lambda: plot_density(["x"]), lambda: plot_boxes({}), lambda: plot_boxes({"a": [NAN]}),
    lambda: plot_bars({}), lambda: plot_bars({"a": {}}), lambda: plot_bars({"a": {"b": NAN}}), lambda: plot_grid({}, sample_rate=RATE, hop_length=HOP), lambda: plot_grid({"a": {}}, sample_rate=RATE, hop_length=HOP),
    lambda: plot_grid({"a": {"b": np.zeros((4, 0))}}, sample_rate=RATE, hop_length=HOP)])
def test_nothing_to_draw_is_an_error_in_one_line_and_leaves_no_figure(call):
    with pytest.raises(SepnbError) as e: call()
    assert "\n" not in str(e.value) and not plt.get_fignums()
