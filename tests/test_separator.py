"""The contract: any length, rate, number of channels; overlap-add is a partition of unity."""
import weakref

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.audio import resample
from sepnb.core import SepnbError
from sepnb.separator import (Separator, build, configure, cross_fade, fade_weights, mean_of, overlap_add, overlap_add_blocks, register, segment_starts, segments,
                             separate, shift_leads, split_channels, stream, systems)


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


# ---- streaming

def cut_at_random(x, seed, longest):
    "A signal in blocks of random lengths."
    generator, blocks = torch.Generator().manual_seed(seed), []
    while x.shape[-1]:
        n = int(torch.randint(1, longest + 1, (1,), generator=generator)); blocks.append(x[..., :n]); x = x[..., n:]
    return blocks


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 3000), segment=st.integers(1, 4000), overlap=st.floats(0, 0.95), weighting=st.sampled_from(["trapezoid", "triangle"]),
       power=st.sampled_from([0.5, 1.0, 2.0, 8.0]), batch=st.integers(1, 4), longest=st.integers(1, 2000))
def test_a_streamed_pass_through_returns_its_input(length, segment, overlap, weighting, power, batch, longest):
    if length / max(1, segment * (1 - overlap)) > 300 or length / longest > 300:
        return
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    out = list(overlap_add_blocks(lambda starts, p: p[:, None], cut_at_random(x, segment, longest), segment=segment, overlap=overlap, weighting=weighting, power=power, batch=batch))
    error = (torch.cat(out, -1)[0] - x).abs().max()
    assert error <= 1e-6 * max(1, x.abs().max()) and 20 * torch.log10(error / x.abs().max() + 1e-12) < -80


@settings(deadline=None, max_examples=40)
@given(length=st.integers(1, 5000), segment=st.integers(1, 5000), overlap=st.floats(0, 0.99), longest=st.integers(20, 6000))
def test_streamed_segments_are_those_of_the_whole(length, segment, overlap, longest):
    starts = segment_starts(length, segment, overlap)
    if len(starts) > 500:
        return
    found = list(segments(cut_at_random(torch.arange(float(length))[None], length, longest), segment=segment, overlap=overlap))
    assert [start for start, _ in found] == starts
    assert all(torch.equal(x[0], torch.arange(start, start + min(segment, length), dtype=x.dtype)) for start, x in found)


class Coloured(Fixed):
    "Not a pass-through: what it returns depends on where a segment begins and ends."
    def estimate(self, mix, sources=None):
        ramp = torch.linspace(0.5, 1.5, mix.shape[-1]).to(mix)
        return torch.stack([mix * ramp, mix * ramp.flip(0)])


@pytest.mark.parametrize("channels,rate,length,how", [
    (1, 44100, 30001, {}), (2, 16000, 9001, dict(weighting="triangle", overlap=0.5)), (5, 8000, 4999, dict(batch=3)), (2, 22050, 12000, dict(shifts=3, seed=4)),
    (2, 11025, 8000, dict(shifts=2, batch=2, weighting="triangle", power=2.0)), (2, 48000, 1, dict(shifts=1)), (2, 16000, 700, {}), (2, 16000, 800, {})])
def test_streaming_and_memory_give_the_same_bits(channels, rate, length, how):
    x = torch.randn(channels, length, generator=torch.Generator().manual_seed(length))
    system = configure(Coloured(["a", "b"]), **how)
    whole = torch.stack(list(separate(system, x, rate).values()))
    for longest in (700, 10**5):
        parts = torch.cat(list(stream(system, cut_at_random(x, 1, longest), rate)), -1)
        assert parts.shape == (2, channels, length) and torch.equal(parts, whole)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_shares_sum_to_the_mixture_without_a_seam(scale, rate):
    t = torch.arange(rate * 2) / rate
    x = scale * torch.stack([torch.sin(2 * torch.pi * 440 * t), torch.cos(2 * torch.pi * 1000 * t)])
    for how in (dict(), dict(weighting="triangle", overlap=0.25), dict(shifts=2)):
        out = sum(separate(configure(Fixed(["a", "b"]), **how), x, rate).values())
        there_and_back = resample(resample(x, rate, 16000), 16000, rate)[:, :x.shape[-1]] # the tones' sudden ends ring in the filters
        assert 20 * torch.log10((out - there_and_back).abs().max() / scale) < -100


