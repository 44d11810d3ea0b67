"""Demucs: the package's own network with the same weights, published sizes, lengths, levels and gradients."""
import importlib
import importlib.util

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from sepnb.core import SepnbError
from sepnb.models.demucs import (ACTIVATIONS, VARIANTS, Demucs, Gated, SincResample, conv_transpose, fitting_length, from_reference_state,
                                 rescale_weights)
from sepnb.models.layers import count_parameters
from sepnb.synth import toy_sources

TINY = dict(width=4, depth=3, sample_rate=8000)


@pytest.fixture(autouse=True)
def seeded(two_threads):
    torch.manual_seed(0); torch.set_num_threads(1)  # small networks gain nothing from a second thread


def package(name):
    if importlib.util.find_spec(name.split(".")[0]) is None: pytest.skip(f"package {name.split('.')[0]} is not here; see tests/references.txt")
    return importlib.import_module(name)


@pytest.fixture
def reference():
    "The package demucs; its module of this network needs two others, and no more."
    return [package(name) for name in ("julius", "einops", "demucs.demucs")][-1]


def music(b=1, channels=2, seconds=0.4, sample_rate=8000, stems=("bass", "vocals")):
    g = torch.Generator().manual_seed(0)
    return torch.stack([toy_sources(g, seconds=seconds, sample_rate=sample_rate, channels=channels, stems=list(stems)) for _ in range(b)])


def pair(reference, *, stems=2, channels=2, width=8, depth=3, context=1, glu=True, lstm=2, resample=True, normalise=True, edges="zero"):
    "The package's network as version 2 and ours with its weights; biases and gates as after some training."
    theirs = reference.Demucs([f"s{k}" for k in range(stems)], audio_channels=channels, channels=width, depth=depth, context=context, glu=glu,
                              lstm_layers=lstm, resample=resample, normalize=normalise, gelu=False, dconv_mode=0, norm_starts=99)
    ours = Demucs(stems, channels, width=width, depth=depth, context=2 * context + 1, edges=edges, activation="glu" if glu else "relu", lstm=lstm,
                  resample=2 if resample else 1, normalise=normalise)
    ours.load_state_dict(from_reference_state(theirs.state_dict()))
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("length", [1, 2, 31, 1000, 4097])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_resampling_equals_julius(factor, length, scale):
    julius, x, ours = package("julius"), scale * torch.randn(2, 2, length), SincResample(factor)
    torch.testing.assert_close(ours.up(x), julius.resample_frac(x, 1, factor), atol=2e-6 * scale, rtol=1e-5)
    torch.testing.assert_close(ours.down(x), julius.resample_frac(x, factor, 1, full=True), atol=2e-6 * scale, rtol=1e-5)


def test_ten_seconds_of_music_equal_the_package(reference):
    theirs, ours = pair(reference, stems=4, depth=6)
    mix = 3 * music(seconds=10, sample_rate=44100).sum(1)
    with torch.inference_mode(): a, b = ours(mix), theirs(mix)
    assert a.shape == b.shape == (1, 4, 2, 441000) and b.std() > 0.01
    assert (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [dict(), dict(context=0, edges="cut"), dict(context=0), dict(context=2), dict(glu=False), dict(lstm=0), dict(lstm=1),
                                      dict(resample=False), dict(channels=1, stems=1), dict(channels=3, stems=3, depth=2, width=5)], ids=str)
@pytest.mark.parametrize("scale, length", [(1e-4, 1999), (1.0, 1), (1e2, 2000)])
def test_equals_the_package_in_every_variant(reference, changes, scale, length):
    "Its deviation has 1e-5 added, which a quiet mixture would show; without normalisation it must not matter."
    theirs, ours = pair(reference, normalise=False, **changes)
    mix = scale * torch.randn(2, changes.get("channels", 2), length)
    with torch.inference_mode(): a, b = ours(mix), theirs(mix)
    torch.testing.assert_close(a, b, atol=1e-5 * max(1, scale), rtol=1e-4)


def test_gradients_equal_those_of_the_package(reference):
    theirs, ours = pair(reference, lstm=1)
    sources = 3 * music(2)
    for net in (theirs, ours): (net(sources.sum(1)) - sources).abs().mean().backward()
    grads = from_reference_state({k: p.grad for k, p in theirs.named_parameters()})
    for name, p in ours.named_parameters(): torch.testing.assert_close(p.grad, grads[name], atol=1e-5, rtol=1e-2)


