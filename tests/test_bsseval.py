"""The fast BSS-Eval v4 against museval, case by case; its parts (windows, products, filters) against their definitions."""
import functools
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb import metrics
from sepnb.bsseval import BSSEval, Undetermined, bsseval_v4, error_filters, long_way, museval_v4, quick_energies
from sepnb.core import SepnbError
from sepnb.correlate import block_filter, crossing, lag_products, window_products
from sepnb.synth import toy_sources
from sepnb.toeplitz import solve_toeplitz
from sepnb.windows import check_pair, energies, nan_reasons, one_thread, side_by_side, silent, spans

museval = pytest.importorskip("museval", reason="museval, or the ffmpeg that it needs, is not installed", exc_type=Exception)
RATE = 3000


def noise(*shape, seed=0): return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def deviation(ours, theirs):
    "Largest difference, dB; values above 200 dB are rounding in both and count as equal. The NaN patterns have to be identical."
    ours, theirs = torch.stack(tuple(ours)), torch.stack(tuple(theirs))
    assert ours.shape == theirs.shape and ours.dtype == torch.float64 and torch.equal(ours.isnan(), theirs.isnan())
    same = ours.isnan() | (ours == theirs) | ((ours > 200) & (theirs > 200)) | ((ours < -200) & (theirs < -200))
    return float(torch.where(same, 0, (ours - theirs).abs()).max()) if ours.numel() else 0.0


def theirs(estimates, sources, *, rate, taps, window_s=1.0, hop_s=1.0):
    if taps == 512: return museval_v4(estimates, sources, sample_rate=rate, window_s=window_s, hop_s=hop_s)
    arrays = (torch.as_tensor(x).double().transpose(1, 2).numpy() for x in check_pair(estimates, sources)[::-1])
    window, hop = (min(int(min(x, 1e6) * rate), sources.shape[-1]) for x in (window_s, hop_s))
    return [torch.from_numpy(x) for x in museval.metrics.bss_eval(*arrays, window=window, hop=hop, filters_len=taps)[:4]]


def agree(estimates, sources, *, within=1e-5, rate=RATE, taps=64, **options): # 64 taps make museval quick
    with warnings.catch_warnings():
        warnings.simplefilter("error", Undetermined)
        ours = bsseval_v4(estimates, sources, sample_rate=rate, taps=taps, **options)
    assert deviation(ours, theirs(estimates, sources, rate=rate, taps=taps, **options)) <= within
    return ours


# ------------------------------------------------------------------------------------------------ the corpus of hard cases
SOURCES, OTHER = noise(2, 2, 10100), noise(2, 2, 10100, seed=1) # 3.4 s: a partial last window


@pytest.mark.parametrize("snr_db", [0, 20, 40, 60, 80, 100, 120])
@pytest.mark.parametrize("taps", [64, 512])
def test_noise_at_all_levels(snr_db, taps):
    if taps == 64 or snr_db in (0, 60): agree(SOURCES + 10 ** (-snr_db / 20) * OTHER, SOURCES, taps=taps, within=1e-4 if snr_db == 80 else 1e-5)


@pytest.mark.parametrize("snr_db", [0, 60])
def test_music_with_the_noise_floor_of_16_bits(snr_db):
    sources = (toy_sources(torch.Generator().manual_seed(0), seconds=3.4, sample_rate=8000, stems=("bass", "other")) * 2**15).round() / 2**15
    agree(sources + 10 ** (-snr_db / 20) * noise(*sources.shape), sources, rate=8000, within=1e-4, taps=512)


@pytest.mark.parametrize("cutoff", [0.73]) # of half the rate: what lossy codecs leave
def test_low_passed_music(cutoff):
    from scipy.signal import butter, sosfilt
    red = sosfilt(butter(8, cutoff, output="sos"), np.cumsum(SOURCES.double().numpy(), -1) * 0.05)
    sources = torch.from_numpy((red * 2**15).round() / 2**15)
    agree(sources + 0.01 * OTHER, sources, within=1e-3, taps=512)


