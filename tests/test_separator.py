"""The contract: any length, rate, number of channels; overlap-add is a partition of unity."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError
from sepnb.separator import Separator, build, fade_weights, overlap_add, register, segment_starts, separate, split_channels, systems


class Identity(Separator):
    def estimate(self, mix, sources=None):
        return torch.stack([mix, -mix])


class Fixed(Separator):
    "Works at its own rate and channels and checks that it gets them."
    sample_rate, channels, segment_s = 16000, 2, 0.05

    def estimate(self, mix, sources=None):
        assert mix.shape[0] == 2 and mix.shape[-1] <= 800
        return torch.stack([0.25 * mix, 0.75 * mix])


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 3000), segment=st.integers(1, 4000), overlap=st.floats(0, 0.95), channels=st.integers(1, 3))
def test_a_pass_through_returns_its_input(length, segment, overlap, channels):
    if length / max(1, segment * (1 - overlap)) > 500:
        return
    x = torch.randn(channels, length, generator=torch.Generator().manual_seed(length))
    out = overlap_add(lambda piece, start: piece[None], x, segment=segment, overlap=overlap)
    assert out.shape == (1, channels, length) and (out[0] - x).abs().max() <= 1e-6 * max(1, x.abs().max())


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 5000), segment=st.integers(1, 5000), overlap=st.floats(0, 0.99))
def test_segments_cover_every_sample_and_stay_inside(length, segment, overlap):
    starts = segment_starts(length, segment, overlap)
    covered = torch.zeros(length, dtype=torch.bool)
    for s in starts:
        covered[s:s + segment] = True
        assert 0 <= s and (s + segment <= length or s == 0)
    assert covered.all() and starts == sorted(starts)


@pytest.mark.parametrize("segment,overlap", [(1, 0), (2, 0.5), (7, 0.3), (100, 0.0), (100, 0.25), (101, 0.5), (50, 0.99)])
def test_weights_are_positive_and_symmetric(segment, overlap):
    w = fade_weights(segment, overlap)
    assert w.shape == (segment,) and w.min() > 0 and w.max() <= 1 and torch.equal(w, w.flip(0))


def test_estimate_is_told_where_its_segment_starts():
    x = torch.arange(1000.0)[None]
    def check(piece, start):
        assert piece[0, 0] == start
        return piece[None]
    overlap_add(check, x, segment=128, overlap=0.3)


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("length", [1, 7, 5001])
def test_rate_channels_and_length_come_back(channels, rate, length):
    x = torch.randn(channels, length)
    out = separate(Fixed(["a", "b"]), x, rate)
    assert all(v.shape == x.shape and v.isfinite().all() for v in out.values())
    if rate == 16000:
        assert (sum(out.values()) - x).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scales_and_dtypes(scale, dtype):
    x = (scale * torch.randn(2, 4000)).to(dtype)
    before = x.clone()
    out = separate(Identity(["a", "b"]), x, 8000)
    assert out["a"].dtype == dtype and torch.equal(x, before)
    assert (out["a"] - x).abs().max() <= 1e-6 * scale * 5


def test_split_channels_covers_each_once():
    for channels in range(1, 10):
        for wanted in (None, 1, 2, 4):
            flat = [i for group in split_channels(channels, wanted) for i in group]
            assert flat == list(range(channels))


@pytest.mark.parametrize("bad", [torch.zeros(2, 0), torch.zeros(0, 5), torch.zeros(7), torch.zeros(1, 2, 3), torch.zeros(2, 4, dtype=torch.int16),
                                 torch.tensor([[float("inf"), 0.0]]), torch.tensor([[float("nan"), 0.0]])])
def test_what_is_not_a_mixture_is_refused(bad):
    with pytest.raises(SepnbError):
        separate(Identity(["a", "b"]), bad, 8000)


def test_a_bound_without_sources_is_refused():
    assert build("irm", ["a", "b"]).needs_sources
    with pytest.raises(SepnbError, match="bound"):
        separate(build("irm", ["a", "b"]), torch.randn(2, 100), 8000)


def test_names():
    assert {"mixture", "ibm", "irm", "wfm", "hpss"} <= {s.name for s in systems()}
    with pytest.raises(SepnbError, match="did you mean 'hpss'"):
        build("hpps")
    with pytest.raises(SepnbError, match="settings"):
        build("hpss", ["a"], depth=3)
    with pytest.raises(SepnbError, match="taken"):
        register("irm", kind="bound", summary="another")(Identity)
    with pytest.raises(SepnbError, match="overlap"):
        segment_starts(10, 5, 1.0)
