"""Energy ratios and the scale-invariant family: known answers, a reference package, invariances, silence."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb import metrics
from sepnb.core import SepnbError
from sepnb.metrics import framewise_energy_sdr, framewise_si_sdr, over_mixture, scale_invariant, si_sar, si_sdr, si_sir, silent_stems, whole_track_sdr

RATE = 1000
FRAMEWISE = (framewise_energy_sdr, framewise_si_sdr)
WHOLE = (whole_track_sdr, si_sdr, si_sir, si_sar)


def noise(*shape, seed=0): return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SOURCES = noise(3, 2, 3501); ESTIMATES = 0.8 * SOURCES + 0.2 * SOURCES.roll(1, 0) + 0.3 * noise(3, 2, 3501, seed=1)


# ------------------------------------------------------------------------------------------------ known answers
@pytest.mark.parametrize("gain_db", [-40, -6, 6, 20])
def test_a_wrong_gain_has_a_known_energy_ratio(gain_db):
    gain = 10 ** (gain_db / 20); wanted = -20 * np.log10(abs(1 - gain))
    assert torch.allclose(framewise_energy_sdr(gain * SOURCES.double(), SOURCES.double(), sample_rate=RATE), torch.tensor(wanted, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(whole_track_sdr(gain * SOURCES.double(), SOURCES.double(), delta=0), torch.tensor(wanted, dtype=torch.float64), atol=1e-9)
    assert si_sdr(gain * SOURCES.double(), SOURCES.double()).min() > 250 # and none at all to these


def test_challenge_formula_with_its_delta():
    s, e = SOURCES.double().numpy(), ESTIMATES.double().numpy()
    wanted = 10 * np.log10((np.sum(s**2, (1, 2)) + 1e-7) / (np.sum((s - e) ** 2, (1, 2)) + 1e-7))
    assert np.allclose(whole_track_sdr(ESTIMATES, SOURCES), wanted, atol=1e-9)
    faint = whole_track_sdr(1e-5 * ESTIMATES, 1e-5 * SOURCES) # energies of the order of delta
    assert (faint.abs() < whole_track_sdr(ESTIMATES, SOURCES).abs()).all()


def test_long_tracks_are_summed_piece_by_piece():
    sources, estimates = noise(1, 1, 200_001), noise(1, 1, 200_001, seed=1)
    direct = 10 * torch.log10((sources.double().square().sum() + 1e-7) / ((sources.double() - estimates.double()).square().sum() + 1e-7))
    assert torch.allclose(whole_track_sdr(estimates, sources), direct)


def test_framewise_is_the_whole_of_each_frame():
    for n in range(3):
        e, s = ESTIMATES[..., n * RATE:(n + 1) * RATE], SOURCES[..., n * RATE:(n + 1) * RATE]
        for channels in ("sum", "joint"):
            assert torch.allclose(framewise_si_sdr(ESTIMATES, SOURCES, sample_rate=RATE, channels=channels)[:, n], si_sdr(e, s, channels=channels))
        assert torch.allclose(framewise_energy_sdr(ESTIMATES, SOURCES, sample_rate=RATE)[:, n], whole_track_sdr(e, s, delta=0))


def test_thesis_equation_4_7():
    s, e = (x[0].sum(0).double() for x in (SOURCES, ESTIMATES)); alpha = (e @ s) / s.square().sum()
    wanted = 10 * torch.log10((alpha * s).square().sum() / (alpha * s - e).square().sum())
    assert torch.isclose(si_sdr(ESTIMATES, SOURCES)[0], wanted)


def test_interference_and_artifacts_at_right_angles():
    axes = torch.eye(4, dtype=torch.float64)[:, None] # four signals of one sample each
    estimate = 1.0 * axes[0] + 0.1 * axes[1] + 0.01 * axes[3] # the fourth is nobody's
    three = scale_invariant(torch.stack([estimate, axes[1], axes[2]]), axes[:3])
    assert torch.allclose(torch.stack(three)[1:, 0], torch.tensor([20.0, 40.0], dtype=torch.float64))
    assert torch.isclose(three.si_sdr[0], -10 * torch.log10(torch.tensor(0.0101, dtype=torch.float64)))


# ------------------------------------------------------------------------------------------------ a reference package
def test_si_family_equals_fast_bss_eval():
    reference = pytest.importorskip("fast_bss_eval", reason="pip install --no-deps --target .refs fast-bss-eval==0.1.4")
    for channels, shape in (("sum", lambda x: x.double().sum(1)), ("joint", lambda x: x.double().flatten(1))):
        sdr, sir, sar = reference.si_bss_eval_sources(shape(SOURCES), shape(ESTIMATES), compute_permutation=False)
        ours = scale_invariant(ESTIMATES, SOURCES, channels=channels)
        assert (ours.si_sdr - sdr).abs().max() < 1e-6 and (ours.si_sir - sir).abs().max() < 1e-6
        moved = ours.si_sar + 10 * torch.log10(1 + 10 ** (-ours.si_sir / 10)) # theirs: target and interference over artifacts (BSS-Eval), ours: target (Le Roux)
        assert (moved - sar).abs().max() < 1e-6
        assert (si_sdr(ESTIMATES, SOURCES, channels=channels) - sdr).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------ properties
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(300, 800), st.floats(-40, 40), st.sampled_from([1e-4, 1.0, 1e2]), st.integers(0, 2**31))
def test_scale_invariance_and_conservation(stems, channels, samples, noise_db, scale, seed):
    sources = noise(stems, channels, samples, seed=seed).double()
    estimates = sources + 0.3 * sources.roll(1, 0) + 10 ** (noise_db / 20) * noise(stems, channels, samples, seed=seed + 1).double()
    three = scale_invariant(estimates, sources)
    for other in (scale_invariant(scale * estimates, sources), scale_invariant(estimates, scale * sources), scale_invariant(-estimates, sources)):
        assert torch.allclose(torch.stack(three)[::2], torch.stack(other)[::2], atol=1e-6)
        if stems > 1: assert torch.allclose(three.si_sir, other.si_sir, atol=1e-6)
    power = [10 ** (-v / 10) for v in three]
    assert torch.allclose(power[0], power[1] + power[2]) and torch.allclose(three.si_sdr, si_sdr(estimates, sources))
    both = framewise_energy_sdr(scale * estimates, scale * sources, sample_rate=100)
    assert torch.allclose(both, framewise_energy_sdr(estimates, sources, sample_rate=100))


@pytest.mark.parametrize("metric", FRAMEWISE + WHOLE)
def test_precision_arrays_and_order_of_stems(metric):
    options = dict(sample_rate=RATE) if metric in FRAMEWISE else {}
    single, double = metric(ESTIMATES, SOURCES, **options), metric(ESTIMATES.double().numpy(), SOURCES.double().numpy(), **options)
    assert single.dtype == torch.float64 and torch.allclose(single, double, atol=1e-9)
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(metric(ESTIMATES[order], SOURCES[order], **options), single[order])
    assert metric(ESTIMATES[:1, :1, :7], SOURCES[:1, :1, :7], **options).shape == ((1, 1) if metric in FRAMEWISE else (1,))


@pytest.mark.parametrize("metric", FRAMEWISE + WHOLE)
def test_inputs_stay_as_they_are(metric):
    before = ESTIMATES.clone(), SOURCES.clone()
    metric(ESTIMATES, SOURCES, **(dict(sample_rate=RATE) if metric in FRAMEWISE else {}))
    assert torch.equal(ESTIMATES, before[0]) and torch.equal(SOURCES, before[1])


# ------------------------------------------------------------------------------------------------ silence and errors
@pytest.mark.parametrize("metric", FRAMEWISE)
def test_one_silent_stem_silences_the_window(metric):
    sources = SOURCES.clone(); sources[1, :, :RATE] = 0; sources[2, 1, RATE:2 * RATE] = -sources[2, 0, RATE:2 * RATE]
    scores = metric(ESTIMATES, sources, sample_rate=RATE)
    assert scores[:, :2].isnan().all() and scores[:, 2].isfinite().all()
    assert metric(0 * ESTIMATES, SOURCES, sample_rate=RATE).isnan().all() and metric(ESTIMATES, 0 * SOURCES, sample_rate=RATE).isnan().all()


@pytest.mark.parametrize("metric", WHOLE)
def test_a_silent_source_has_no_score_and_harms_no_other(metric):
    sources = SOURCES.clone(); sources[1] = 0
    scores = metric(ESTIMATES, sources)
    assert scores[1].isnan() and scores[[0, 2]].isfinite().all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["source", "estimate", "side", "none"]), min_size=3, max_size=3))
def test_every_missing_score_has_a_reason(faults):
    sources, estimates = SOURCES.clone(), ESTIMATES.clone()
    for s, fault in enumerate(faults):
        if fault == "source": sources[s] = 0
        if fault == "estimate": estimates[s] = 0
        if fault == "side": sources[s, 1] = -sources[s, 0] # silent as a sum, heard by "joint"
    reasons = {"source": "silent source", "estimate": "silent estimate", "side": "silent source", "none": ""}
    assert silent_stems(estimates, sources) == [reasons[f] for f in faults]
    joint = silent_stems(estimates, sources, channels="joint")
    assert joint == [reasons[f] if f != "side" else "" for f in faults]
    for metric in (si_sdr, lambda *x, **k: scale_invariant(*x, **k).si_sar):
        assert metric(estimates, sources).isnan().tolist() == [f != "none" for f in faults]
        assert metric(estimates, sources, channels="joint").isnan().tolist() == [bool(r) for r in joint]
    assert whole_track_sdr(estimates, sources).isnan().tolist() == [r == "silent source" for r in joint]


def test_views_and_lists_of_arrays():
    backwards = ESTIMATES.numpy()[..., ::-1]
    assert torch.equal(si_sdr(backwards, SOURCES), si_sdr(backwards.copy(), SOURCES))
    assert torch.allclose(framewise_energy_sdr([x.double().numpy() for x in ESTIMATES], list(SOURCES), sample_rate=RATE),
                          framewise_energy_sdr(ESTIMATES, SOURCES, sample_rate=RATE))
    assert torch.equal(whole_track_sdr(ESTIMATES.numpy().astype(">f4"), SOURCES), whole_track_sdr(ESTIMATES, SOURCES))


def test_every_metric_says_what_it_is_not():
    for metric in FRAMEWISE + WHOLE + (scale_invariant,): assert " Not " in metric.__doc__, metric


def test_a_silent_estimate_scores_zero_in_energy_ratios_and_nothing_in_si_sdr():
    assert whole_track_sdr(0 * ESTIMATES, SOURCES).abs().max() < 1e-9
    assert framewise_energy_sdr(1e-12 * ESTIMATES, SOURCES, sample_rate=RATE).abs().max() < 1e-9
    assert torch.stack(scale_invariant(0 * ESTIMATES, SOURCES)).isnan().all()


def test_errors():
    for metric in FRAMEWISE + WHOLE:
        for wrong in (ESTIMATES[:2], ESTIMATES[:, :1], ESTIMATES[0], torch.full_like(SOURCES, torch.nan)):
            with pytest.raises(SepnbError): metric(wrong, SOURCES, **(dict(sample_rate=RATE) if metric in FRAMEWISE else {}))
    with pytest.raises(SepnbError, match="joint"): si_sdr(ESTIMATES, SOURCES, channels="stereo")


# ------------------------------------------------------------------------------------------------ over the mixture
@pytest.mark.parametrize("metric", [*FRAMEWISE, *WHOLE, metrics.bsseval_v4, scale_invariant])
def test_improvement_over_the_mixture(metric):
    options = dict(sample_rate=RATE) if metric in (*FRAMEWISE, metrics.bsseval_v4) else {}
    if metric is metrics.bsseval_v4: options["taps"] = 16
    table = over_mixture(metric, ESTIMATES, SOURCES, **options)
    stack = lambda x: torch.stack(tuple(x)) if isinstance(x, tuple) else x
    assert type(table.improvement) is type(table.estimates)
    assert torch.allclose(stack(table.improvement), stack(table.estimates) - stack(table.mixture))
    mix = SOURCES.sum(0).expand_as(SOURCES)
    assert torch.allclose(stack(table.mixture), stack(metric(mix, SOURCES, **options)))


def test_the_mixture_s_scale_is_stated():
    assert torch.allclose(over_mixture(si_sdr, ESTIMATES, SOURCES, mix_gain=1 / 3).mixture, over_mixture(si_sdr, ESTIMATES, SOURCES).mixture)
    third = over_mixture(whole_track_sdr, ESTIMATES, SOURCES, mix_gain=1 / 3).mixture
    assert torch.allclose(third, whole_track_sdr((SOURCES.sum(0) / 3).expand_as(SOURCES), SOURCES))