@functools.cache
def excerpt():
    "Two seconds of a real song, four stereo stems at 44.1 kHz, decoded from AAC; and estimates by rough masks."
    stempeg = pytest.importorskip("stempeg", reason="stempeg, or the ffmpeg that it needs, is not installed", exc_type=Exception)
    samples, rate = stempeg.read_stems(stempeg.example_stem_path())
    sources = torch.from_numpy(samples[1:].transpose(0, 2, 1).copy())[..., 3 * rate:5 * rate + 9000]
    spec = torch.stft(sources.flatten(0, 1), 4096, 1024, window=torch.hann_window(4096, dtype=torch.float64), return_complex=True).unflatten(0, (4, 2))
    mask = (spec.abs() + 0.1 * spec.abs().sum(0)) / (1.4 * spec.abs().sum(0) + 1e-9)
    mask *= (1 + 0.2 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    estimates = torch.istft((mask * spec.sum(0)).flatten(0, 1), 4096, 1024, window=torch.hann_window(4096, dtype=torch.float64), length=sources.shape[-1])
    return estimates.unflatten(0, (4, 2)).float(), sources.float(), rate


def sixteen_bits(x): return (x * 2**15).round() / 2**15


@pytest.mark.parametrize("snr_db", [None, 0, 20, 40, 60])
def test_real_music_of_16_bits(snr_db):
    estimates, sources, rate = excerpt(); sources = sixteen_bits(sources)
    if snr_db is not None:
        sources = sources[[0, 3]]; estimates = sources + 10 ** (-snr_db / 20) * (0.3 * sources.roll(1, 0) + sources.std() * noise(*sources.shape) / 0.1)
    agree(sixteen_bits(estimates), sources, rate=rate, within=1e-3, taps=64)


def test_real_music_and_all_512_taps():
    estimates, sources, rate = excerpt(); two = lambda x: sixteen_bits(torch.stack([x[:3].sum(0), x[3]])) # accompaniment and vocals
    agree(two(estimates), two(sources), rate=rate, within=1e-3, taps=512)


@pytest.mark.parametrize("channels", [1, 2])
def test_decoded_aac_at_the_border_of_double_precision(channels):
    estimates, sources, rate = (x[:, :channels] if torch.is_tensor(x) else x for x in excerpt())
    ours = torch.stack(agree(estimates, sources, rate=rate, within=0.05, taps=64)) # no warning either
    other = torch.stack(bsseval_v4(estimates.flip(0), sources.flip(0), sample_rate=rate, taps=64)).flip(1)
    assert (ours - other).abs().max() < 2e-3 # museval's own numbers move by a hundredth


def test_low_passed_noise_at_the_border_of_double_precision():
    from scipy.signal import butter, sosfiltfilt
    red = sosfiltfilt(butter(20, 0.7, output="sos"), np.cumsum(SOURCES.double().numpy(), -1) * 0.05)
    sources = torch.from_numpy(red.copy()) + 1e-6 * OTHER; estimates = sources + 0.2 * sources.roll(1, 0) + 0.1 * sources.roll(3, -1)
    ours = torch.stack(agree(estimates, sources, within=0.2)) # museval's own numbers move by 0.06 dB if stems change places or all is 0.7 as loud
    other = torch.stack(bsseval_v4(estimates.flip(0), sources.flip(0), sample_rate=RATE, taps=64)).flip(1)
    assert (ours - other).abs().max() < 0.02


def changed(x, change):
    x = x.clone(); change(x); return x


def pause(x): x[1, :, :4000] = 0
def side(x): x[1, 1, 3000:6000] = -x[1, 0, 3000:6000]
def deaf(x): x[1, 1] = 0
def faint(x): x[1] *= 1e-6
def almost(x): x[0] *= 1e-3; x[1, :, 3000:6000] *= 1e-7 # nearly silent, all the time and in a second
def later(x): x[0] = x[0].roll(700, -1)
def dual(x): x[:, 1] = x[:, 0]
def gain(x): x[1, 1] = 0.5 * x[1, 0]
def spike(x): x[0, :, 5000] = 5
def offset(x): x += 0.3


@pytest.mark.parametrize("change", [pause, side, deaf, faint, almost, later, dual, gain, spike, offset])
def test_odd_sources(change):
    sources = changed(SOURCES, change)
    agree(sources + 0.1 * sources.roll(1, 0) + 0.03 * OTHER, sources)


@pytest.mark.parametrize("change", [pause, side, deaf, faint, almost, later, dual])
def test_odd_estimates(change):
    agree(changed(SOURCES + 0.1 * OTHER, change), SOURCES)


@pytest.mark.parametrize("stems,channels", [(1, 1), (1, 2), (2, 1), (3, 1), (6, 1), (2, 4), (5, 1)])
def test_stems_and_channels(stems, channels):
    sources = noise(stems, channels, 6500)
    agree(sources + 0.2 * sources.roll(1, 0) * (stems > 1) + 0.05 * noise(stems, channels, 6500, seed=1), sources)


def test_six_stereo_stems():
    sources = noise(6, 2, 7000); agree(sources + 0.2 * sources.roll(1, 0) + 0.05 * noise(6, 2, 7000, seed=1), sources)


@pytest.mark.parametrize("options", [dict(hop_s=0.25), dict(hop_s=1.3), dict(window_s=0.05, hop_s=0.5), dict(window_s=100.0), dict(window_s=float("inf")),
                                     dict(window_s=1.7), dict(window_s=0.1, hop_s=0.1)])
def test_windows(options):
    agree(SOURCES + 0.1 * OTHER, SOURCES, **options)


@pytest.mark.parametrize("samples", [2999, 3000, 3001, 6000, 9001])
def test_lengths(samples):
    agree(SOURCES[..., :samples] + 0.1 * OTHER[..., :samples], SOURCES[..., :samples])


@pytest.mark.parametrize("scale", [1e-4, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_and_precision(scale, dtype):
    estimates, sources = ((scale * x).to(dtype) for x in (SOURCES + 0.1 * OTHER, SOURCES))
    agree(estimates, sources)


def test_the_mixture_as_estimate():
    mix = SOURCES.sum(0).expand_as(SOURCES)
    scores = agree(mix, SOURCES, taps=512)
    assert scores.sar.min() > 100 # nothing but sources in it


def test_perfect_estimates_and_equal_stems():
    assert torch.stack(agree(SOURCES, SOURCES)).min() > 200
    agree(torch.cat([SOURCES[:1] + 0.1 * OTHER[:1]] * 2), torch.cat([SOURCES[:1]] * 2), within=1e-4)


def test_unequal_lengths_as_museval():
    for estimates in (SOURCES[..., :-50], torch.cat([SOURCES, SOURCES], -1)):
        agree(0.9 * estimates, SOURCES)


# ------------------------------------------------------------------------------------------------ silence and what has no answer
@pytest.mark.parametrize("who", ["source", "estimate", "everybody", "side"])
def test_silence_throughout_is_nan_and_no_exception(who):
    sources, estimates = SOURCES.clone(), SOURCES + 0.1 * OTHER
    if who in ("source", "everybody"): sources[1] = 0
    if who in ("estimate", "everybody"): estimates[0] = 0
    if who == "side": sources[1, 1] = -sources[1, 0]
    for run in (bsseval_v4, museval_v4): assert torch.stack(run(estimates, sources, sample_rate=RATE)).isnan().all()
    assert sum(nan_reasons(estimates, sources, sample_rate=RATE).values()) == 3


def test_nan_reasons_count_exactly_the_nan_windows():
    sources, estimates = changed(SOURCES, pause), changed(SOURCES, side)
    scores = bsseval_v4(estimates, sources, sample_rate=RATE, hop_s=0.5)
    reasons = nan_reasons(estimates, sources, sample_rate=RATE, hop_s=0.5)
    assert sum(reasons.values()) == int(scores.sdr[0].isnan().sum()) and set(reasons) == {"silent source", "silent estimate"}


def test_undetermined_filters_warn_and_do_not_depend_on_order():
    tones = toy_sources(torch.Generator().manual_seed(0), seconds=1.2, sample_rate=8000)[:2]
    estimates = 0.9 * tones + 0.1 * tones.roll(1, 0)
    with pytest.warns(Undetermined): scores = torch.stack(bsseval_v4(estimates, tones, sample_rate=8000))
    with pytest.warns(Undetermined): other = torch.stack(bsseval_v4(estimates.flip(0), tones.flip(0), sample_rate=8000)).flip(1)
    assert scores.isfinite().all() and (scores - other).abs().max() < 0.1
    assert (scores[0] - museval_v4(estimates, tones, sample_rate=8000).sdr).abs().max() < 1e-6 # SDR needs no filters


def test_errors_for_people():
    for wrong in (SOURCES[:1], SOURCES[0], SOURCES[:, :1], SOURCES / 0):
        for run in (bsseval_v4, museval_v4):
            with pytest.raises(SepnbError): run(wrong, SOURCES, sample_rate=RATE)
    with pytest.raises(SepnbError, match="sample"): bsseval_v4(SOURCES, SOURCES, sample_rate=RATE, hop_s=0)


def test_museval_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "museval", None)
    with pytest.raises(SepnbError, match="ffmpeg"): museval_v4(SOURCES, SOURCES, sample_rate=RATE)


def test_inputs_threads_and_types_are_left_alone():
    estimates, sources = SOURCES + 0.1 * OTHER, SOURCES.clone(); before = estimates.clone()
    scores = bsseval_v4(estimates.requires_grad_(), sources.numpy(), sample_rate=RATE)
    assert torch.get_num_threads() == 2 and torch.equal(estimates, before) and torch.equal(sources, SOURCES)
    assert isinstance(scores, BSSEval) and not scores.sdr.requires_grad and scores.sdr.shape == (2, 3) and metrics.bsseval_v4 is bsseval_v4
    assert bsseval_v4(SOURCES[..., :0], SOURCES[..., :0], sample_rate=RATE).sdr.shape == (2, 0)
    with pytest.raises(SepnbError, match="numbers|samples"): bsseval_v4(SOURCES + 0j, SOURCES, sample_rate=RATE)
    backwards, mixed = SOURCES.numpy()[..., ::-1], [x.double().numpy() if k else x for k, x in enumerate(estimates.detach())]
    assert deviation(bsseval_v4(estimates, backwards, sample_rate=RATE), bsseval_v4(estimates, backwards.copy(), sample_rate=RATE)) < 1e-9
    assert deviation(bsseval_v4(mixed, list(sources.double()), sample_rate=RATE), scores) < 1e-9
    pcm = (SOURCES * 2**15).to(torch.int16)
    assert deviation(bsseval_v4(pcm, pcm.roll(1, 0), sample_rate=RATE), bsseval_v4(pcm.double(), pcm.double().roll(1, 0), sample_rate=RATE)) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_numbers_on_a_gpu():
    ours = bsseval_v4((SOURCES + 0.1 * OTHER).cuda(), SOURCES.cuda(), sample_rate=RATE)
    assert deviation(ours, bsseval_v4(SOURCES + 0.1 * OTHER, SOURCES, sample_rate=RATE)) < 1e-6


# ------------------------------------------------------------------------------------------------ anything at all
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(40, 900), st.integers(1, 300), st.integers(1, 300), st.floats(-60, 20), st.sampled_from([1e-4, 1, 1e2]),
       st.integers(0, 2**31), st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 900), st.integers(1, 500)), max_size=2))
