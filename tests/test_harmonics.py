"""Harmonic maps: the index table against its definition, counts, zero rules, gradients."""
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.models.harmonics import HarmonicMaps, harmonic_index, map_ratios
from sepnb.stft import STFT, magnitude
from sepnb.synth import tone

RATIOS = st.lists(st.fractions(min_value=Fraction(1, 9), max_value=9, max_denominator=9), min_size=1, max_size=8, unique=True)


def direct(x, ratios): # the definition, bin by bin
    out = torch.zeros(*x.shape[:1], x.shape[1], len(ratios), *x.shape[2:], dtype=x.dtype)
    for h, r in enumerate(ratios):
        for f in range(x.shape[2]):
            if r < 1 and f * r < 1: continue
            g = floor(f * r + Fraction(1, 2))
            if g < x.shape[2]: out[:, :, h, f] = x[:, :, g]
    return out.flatten(1, 2)


@settings(deadline=None, max_examples=40)
@given(ratios=RATIOS, bins=st.integers(1, 90))
def test_table_is_the_definition(ratios, bins):
    table = harmonic_index(ratios, bins)
    assert table.shape == (len(ratios), bins) and table.dtype == torch.int64
    for h, r in enumerate(ratios):
        for f in range(bins):
            g = floor(f * r + Fraction(1, 2))
            assert table[h, f] == (bins if g >= bins or (r < 1 and f * r < 1) else g)


@pytest.mark.parametrize("maps", ["1h", "5h+3d"])
def test_rows_on_top_are_empty(maps):
    x = torch.rand(2, 2, 50, 3)
    y, taller = HarmonicMaps(maps, 50)(x), HarmonicMaps(maps, 50, rows=64)(x)
    assert taller.shape[2] == 64 and torch.equal(taller[:, :, :50], y) and not taller[:, :, 50:].any()


@settings(deadline=None, max_examples=25)
@given(ratios=RATIOS, bins=st.integers(1, 40), channels=st.integers(1, 3), frames=st.integers(1, 5), double=st.booleans(), seed=st.integers(0, 99))
def test_layer_is_the_definition(ratios, bins, channels, frames, double, seed):
    x = torch.rand(2, channels, bins, frames, generator=torch.Generator().manual_seed(seed), dtype=torch.float64 if double else torch.float32)
    before = x.clone()
    y = HarmonicMaps(ratios, bins)(x)
    assert y.dtype == x.dtype and torch.equal(y, direct(x, ratios)) and torch.equal(x, before)


@pytest.mark.parametrize("maps, count", [("1h", 1), ("3h", 3), ("5h", 5), ("9h", 9), ("5h+1s", 6), ("5h+3s", 8), ("9h+5s", 14), ("5h+3d", 14)])
def test_settings_of_the_thesis(maps, count):
    ratios = map_ratios(maps)
    assert len(ratios) == count == len(set(ratios)) and ratios[0] == 1
    assert HarmonicMaps(maps, 32)(torch.rand(1, 2, 32, 3)).shape == (1, 2 * count, 32, 3)


def test_dense_holds_the_sub_harmonics_and_stays_below_two():
    for maps in ("3h+3d", "5h+3d", "9h+5d"):
        h, d = int(maps[0]), int(maps[3])
        extra = set(map_ratios(maps)[h:])
        assert {Fraction(1, s) for s in range(2, d + 2)} <= extra and max(extra) < 2 and not extra & set(map_ratios(f"{h}h"))


def test_dense_maps_fit_the_published_dense_blocks():
    # maps after the first block: inputs plus layers times growth (Wiegratz 2021, tables A.1 and A.2)
    inputs = 2 * len(map_ratios("5h+3d"))
    assert [inputs + n * m for n, m in ((5, 8), (5, 9), (4, 9))] == [68, 73, 64]


@pytest.mark.parametrize("bad", ["", "h", "3d", "5", "5h+", "5h+3x", "5h 3d", "-1h", [], [0], ["1/0"], [-2], [None], ["x"]])
def test_refuses_what_it_cannot_read(bad):
    with pytest.raises(SepnbError): map_ratios(bad)


@pytest.mark.parametrize("shape", [(1, 2, 31, 4), (2, 32, 4), (32,)])
def test_refuses_other_shapes(shape):
    with pytest.raises(SepnbError): HarmonicMaps("5h+3d", 32)(torch.zeros(shape))


def test_out_of_range_is_zero():
    layer = HarmonicMaps("5h+3d", 64)
    y = layer(torch.ones(1, 1, 64, 1))[0, :, :, 0]
    for row, r in zip(y, layer.ratios):
        for f in range(64): assert row[f] == (0 if floor(f * r + Fraction(1, 2)) >= 64 or (r < 1 and f * r < 1) else 1)
    assert not layer(torch.zeros(2, 3, 64, 2)).any()


def test_gradient_counts_the_looks_at_each_bin():
    layer = HarmonicMaps("5h+3d", 48); x = torch.rand(1, 2, 48, 3, requires_grad=True)
    layer(x).sum().backward()
    looks = torch.bincount(layer.index, minlength=49)[:48].float()
    assert torch.equal(x.grad, looks[:, None].expand(1, 2, 48, 3))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_copies_and_never_computes(scale):
    x = scale * torch.rand(2, 1, 100, 4); y = HarmonicMaps("9h+5d", 100)(x)
    assert torch.equal(HarmonicMaps("9h+5d", 100)(x * 4), y * 4) and set(y.unique().tolist()) <= {0.0, *x.unique().tolist()}
    assert torch.equal(HarmonicMaps(["1"], 100)(x), x)


def test_nothing_to_train_or_to_save():
    layer = HarmonicMaps("5h+3d", 16)
    assert not layer.state_dict() and not list(layer.parameters())
    assert layer.to(torch.float64)(torch.rand(1, 1, 16, 2)).dtype == torch.float32  # the table stays whole numbers


@pytest.mark.parametrize("f0", [9, 20, 41, 100])
def test_partials_line_up(f0):
    note = sum(tone(f0 * k * 16000 / 1024, amplitude=0.1, seconds=0.5) for k in range(1, 6) if f0 * k < 500)
    mag = magnitude(STFT(1024, 512)(note[None]))[None, :, :512]
    partials = min(5, 499 // f0)
    y = HarmonicMaps("5h", 512)(mag)[0, :partials, :, 7]
    assert y.amin(0).argmax() == f0 and y[:, f0].min() > 0.9 * y[0].max()