def test_older_files_have_other_numbers(reference):
    "Files of version 2 count the second convolution of a layer as 2, the package as 3."
    state = pair(reference)[0].state_dict()
    old = {k.replace(".3.", ".2.") if "coder" in k else k: v for k, v in state.items()}
    assert set(old) != set(state)
    for name, value in from_reference_state(old).items(): assert torch.equal(value, from_reference_state(state)[name])


def test_weights_of_descendants_are_refused(reference):
    for different in (dict(dconv_mode=1, gelu=False, norm_starts=99), dict(dconv_mode=0, norm_starts=0, norm_groups=1)):
        net = reference.Demucs(["a"], channels=4, depth=2, dconv_attn=9, dconv_lstm=9, **different)
        with pytest.raises(SepnbError, match="another network"): from_reference_state(net.state_dict())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 40))
def test_transposed_convolution_two_ways(stride, taps, outputs, frames):
    x, weight, bias = torch.randn(2, 3, frames), torch.randn(3, outputs, taps * stride), torch.randn(outputs)
    torch.testing.assert_close(conv_transpose(x, weight, bias, stride=stride), F.conv_transpose1d(x, weight, bias, stride), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [3, 4095, 4096, 4097, 4098, 4099, 9000])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_blocks_of_frames_leave_no_seam(frames, activation):
    gate, x = Gated(4, 3, activation), torch.randn(2, 4, frames); whole = gate(x)
    with torch.inference_mode(): torch.testing.assert_close(gate(x), whole, atol=1e-6, rtol=1e-5)


def test_valid_length_of_the_paper():
    assert Demucs(**TINY).valid_length(441000) >= 441000
    with torch.device("meta"): assert Demucs.preset("published").valid_length(441000) == 447146


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200000), st.integers(1, 6), st.sampled_from([(8, 4), (4, 2), (16, 8), (3, 3), (6, 3)]), st.sampled_from([0, 2, 4]), st.integers(1, 3))
def test_lengths_that_fit(length, depth, sizes, cut, resample):
    "Followed down and up with the operations of the network, at least as much comes out, and without a cut no more than a frame of the bottom in vain."
    (kernel, stride), fit = sizes, dict(depth=depth, kernel=sizes[0], stride=sizes[1], cut=cut, resample=resample)
    fits = frames = fitting_length(length, **fit)
    frames *= resample
    for _ in range(depth): frames = (frames - kernel) // stride + 1
    for _ in range(depth): frames = (frames - cut - 1) * stride + kernel
    assert fits >= length and -(-frames // resample) >= length
    least = fitting_length(1, **fit)
    if not cut: assert fits - length <= max(least, stride**depth)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3000), st.sampled_from([dict(), dict(edges="zero"), dict(resample=1), dict(resample=3), dict(kernel=6, stride=3), dict(context=5),
                                              dict(lstm=0, pointwise=2), dict(kernel=4, stride=4)]))
def test_any_length_in_the_same_length_out(length, changes):
    with torch.inference_mode(): assert Demucs(3, 1, **TINY | changes)(torch.randn(1, 1, length)).shape == (1, 3, 1, length)


def test_published_sizes():
    "Counted by hand: strided, 1×1, context and transposed convolutions of each layer, the BLSTM and its linear layer."
    def by_hand(width, stems=4, channels=2, depth=6):
        widths, total = [width * 2**k for k in range(depth)], 0
        for inputs, c in zip([channels, *widths], widths):
            outputs = stems * channels if c == width else inputs
            total += (8 * inputs + 1) * c + (c + 1) * 2 * c + (3 * c + 1) * 2 * c + 8 * c * outputs + outputs
        c = widths[-1]
        return total + 2 * 4 * c * (2 * c + 2) + 2 * 4 * c * (3 * c + 2) + (2 * c + 1) * c
    for name, width, millions in (("published", 64, 265.7), ("medium", 48, 149.4), ("small", 32, 66.4)):
        with torch.device("meta"): count = count_parameters(Demucs.preset(name))
        assert count == by_hand(width) and abs(count / 1e6 - millions) < 0.1
    assert count_parameters(Demucs.preset("light", stems=2)) < 3e6