def test_anything_equals_museval(stems, channels, samples, window, hop, noise_db, scale, seed, silences):
    sources = scale * noise(stems, channels, samples, seed=seed); estimates = sources + 10 ** (noise_db / 20) * scale * noise(stems, channels, samples, seed=seed + 1)
    for who, stem, start, length in silences: (estimates if who else sources)[stem % stems, :, start:start + length] = 0
    ours = bsseval_v4(estimates, sources, sample_rate=1, window_s=window, hop_s=hop, taps=4)
    if any(silent(x, [slice(0, samples)]).any() for x in (sources, estimates)): assert torch.stack(ours).isnan().all()
    else: assert deviation(ours, theirs(estimates, sources, rate=1, taps=4, window_s=window, hop_s=hop)) <= 1e-4


# ------------------------------------------------------------------------------------------------ the parts
def test_energy_sdr_is_musevals_sdr():
    estimates = SOURCES + 0.1 * OTHER
    assert (metrics.framewise_energy_sdr(estimates, SOURCES, sample_rate=RATE) - museval_v4(estimates, SOURCES, sample_rate=RATE).sdr).abs().max() < 1e-6


def test_quick_way_equals_long_way():
    estimates = SOURCES + 0.2 * SOURCES.flip(0) + 0.1 * OTHER; windows = spans(10100, sample_rate=RATE)
    inside, track = window_products(SOURCES, estimates, windows, lags=512); filters, _ = error_filters(track, stems=2)
    for j in (0, 1):
        quick, rounding = quick_energies(filters[j], inside, stem=j, loudness=energies(estimates, windows)[j])
        for n, w in enumerate(windows):
            signals = long_way(filters[j])(SOURCES[..., w].flatten(0, 1))
            artifacts = torch.nn.functional.pad(estimates[j, :, w], (0, 511)) - signals[3]
            slow = torch.cat([signals, artifacts[None]]).square().sum((1, 2))
            assert ((quick[:, n] - slow).abs() <= rounding[:, n]).all() and torch.allclose(quick[:, n], slow, rtol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**31))