def test_jobs_and_batches_do_not_change_the_numbers():
    x = torch.randn(2, 20000)
    one, many = separate(Coloured(["a", "b"]), x, 16000), separate(configure(Coloured(["a", "b"]), jobs=3, batch=2), x, 16000)
    assert all((one[k] - many[k]).abs().max() < 1e-6 for k in one)


def test_an_error_in_a_thread_comes_through():
    class Bad(Fixed):
        def estimate(self, mix, sources=None): raise RuntimeError("bad")
    with pytest.raises(RuntimeError, match="bad"):
        separate(configure(Bad(["a", "b"]), jobs=2), torch.randn(2, 5000), 16000)


def test_bounds_see_the_sources_of_their_segment():
    class Oracle(Separator):
        needs_sources, segment_s, sample_rate = True, 0.1, 8000
        def estimate(self, mix, sources=None):
            assert torch.allclose(sources.sum(0), mix, atol=1e-4)
            return sources
    sources = torch.randn(3, 2, 22050)
    sources = torch.nn.functional.avg_pool1d(sources, 9, stride=1, padding=4) # little above 4 kHz
    for how in (dict(), dict(shifts=2), dict(batch=4)):
        out = separate(configure(Oracle(["a", "b", "c"]), **how), sources.sum(0), 22050, sources=sources)
        direct = separate(configure(Oracle(["a", "b", "c"]), segment_s=60), sources.sum(0), 22050, sources=sources)
        assert all(torch.allclose(out[k], direct[k], atol=1e-5) for k in out)
    with pytest.raises(SepnbError, match="bound"):
        next(stream(Oracle(["a", "b", "c"]), [torch.randn(2, 9)], 8000))


def test_shifts_are_drawn_from_the_seed_and_undone():
    assert shift_leads(4, 100, seed=1) == shift_leads(4, 100, seed=1) != shift_leads(4, 100, seed=2)
    assert shift_leads(0, 100, seed=1) == [0] and set(shift_leads(50, 3, seed=0)) == {0, 1, 2, 3}
    x = torch.randn(2, 30000)
    first, again, other = (separate(configure(Coloured(["a", "b"]), shifts=3, seed=seed), x, 16000)["a"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    runs = []
    for lead in shift_leads(3, 8000, seed=1): # by hand, on the whole
        late = torch.nn.functional.pad(x, (lead, 0))
        runs.append(separate(Coloured(["a", "b"]), late, 16000)["a"][:, lead:])
    assert (sum(runs) / 3 - first).abs().max() < 1e-6


def test_the_mean_of_streams_does_not_mind_their_blocks():
    x, y = torch.randn(2, 3, 1000)
    out = torch.cat(list(mean_of([iter(cut_at_random(x, 1, 90)), iter(cut_at_random(y, 2, 300))])), -1)
    assert torch.equal(out, (x + y) / 2)
    assert list(cross_fade([], None)) == [] and list(segments([], segment=3, overlap=0)) == []


def test_held_samples_do_not_grow_with_the_song():
    class Watch(Separator):
        segment_s, overlap, sample_rate = 0.5, 0.25, 8000
        def estimate(self, mix, sources=None): return mix[None].clone()
    for how in (dict(), dict(shifts=3), dict(batch=3, jobs=2)):
        alive, most = weakref.WeakSet(), []
        def blocks(count):
            for _ in range(count):
                x = torch.zeros(1, 1000); alive.add(x); most.append(len(alive)); yield x
        peaks = []
        for count in (60, 240):
            most.clear(); made = sum(part.shape[-1] for part in stream(configure(Watch(["a"]), **how), blocks(count), 11025)); peaks.append(max(most))
            assert made == count * 1000
        assert peaks[1] <= peaks[0] + 2


def test_settings_that_cannot_work():
    class Whole(Identity):
        segment_s = None
    for system, bad in ((Identity(["a", "b"]), dict(segment_s=0)), (Identity(["a", "b"]), dict(batch=0)), (Identity(["a", "b"]), dict(jobs=True)),
                        (Identity(["a", "b"]), dict(overlap="much")), (Whole(["a", "b"]), dict(segment_s=3.0)), (Identity(["a", "b"]), dict(wings=2))):
        with pytest.raises(SepnbError):
            configure(system, **bad)
    assert separate(Whole(["a", "b"]), torch.ones(1, 9), 8000)["a"].shape == (1, 9)