@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants_differ_from_the_network_by_what_they_say(name):
    full, variant = (Demucs(2, 2, **TINY | changes) for changes in ({}, VARIANTS[name]))
    assert {k for k in full.config if full.config[k] != variant.config[k]} == set(VARIANTS[name]) and len(VARIANTS[name]) == 1
    sources = music(2); mix = sources.sum(1)
    (variant(mix) - sources).abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in variant.parameters())
    assert (count_parameters(variant) < count_parameters(full)) == (name not in ("no_resampling", "no_rescaling"))


def test_rescaling_is_done_once_for_every_convolution():
    raw = Demucs(2, 2, **TINY, rescale=None); torch.manual_seed(0); done = Demucs(2, 2, **TINY)
    torch.manual_seed(0); raw = Demucs(2, 2, **TINY, rescale=None)
    for (name, a), b in zip(raw.named_parameters(), done.parameters()):
        if "bottom" in name: assert torch.equal(a, b)
        elif name.endswith("weight"): torch.testing.assert_close(b.std(), (a.std() * 0.1).sqrt())
    rescale_weights(raw, 0.1)
    for a, b in zip(raw.parameters(), done.parameters()): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("stems, channels", [(1, 1), (4, 2), (2, 3)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_levels(stems, channels, scale):
    model = Demucs(stems, channels, **TINY).eval(); mix = torch.randn(2, channels, 1501); kept = mix.clone()
    with torch.inference_mode():
        out = model(mix * scale)
        torch.testing.assert_close(out, scale * model(mix), atol=1e-5 * scale, rtol=1e-4)
        offset = model(mix + 3)
    assert out.isfinite().all() and torch.equal(mix, kept)
    torch.testing.assert_close(offset, model(mix) + 3, atol=1e-4, rtol=1e-4)


def test_silence_precision_and_neighbours():
    model = Demucs(2, 2, **TINY).eval(); mix = music(2).sum(1); single = model(mix)
    assert not model(0 * mix).any()
    mix[0, 0, 7] = torch.nan
    torch.testing.assert_close(model(mix)[1], single[1], atol=1e-6, rtol=1e-5)
    for x in (music(2).sum(1), 1e-3 * music(2).sum(1)):
        exact = Demucs(2, 2, **TINY).double(); exact.load_state_dict(model.state_dict())
        torch.testing.assert_close(exact(x.double()).float(), model(x), atol=1e-5, rtol=1e-3)


def test_training_and_inference_agree():
    model, mix = Demucs(2, 2, **TINY).eval(), music(2, seconds=3.0).sum(1)
    with_graph = model(mix)
    with torch.no_grad(): torch.testing.assert_close(model(mix), with_graph, atol=1e-5, rtol=1e-4)
    with torch.inference_mode(): torch.testing.assert_close(model(mix), with_graph, atol=1e-5, rtol=1e-4)


def test_a_batch_by_heart():
    sources = music(2, seconds=0.25, stems=("bass", "vocals")); mix = sources.sum(1)
    model = Demucs(2, 2, **TINY | dict(width=16)); optimiser, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(60):
        loss = (model(mix) - sources).abs().mean(); optimiser.zero_grad(); loss.backward(); optimiser.step(); losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    assert losses[0] > 2.5 * losses[-1]


def test_config_rebuilds_the_model():
    model = Demucs(3, 1, **TINY, lstm=1, edges="zero"); mix = torch.randn(2, 1, 900)
    again = Demucs(**model.config); again.load_state_dict(model.state_dict())
    assert torch.equal(again(mix), model(mix)) and again.config == model.config
    assert all(not k.startswith("resampler") for k in model.state_dict())  # its filters follow from the arguments


def test_mistakes_are_one_line():
    model = Demucs(2, 2, **TINY)
    for call in (lambda: Demucs(kernel=6), lambda: Demucs(context=2), lambda: Demucs(activation="tanh"), lambda: Demucs(edges="mirror"), lambda: Demucs(depth=0),
                 lambda: Demucs(resample=0), lambda: Demucs(stems=0), lambda: model(torch.zeros(1, 1, 9)), lambda: model(torch.zeros(1, 2, 0)),
                 lambda: from_reference_state({}), lambda: Demucs.preset("huge")):
        with pytest.raises(SepnbError) as caught: call()
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="n_fft"): Demucs(n_fft=9)