@one_thread()
def test_products_by_definition(samples, lags, block, together, seed):
    x, y = noise(2, samples, seed=seed).double(), noise(3, samples, seed=seed + 1).double()
    padded = torch.nn.functional.pad(y, (0, lags)); slow = torch.stack([x @ padded[:, l:l + samples].T for l in range(lags)])
    assert torch.allclose(lag_products(x, y, lags=lags, block=block, together=together), slow, rtol=0, atol=1e-12)
    cut = samples // 2
    halves = sum(lag_products(x[:, w], y[:, w], lags=lags) for w in (slice(0, cut), slice(cut, samples))) + crossing(x, y, cut, lags=lags)
    assert torch.allclose(halves, slow, rtol=0, atol=1e-12)


@pytest.mark.parametrize("samples,block", [(1, 7), (100, 16), (333, 50), (6000, 2177)])
def test_filtering_is_convolution(samples, block):
    x, h = noise(2, samples).double(), noise(7, 2, 3, seed=1).double()
    slow = np.array([sum(np.convolve(x[i], h[:, i, k]) for i in (0, 1)) for k in range(3)])
    assert np.allclose(block_filter(h, block=block)(x), slow, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 24), st.integers(1, 3), st.integers(0, 2**31))
def test_filters_solve_the_dense_equations(channels, lags, outputs, seed):
    x, y = noise(channels, 300, seed=seed).double(), noise(outputs, 300, seed=seed + 1).double()
    r = lag_products(x, torch.cat([x, y]), lags=lags).numpy(); blocks, rhs = r[..., :channels], r[..., channels:]
    full = np.block([[blocks[l - m] if l >= m else blocks[m - l].T for m in range(lags)] for l in range(lags)])
    answer, determined = solve_toeplitz(blocks, rhs)
    assert determined and np.allclose(full @ answer.reshape(-1, outputs), rhs.reshape(-1, outputs), atol=1e-9 * np.abs(full).max())


