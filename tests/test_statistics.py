"""Statistics over frames and songs: known answers, NumPy by hand, museval's own aggregation, SciPy, and what may not matter (order, kind of array)."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sepnb.core import SepnbError
from sepnb.statistics import CEILING_DB, Interval, Summary, bootstrap, clamp_db, four_ways, museval_table, paired_test, song_values, summarize

STEMS = ("drums", "bass", "vocals")


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def some_songs(seed=0, count=9):
    "Songs of 5 to 40 seconds, three stems, with NaN, infinities, and one song in which the third stem never plays."
    rng = np.random.default_rng(seed); out = []
    for k in range(count):
        song = rng.normal(5, 3, (3, 5 + int(rng.integers(36)))) - rng.exponential(3, (3, 1))
        song[:, rng.random(song.shape[1]) < 0.1] = np.nan
        out.append(song)
    out[1][0, 2], out[2][1, 3], out[4][2] = np.inf, -np.inf, np.nan
    return out


SONGS = some_songs()


# ------------------------------------------------------------------------------------------------ one heap
def test_known_answers():
    assert summarize([2, 4, 4, 4, 5, 5, 7, 9]) == Summary(median=4.5, mean=5.0, std=2.0, count=8, nan=0, infinite=0)
    assert summarize([[1.0, np.nan], [np.inf, -np.inf]]) == Summary(1.0, 1.0, 0.0, 1, 1, 2)
    nothing = summarize([]); assert nothing.count == nothing.nan == nothing.infinite == 0 and np.isnan(nothing.median)
    assert np.isnan(summarize(torch.full((2, 3), torch.nan)).std) and summarize(torch.full((2, 3), torch.nan)).nan == 6
    assert summarize(3.5).mean == 3.5 and summarize([None, 2.0])[3:] == (1, 1, 0) # null: how JSON writes NaN


def test_every_value_is_counted_once():
    for values in (*SONGS, np.concatenate(SONGS, 1)):
        s = summarize(values)
        assert s.count + s.nan + s.infinite == values.size and s.nan == np.isnan(values).sum() and s.infinite == np.isinf(values).sum()


KINDS = {
    "reversed": lambda x: x[:, ::-1][:, ::-1], "negative strides": lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1], "column order": np.asfortranarray,
    "single": lambda x: x.astype(np.float32), "tensor": torch.from_numpy, "with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "lists": lambda x: x.tolist(), "list of arrays": list, "list of tensors": lambda x: list(torch.from_numpy(x)), "big-endian": lambda x: x.astype(">f8"),
    "read only": lambda x: np.broadcast_to(x, x.shape), "bfloat16": lambda x: torch.from_numpy(x).bfloat16()}


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_arrays(kind):
    near = dict(single=1e-5, bfloat16=0.1).get(kind, 0); same = lambda a, b: np.allclose(np.array(a, float), np.array(b, float), rtol=0, atol=near, equal_nan=True)
    converted = [KINDS[kind](x.copy()) for x in SONGS]
    for x, y in zip(SONGS, converted): assert same(summarize(x), summarize(y)) and same(clamp_db(x), clamp_db(y))
    assert same(song_values(SONGS), song_values(converted)) and same(museval_table(SONGS), museval_table(converted))
    mixed = [c if k % 2 else s for k, (s, c) in enumerate(zip(SONGS, converted))] # kinds may differ from song to song
    assert same(song_values(SONGS), song_values(mixed))
    rows = song_values(SONGS)[:2]
    assert same(bootstrap(KINDS[kind](rows.copy()), generator=seeded()), bootstrap(rows, generator=seeded()))
    a, b = KINDS[kind](rows.copy()); assert same(paired_test(a, b, generator=seeded())[1:], paired_test(*rows, generator=seeded())[1:])


# ------------------------------------------------------------------------------------------------ the four ways of the thesis, by hand
def by_hand(values):
    kept = values[np.isfinite(values)]; middle = np.sort(kept); n = len(kept)
    return [(middle[(n - 1) // 2] + middle[n // 2]) / 2, kept.sum() / n, np.sqrt(((kept - kept.sum() / n) ** 2).sum() / n)]


@pytest.mark.parametrize("inner,index", [("median", 0), ("mean", 1), ("std", 2)])
def test_four_ways_by_hand(inner, index):
    ways = four_ways(SONGS, stems=STEMS, inner=inner)
    first = np.array([[by_hand(song[s])[index] if np.isfinite(song[s]).any() else np.nan for song in SONGS] for s in range(3)]) # a song one number
    heap = np.concatenate(SONGS, 1)
    for s, stem in enumerate(STEMS):
        assert np.allclose(ways["song"][stem][:3], by_hand(first[s]))  # item 1
        assert np.allclose(ways["pooled"][stem][:3], by_hand(heap[s])) # item 2
    assert np.allclose(ways["song"]["all"][:3], by_hand(first))        # item 3: all songs' numbers of all stems in one heap
    assert np.allclose(ways["pooled"]["all"][:3], by_hand(heap))       # item 4
    assert ways["song"]["vocals"].count == 8 and ways["song"]["vocals"].nan == 1 and ways["song"]["all"].count == 26
    assert sum(ways["pooled"]["all"][3:]) == heap.size and ways["pooled"]["all"].infinite == 2


def test_ways_agree_where_they_must():
    equal = [song[:, :5] for song in some_songs(1)] # five seconds each, whole songs
    for song in equal: song[~np.isfinite(song)] = 0
    ways = four_ways(equal, stems=STEMS, inner="mean")
    for stem in (*STEMS, "all"): assert np.isclose(ways["song"][stem].mean, ways["pooled"][stem].mean)
    assert ways["pooled"]["all"].std > ways["song"]["all"].std
    one = four_ways(SONGS[:1], stems=STEMS)
    assert all(one["song"][s].median == one["pooled"][s].median for s in STEMS)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.randoms(use_true_random=False), st.sampled_from(["median", "mean", "std"]))
def test_order_of_songs_and_seconds_changes_nothing(seed, random, inner):
    songs = some_songs(seed % 100); moved = list(songs); random.shuffle(moved)
    rng = np.random.default_rng(seed); moved = [song[:, rng.permutation(song.shape[1])] for song in moved]
    a, b = four_ways(songs, stems=STEMS, inner=inner), four_ways(moved, stems=STEMS, inner=inner)
    for way, stem in itertools.product(a, (*STEMS, "all")): assert np.allclose(a[way][stem], b[way][stem], rtol=1e-12, equal_nan=True)
    assert np.array_equal(museval_table(songs), museval_table(moved), equal_nan=True)


# ------------------------------------------------------------------------------------------------ museval's aggregation
def test_museval_s_own_tables():
    museval = pytest.importorskip("museval", reason="museval, or the ffmpeg that it needs, is not installed", exc_type=Exception)
    store = museval.EvalStore() # median over seconds, then over songs
    for k, song in enumerate(SONGS):
        track = museval.TrackStore(track_name=f"song {k}")
        for name, row in zip(STEMS, song): track.add_target(name, {m: row.tolist() for m in ("SDR", "SIR", "ISR", "SAR")})
        store.add_track(track)
    table = store.agg_frames_tracks_scores()
    ours = museval_table(SONGS)
    assert [float(table[name, "SDR"]) for name in STEMS] == ours.tolist() # to the last digit
    per_song = store.agg_frames_scores()
    theirs = np.array([[float(per_song[f"song {k}", name, "SIR"]) for k in range(len(SONGS))] for name in STEMS])
    assert np.allclose(song_values(SONGS), theirs, atol=0.5e-5 + 1e-12, equal_nan=True)
    means = museval.EvalStore(frames_agg="mean", tracks_agg="mean"); means.df = store.df
    means.df["score"] = means.df["score"].astype(float)
    mine = [summarize(row).mean for row in song_values(SONGS, inner="mean")]
    assert np.allclose(mine, [means.agg_frames_tracks_scores()[name, "SDR"] for name in STEMS], atol=0.5e-5 + 1e-12)


# ------------------------------------------------------------------------------------------------ rounding noise
def test_ceiling():
    values = np.array([-np.inf, -321.0, -100.0, -3.25, 0.0, 99.999, 100.0, 213.7, np.inf, np.nan])
    assert np.array_equal(clamp_db(values), [-100, -100, -100, -3.25, 0, 99.999, 100, 100, 100, np.nan], equal_nan=True)
    assert np.array_equal(clamp_db(clamp_db(values)), clamp_db(values), equal_nan=True) and CEILING_DB == 100
    assert clamp_db(7.0).shape == () and clamp_db(torch.tensor([12.0]), ceiling_db=10).tolist() == [10]
    before = values.copy(); clamp_db(values); assert np.array_equal(values, before, equal_nan=True)
    assert summarize(clamp_db(values)).infinite == 0 and summarize(clamp_db(values)).nan == 1


def test_the_mixture_s_artifacts_are_rounding_and_do_not_reach_a_table():
    from sepnb.bsseval import bsseval_v4
    sources = 0.1 * torch.randn(3, 1, 4000, generator=seeded(), dtype=torch.float64)
    scores = []
    for order in itertools.permutations(range(3)):
        mix = sources[order[0]] + sources[order[1]] + sources[order[2]]
        ours = torch.stack(bsseval_v4(mix.expand_as(sources), sources[list(order)], sample_rate=1000, taps=32))
        scores.append(ours[:, list(np.argsort(order))])
    scores = torch.stack(scores)
    assert scores[:, 3].min() > 200 and scores[:, 3].amax(0).sub(scores[:, 3].amin(0)).max() > 0.01 # digits that mean nothing
    assert np.ptp(clamp_db(scores), axis=0).max() < 1e-9


# ------------------------------------------------------------------------------------------------ how sure
def test_bootstrap_by_hand():
    values = np.array([1.0, 4.0, 2.0, 8.0, np.nan])
    for name in ("median", "mean", "std"):
        got = bootstrap(values, generator=seeded(3), statistic=name, resamples=500, level=0.8)
        drawn = values[:4][torch.randint(4, (500, 4), generator=seeded(3)).numpy()]; moved = getattr(np, name)(drawn, axis=1)
        assert got == Interval(np.quantile(moved, 0.1), getattr(np, name)(values[:4]), np.quantile(moved, 0.9), 4)


def test_bootstrap_is_seeded_and_orders_its_ends():
    values = song_values(SONGS); a = bootstrap(values, generator=seeded(1)); mean = lambda seed: bootstrap(values, generator=seeded(seed), statistic="mean")
    assert a == bootstrap(values, generator=seeded(1)) and mean(1) == mean(1) != mean(2) and a.low <= a.value <= a.high and a.songs == 9
    assert bootstrap(values[2], generator=seeded()).songs == 8 # a song without the stem
    wide, narrow = (bootstrap(values[0], generator=seeded(), level=level) for level in (0.99, 0.5))
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    nothing = bootstrap([np.nan, np.inf], generator=seeded()); assert nothing.songs == 0 and np.isnan(nothing.low)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_intervals_cover(statistic):
    g = seeded(5)
    inside = [i.low <= 4 <= i.high for i in (bootstrap(4 + torch.randn(40, generator=g), generator=g, statistic=statistic, level=0.9, resamples=300) for _ in range(300))]
    assert 0.84 < np.mean(inside) < 0.96 # 90 %, as far as 300 sets of 40 songs can tell


def test_stems_of_a_song_are_drawn_together():
    alike = np.stack([np.arange(12.0), np.arange(12.0)]) # one stem twice: no new information
    single, double = (bootstrap(x, generator=seeded(), statistic="mean") for x in (alike[0], alike))
    assert np.allclose(single[:3], double[:3])


# ------------------------------------------------------------------------------------------------ two systems
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 40))
def test_paired_test_is_scipy_s(seed, songs):
    rng = np.random.default_rng(seed); a = rng.normal(5, 3, songs); b = a + rng.normal(0.3, 1, songs)
    a[rng.random(songs) < 0.1], b[rng.random(songs) < 0.1] = np.nan, -np.inf
    both = np.isfinite(a) & np.isfinite(b); test = paired_test(a, b, generator=seeded(), resamples=50)
    assert test.better + test.worse == both.sum() == test.difference.songs and test.dropped == songs - both.sum()
    if not both.any(): assert np.isnan(test.p_value); return
    assert test.p_value == stats.wilcoxon(a[both], b[both]).pvalue and np.isclose(test.difference.value, np.median((a - b)[both]))
    back = paired_test(b, a, generator=seeded(), resamples=50)
    assert np.isclose(back.p_value, test.p_value) and (back.better, back.worse) == (test.worse, test.better) and np.isclose(back.difference.value, -test.difference.value)


def test_paired_known_answers():
    a = np.arange(8.0)
    assert paired_test(a, a, generator=seeded()).p_value == 1 and paired_test(a, a, generator=seeded())[2:] == (0, 0, 0)
    sure = paired_test(a, a - 0.5 - 0.01 * a, generator=seeded())
    assert sure.p_value == 2**-7 and sure.better == 8 and sure.difference.low >= 0.5 # all of eight: the smallest that there is
    assert np.isnan(paired_test([np.nan], [1.0], generator=seeded()).p_value)


def test_a_false_alarm_is_as_rare_as_promised():
    g = seeded(9); alarms = [paired_test(*torch.randn(2, 20, generator=g, dtype=torch.float64), generator=g, resamples=2).p_value < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(alarms) < 0.08


# ------------------------------------------------------------------------------------------------ errors
def test_errors_for_people():
    good = SONGS[0]
    for wrong in ([], [good, good[:2]], [good[0]], [good, good[None]]):
        for run in (song_values, museval_table, lambda x: four_ways(x, stems=STEMS)):
            with pytest.raises(SepnbError, match="stems"): run(wrong)
    with pytest.raises(SepnbError, match="statistic"): song_values(SONGS, inner="mode")
    with pytest.raises(SepnbError, match="statistic"): bootstrap([1.0], generator=seeded(), statistic="mode")
    with pytest.raises(SepnbError, match="names"): four_ways(SONGS, stems=STEMS[:2])
    with pytest.raises(SepnbError, match="pairs"): paired_test([1.0, 2.0], [1.0], generator=seeded())
    for wrong in ([[1.0], [1.0, 2.0]], "loud", [good, good[:, :1]]):
        with pytest.raises(SepnbError, match="numbers"): summarize(wrong)
