"""Block similarity against the equation itself, peak picking against a plain loop, phrases of known songs, blocks as samples."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import find_peaks

from sepnb.core import SepnbError
from sepnb.phrases import Grid, PhraseBank, align_lags, cross_fit, cut_blocks, draw_blocks, fixed_blocks, fold_songs, phrase_lags
from sepnb.similarity import (block_norms, block_samples, block_similarity, block_to_sample, diagonal_sums, find_phrases, pick_peaks,
                              sample_to_block, similarity_rows)


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)

def rand(seed, *shape, dtype=torch.float32): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def direct(mag, block): # equation 3.2, in float64, each pair of blocks
    mag = mag.double(); count = mag.shape[-1] - block + 1; out = torch.zeros(count, count, dtype=torch.float64)
    for m in range(count):
        for m_hat in range(count):
            a, b = mag[..., m:m + block].flatten(1), mag[..., m_hat:m_hat + block].flatten(1)
            norm = a.norm(dim=1) * b.norm(dim=1)
            out[m, m_hat] = torch.where(norm > 0, (a * b).sum(1) / norm.clamp_min(1e-300), 0).sum()
    return out

# The equation

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), channels=st.integers(1, 3), bins=st.integers(1, 30), block=st.integers(1, 20), extra=st.integers(0, 25),
       rows=st.integers(1, 40), log_scale=st.floats(-4, 2), double=st.booleans(), silent=st.booleans())
def test_equals_the_direct_equation(seed, channels, bins, block, extra, rows, log_scale, double, silent):
    mag = rand(seed, channels, bins, block + extra, dtype=torch.float64 if double else torch.float32)
    if silent: mag[-1] = 0; mag[..., : (block + extra) // 2] = 0
    mag = 10**log_scale * mag; kept = mag.clone()
    ours = block_similarity(mag, block=block, rows=rows)
    assert ours.dtype == mag.dtype and torch.equal(kept, mag)
    assert (ours - direct(mag, block)).abs().max() < (1e-12 if double else 1e-5)

@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), columns=st.integers(1, 40), length=st.integers(1, 40))
def test_diagonal_sums(seed, rows, columns, length):
    length = min(length, rows, columns); x = rand(seed, rows, columns, dtype=torch.float64)
    want = sum(x[p:rows - length + 1 + p, p:columns - length + 1 + p] for p in range(length))
    assert torch.allclose(diagonal_sums(x, length), want, rtol=1e-12)

def test_a_quiet_passage_after_a_loud_one_keeps_its_digits():
    mag = rand(0, 2, 40, 60); mag[..., 30:] *= 1e-6
    assert (block_similarity(mag, block=8) - direct(mag, 8)).abs().max() < 1e-5

def test_rows_norms_and_symmetry():
    mag = rand(1, 2, 50, 90); whole = block_similarity(mag)
    assert torch.allclose(similarity_rows(mag, 5, 12), whole[5:12], atol=1e-6) and torch.allclose(whole, whole.T, atol=1e-6)
    assert torch.allclose(whole.diagonal(), torch.tensor(2.0), atol=1e-6) and whole.max() <= 2 + 1e-5
    assert torch.allclose(block_norms(mag)[:, 3], mag[..., 3:67].flatten(1).norm(dim=1))

@pytest.mark.parametrize("frames", [0, 1, 63])
def test_shorter_than_a_block(frames):
    mag = torch.ones(2, 9, frames)
    assert block_similarity(mag).shape == (0, 0) and find_phrases(mag).blocks.shape == (0, 7)

# Peaks

def plain_peaks(curve, own, count, exclusion, distance, allowed): # the rule, for one row
    padded = np.concatenate([[-np.inf], curve, [-np.inf]])
    peaks = [j for j in range(len(curve)) if padded[j] < curve[j] >= padded[j + 2] and abs(j - own) >= exclusion and allowed[j]]
    out = []
    for j in sorted(peaks, key=lambda j: -curve[j]):
        if len(out) < count and all(abs(j - k) >= distance for k in out): out.append(j)
    return out

@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 5), columns=st.integers(1, 120), count=st.integers(0, 8), exclusion=st.integers(0, 40), distance=st.integers(1, 30), shut=st.floats(0, 1))
def test_peaks_follow_the_rule(seed, rows, columns, count, exclusion, distance, shut):
    g = rand(seed, rows, columns); own = (rand(seed + 1, rows) * columns).long(); allowed = rand(seed + 2, columns) >= shut
    blocks, found = pick_peaks(g, own, count=count, exclusion=exclusion, distance=distance, allowed=allowed)
    assert blocks.shape == found.shape == (rows, count)
    for r in range(rows):
        want = plain_peaks(g[r].numpy(), int(own[r]), count, exclusion, distance, allowed)
        assert blocks[r][found[r]].tolist() == want and int(found[r].sum()) == len(want) and (blocks[r][~found[r]] == own[r]).all()

def test_peaks_are_those_of_scipy():
    curve = rand(3, 1, 400); own = torch.tensor([0])
    blocks, found = pick_peaks(curve, own, count=400, exclusion=0, distance=20)
    theirs = find_peaks(np.concatenate([[-1], curve[0].numpy(), [-1]]), distance=20)[0] - 1
    assert sorted(blocks[found].tolist()) == theirs.tolist()

def test_true_repetitions_are_the_top_peaks():
    part = [rand(k, 2, 40, 100) for k in range(3)]
    song = torch.cat([part[0], part[1], part[2], part[1], part[0], part[1]], -1) + 0.05 * rand(9, 2, 40, 600)
    phrases = find_phrases(song, at=torch.tensor([110, 310, 510]), count=2)
    assert [sorted(row) for row in phrases.blocks.tolist()] == [[310, 510], [110, 510], [110, 310]] and phrases.mask.all() and (phrases.similarity > 1.9).all()

def test_silent_blocks_have_no_phrases_and_are_nobodys():
    mag = rand(4, 1, 20, 400); mag[..., 150:350] *= 1e-5
    phrases = find_phrases(mag, count=3)
    assert not phrases.mask[150:287].any() and not phrases.similarity[150:287].any() and phrases.mask[:40].any(1).all()
    chosen = phrases.blocks[phrases.mask]
    assert not ((chosen >= 150) & (chosen < 287)).any() and not find_phrases(0 * mag).mask.any()
    for scale in (1e-4, 1e2): assert torch.equal(find_phrases(mag * scale, count=3).blocks, phrases.blocks)

def test_chunks_do_not_matter():
    mag = rand(5, 2, 20, 300); whole = find_phrases(mag, count=3)
    for rows in (1, 17, 100):
        part = find_phrases(mag, at=torch.arange(0, 237, 5), count=3, rows=rows)
        assert torch.equal(part.blocks, whole.blocks[::5]) and torch.equal(part.mask, whole.mask[::5])

def test_frames_and_samples():
    assert block_samples() == 34304 and block_to_sample(0) == -1024
    start = torch.arange(-3000, 3000); near = block_to_sample(sample_to_block(start))
    assert (near - start).abs().max() <= 256 and torch.equal(sample_to_block(block_to_sample(start)), start)

# Blocks as samples

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 50), length=st.integers(1, 60), starts=st.lists(st.integers(-100, 100), min_size=1, max_size=5))
def test_cut_blocks(seed, samples, length, starts):
    x = rand(seed, 2, samples); wide = torch.nn.functional.pad(x, (200, 200))
    out = cut_blocks(x, torch.tensor(starts), length)
    for start, block in zip(starts, out): assert torch.equal(block, wide[:, 200 + start:200 + start + length])

def test_align_finds_the_shift():
    x = torch.randn(2, 6000, generator=torch.Generator().manual_seed(0)); x[:, 3037:5037] = x[:, 500:2500]
    lags = align_lags(x, torch.tensor([500]), torch.tensor([[2500, 2560, 2537]]), length=2000, reach=64)
    assert lags.tolist() == [[2537, 2537, 2537]]

def test_lags_of_a_loop():
    bar = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)); x = bar.repeat(1, 6); grid = Grid(512, 128, 32)
    starts = torch.arange(-2000, 47000, 1700); lags, mask = phrase_lags(x, starts, count=3, grid=grid)
    inside = (starts > 0) & (starts < 40000)
    off = (lags[inside] / 8000 - (lags[inside] / 8000).round()).abs() * 8000
    assert mask[inside, 0].all() and (off[mask[inside]].round() <= 64).float().mean() > 0.9 and (lags[mask] != 0).all()

def pair(seed, samples=20000, channels=2): return [torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed + k)) for k in (0, 100)]

def test_bank_draws_what_it_holds():
    grid = Grid(256, 64, 16); songs = [pair(k) for k in range(3)]; bank = PhraseBank(songs, count=2, grid=grid)
    a, b = (draw_blocks(bank, torch.Generator().manual_seed(3), batch=6) for _ in range(2))
    assert torch.equal(a.phrases, b.phrases) and a.phrases.shape == (6, 2, 2, grid.samples) and not a.phrases[~a.mask].any()
    for block, truth in zip(a.estimate, a.source): # somewhere in one song, at the same place in both
        hits = [(i, s) for i, song in enumerate(bank.songs) for s in song.starts.tolist() if torch.equal(cut_blocks(song.estimate, torch.tensor(s), grid.samples), block)]
        assert len(hits) == 1 and torch.equal(cut_blocks(bank.songs[hits[0][0]].source, torch.tensor(hits[0][1]), grid.samples), truth)
    loud = PhraseBank([(100 * e, 100 * s) for e, s in songs], count=2, grid=grid)
    torch.testing.assert_close(fixed_blocks(loud, count=4).source, fixed_blocks(bank, count=4).source)

def test_cross_fit_never_trains_on_what_it_estimates():
    songs = [torch.full((2, 1, 5), float(k)) for k in range(5)]; seen = []
    def fit(train):
        seen.append(train)
        return lambda mix: torch.full((2, 1, 5), float(sum(train)))
    out = cross_fit(songs, fit, folds=2)
    assert seen == [[1, 3], [0, 2, 4]] and [int(x[0, 0, 0]) for x in out] == [4, 6, 4, 6, 4]
    assert sorted(sum(fold_songs(7, folds=3), [])) == list(range(7))
    with pytest.raises(SepnbError): cross_fit(songs, lambda train: lambda mix: mix)

@pytest.mark.parametrize("call", [
    lambda: find_phrases(torch.full((1, 3, 80), torch.nan)), lambda: block_similarity(torch.ones(3, 80)), lambda: block_similarity(torch.ones(1, 3, 80, dtype=torch.complex64)),
    lambda: block_norms(torch.ones(1, 3, 80), block=0), lambda: PhraseBank([]), lambda: PhraseBank([(torch.ones(2, 9), torch.ones(2, 8))]),
    lambda: PhraseBank([pair(0), pair(0, channels=1)], grid=Grid(256, 64, 16)), lambda: fold_songs(3, folds=1)])
def test_mistakes_are_one_line(call):
    with pytest.raises(SepnbError) as caught: call()
    assert "\n" not in str(caught.value)