def test_museval_s_epsilon_matters_for_faint_channels_and_is_reproduced():
    sources = SOURCES * 1e-8 # energies of the order of museval's 2e-16
    agree(sources + 0.1e-8 * OTHER, sources)


def test_spans_are_museval_s_windows():
    for length in (1, 99, 100, 101, 250, 1000):
        for window, hop in ((100, 100), (100, 30), (70, 150), (1000, 10)):
            theirs = list(museval.metrics.Framing(window, hop, length))
            assert spans(length, sample_rate=1, window_s=window, hop_s=hop) == theirs


def test_pairs_are_not_copied_without_need():
    estimates, sources = check_pair(SOURCES, SOURCES.numpy())
    assert estimates.data_ptr() == SOURCES.data_ptr() == sources.data_ptr()


def test_the_number_of_threads_changes_no_bit():
    sources = toy_sources(torch.Generator().manual_seed(5), seconds=3.0, sample_rate=RATE) + 1e-3 * noise(4, 2, 3 * RATE, seed=6); mix = sources.sum(0, keepdim=True)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        try: results.append([torch.stack(bsseval_v4(x, sources, sample_rate=RATE, taps=32)) for x in (sources + noise(*sources.shape), mix.expand_as(sources))])
        finally: torch.set_num_threads(threads)
    assert all(torch.equal(a.nan_to_num(999), b.nan_to_num(999)) for other in results[1:] for a, b in zip(results[0], other))


def test_what_fails_in_a_thread_fails_outside_and_gives_the_threads_back():
    threads = torch.get_num_threads(); torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError): list(side_by_side(lambda n: 1 // n, [2, 1, 0, 3]))
        assert torch.get_num_threads() == 3 and list(side_by_side(str, [])) == []
    finally: torch.set_num_threads(threads)
