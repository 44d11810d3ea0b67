"""Informed factorisation: notes of a generated piano phrase, zeros that stay, dictionaries that travel, and nothing lost."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.classical.informed_nmf import Dictionary, NMFSupervised, learn_dictionary, learn_templates, load_dictionary, note_owner, note_rows, score_start, separate_notes
from sepnb.classical.nmf import DIVERGENCES, factorise
from sepnb.core import SepnbError, power_to_db, seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT, magnitude
from sepnb.synth import noise, times, toy_sources

RATE = 22050
SCORE = [(0.0, 0.7, 60), (0.0, 0.7, 64), (0.4, 1.1, 67), (0.8, 1.5, 72), (1.1, 2.2, 55), (1.1, 2.2, 60), (1.5, 2.6, 76), (1.9, 2.8, 64)]

@pytest.fixture(autouse=True)
def one_thread(): seed_everything(0, threads=1)

def gen(seed): return torch.Generator().manual_seed(seed)
def ratio_db(estimates, sources): return power_to_db(sources.square().sum((-2, -1)) / (estimates - sources).square().sum((-2, -1)))

def piano(start, end, pitch, generator, seconds=3.2): # partials of a stiff string that decay, a knock, a damper
    t = times(seconds, RATE) - start; f0 = 440 * 2 ** ((pitch - 69) / 12); since = t.clamp_min(0)
    tones = sum(torch.sin(2 * math.pi * h * f0 * math.sqrt(1 + 4e-4 * h * h) * t + h) * torch.exp(-(2 + 0.5 * h) * since) / h for h in range(1, 13) if h * f0 < RATE / 2.2)
    knock = 0.3 * noise(generator, seconds=seconds, sample_rate=RATE, amplitude=1.0) * torch.exp(-120 * since)
    return (0.2 * (t >= 0) * (1 - torch.exp(-400 * since)) * torch.exp(-25 * (t - (end - start)).clamp_min(0)) * (tones + knock)).float()

@pytest.fixture(scope="module")
def phrase():
    g = gen(0)
    pans = torch.rand(len(SCORE), 1, 1, generator=g) * torch.tensor([0.5, -0.5])[:, None] + torch.tensor([0.4, 0.9])[:, None]
    return torch.stack([piano(*note, g) for note in SCORE])[:, None] * pans

# Score

@pytest.mark.parametrize("kind", ["kullback_leibler", "euclidean"])
def test_notes_of_a_phrase_are_separated_by_more_than_ten_decibels(phrase, kind):
    mix = phrase.sum(0)
    found = torch.stack(list(separate_notes(mix, RATE, SCORE, n_fft=2048, hop_length=512, divergence=kind).values()))
    gain = ratio_db(found, phrase) - ratio_db(mix.expand_as(phrase), phrase)
    assert (gain > 10).all() and (ratio_db(found, phrase) > (8 if kind == "euclidean" else 9)).all() and (found.sum(0) - mix).abs().max() < 1e-5

def test_groups_are_sums_in_order_of_appearance(phrase):
    mix, hands = phrase.sum(0), ["left" if p < 65 else "right" for *_, p in SCORE]
    found = separate_notes(mix, RATE, SCORE, groups=hands, n_fft=2048, hop_length=512)
    truth = torch.stack([sum(x for x, h in zip(phrase, hands) if h == name) for name in found])
    assert list(found) == ["left", "right"] and (ratio_db(torch.stack(list(found.values())), truth) > 10).all()

@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_what_the_score_forbids_stays_zero(phrase, kind):
    mag = magnitude(STFT(2048, 512)(phrase.sum(0)))
    _, w, h = score_start(note_rows(SCORE), mag.shape[-1], sample_rate=RATE, n_fft=2048, hop_length=512)
    a, b = factorise(mag[0], w=w, h=h, divergence=kind, iterations=30)
    assert (w == 0).any() and (h == 0).float().mean() > 0.3 and (a[w == 0] == 0).all() and (b[h == 0] == 0).all() and (b > 0).any()

def test_score_start_by_hand():
    pitches, w, h = score_start(note_rows([(1.0, 2.0, 69), (3.0, 3.5, 69), (2.0, 3.0, 57)]), 9, sample_rate=2000, n_fft=16, hop_length=1000, early_s=0.0, late_s=0.5, onset_s=0.0)
    assert pitches.tolist() == [57, 69] and w.shape == (9, 4) and h.shape == (4, 9)
    assert h.int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1, 0, 0]]

@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), frames=st.integers(1, 40))
def test_the_owner_is_the_note_that_began_last(seed, count, frames):
    g = gen(seed); start = torch.rand(count, generator=g, dtype=torch.float64) * 4; pitch = torch.randint(60, 64, (count,), generator=g).double()
    rows = torch.stack([start, start + 0.5, pitch], 1)
    pitches, owner = note_owner(rows, frames, sample_rate=10, hop_length=1, early_s=0.0)
    for p, row in zip(pitches, owner):
        mine = [k for k in range(count) if pitch[k] == p]
        for n, k in enumerate(row.tolist()):
            begun = [j for j in mine if start[j] <= n / 10]
            assert k == (max(begun, key=lambda j: start[j]) if begun else min(mine, key=lambda j: start[j]))

@pytest.mark.parametrize("notes", [[], [(0, 1)], [(1, 1, 60)], [(-1, 1, 60)], [(0, 1, 128)], [(0, math.nan, 60)], [(0, 1, 60, 1)]])
def test_notes_that_cannot_be_are_refused(notes):
    with pytest.raises(SepnbError, match="notes") as error: note_rows(notes)
    assert "\n" not in str(error.value)

@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 5000), channels=st.integers(1, 3), log_scale=st.floats(-4, 2), double=st.booleans())
def test_notes_sum_to_the_mixture(seed, samples, channels, log_scale, double):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed), dtype=torch.float64 if double else torch.float32)
    out = torch.stack(list(separate_notes(mix, 8000, [(0.0, 0.1, 60), (0.05, 0.3, 67), (0.2, 9.0, 60)], n_fft=512, hop_length=128, iterations=5).values()))
    assert out.shape == (3, *mix.shape) and out.dtype == mix.dtype and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()

def test_silence_and_bad_groups():
    assert not torch.stack(list(separate_notes(torch.zeros(2, 100), RATE, SCORE).values())).any()
    with pytest.raises(SepnbError, match="groups"): separate_notes(torch.zeros(2, 100), RATE, SCORE, groups=["a"])
    with pytest.raises(SepnbError, match="NaN"): separate_notes(torch.full((1, 9), torch.nan), RATE, SCORE)

# Dictionaries

NAMES, GRID = ("drums", "other"), dict(n_fft=512, hop_length=128)
def toy(seed, seconds=2.0): return toy_sources(gen(seed), seconds=seconds, sample_rate=8000, stems=NAMES)
@pytest.fixture(scope="module")
def book(): return learn_dictionary((dict(zip(NAMES, toy(seed))) for seed in range(3)), 8000, rank=8, iterations=40, **GRID)

def test_templates_are_found_again():
    w, h = torch.block_diag(*[1 + torch.rand(10, 1, generator=gen(j)) for j in range(3)]), torch.rand(3, 2, 200, generator=gen(9)) ** 4
    learned = learn_templates([torch.einsum("fk,kcn->cfn", w, h), torch.zeros(2, 30, 5)], rank=3, iterations=300)
    alike = torch.nn.functional.cosine_similarity(learned[:, :, None], w[:, None], dim=0)
    assert alike.amax(0).min() > 0.99 and torch.allclose(learned.sum(0), torch.ones(3), atol=1e-5)

def test_silence_teaches_nothing():
    for mags in ([], [torch.zeros(1, 5, 5)]):
        with pytest.raises(SepnbError, match="silent"): learn_templates(mags, rank=2)

def test_level_of_a_song_does_not_matter():
    mags = [magnitude(STFT(**GRID)(toy(seed)[0])) for seed in range(2)]
    quiet = [mags[0], 1e-3 * mags[1]]
    assert torch.allclose(learn_templates(mags, rank=3), learn_templates(quiet, rank=3), rtol=1e-3, atol=1e-6)

def test_dictionaries_travel(book, tmp_path):
    book.save(tmp_path / "a" / "b.safetensors"); book.save(tmp_path / "a" / "b.safetensors")
    again = load_dictionary(tmp_path / "a" / "b.safetensors")
    assert list(again.templates) == sorted(NAMES) and all(torch.equal(again.templates[k], book.templates[k]) for k in NAMES)
    assert all(getattr(again, k) == getattr(book, k) for k in ("sample_rate", "n_fft", "hop_length", "power", "divergence"))
    mix = toy(9).sum(0)
    for a, b in zip(NMFSupervised(dictionary=book)(mix, 8000).values(), build("nmf_supervised", dictionary=str(tmp_path / "a" / "b.safetensors"))(mix, 8000).values()): assert torch.equal(a, b)

def test_files_that_are_no_dictionary(tmp_path):
    from safetensors.torch import save_file
    save_file(dict(drums=torch.ones(257, 2)), tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here, whatever the name says")
    for name in ("none.safetensors", "plain.safetensors", "text.safetensors"):
        with pytest.raises(SepnbError, match=name) as error: load_dictionary(tmp_path / name)
        assert "\n" not in str(error.value)

@pytest.mark.parametrize("wrong", [dict(templates={}), dict(templates=dict(a=torch.ones(9, 2))), dict(templates=dict(a=-torch.ones(257, 2))), dict(divergence="l1"), dict(power=0.0), dict(sample_rate=0)])
def test_dictionaries_that_cannot_be_are_refused(wrong):
    with pytest.raises(SepnbError): Dictionary(**{**dict(templates=dict(a=torch.ones(257, 2)), sample_rate=8000, n_fft=512), **wrong})

@pytest.mark.parametrize("wrong", [dict(stems=["voice"]), dict(free=0), dict(iterations=0), dict(exponent=0.0)])
def test_separators_that_cannot_work_are_refused(book, wrong):
    with pytest.raises(SepnbError): NMFSupervised(**{**dict(stems=NAMES, dictionary=book), **wrong})

def test_registered_and_asks_for_a_dictionary():
    assert [s.kind for s in systems() if s.name == "nmf_supervised"] == ["classical"]
    with pytest.raises(SepnbError, match="dictionary"): build("nmf_supervised", NAMES)

def test_known_stems_are_separated_and_templates_stay(book):
    for seed in (10, 11):
        sources = toy(seed); mix = sources.sum(0)
        found = torch.stack(list(NMFSupervised(NAMES, dictionary=book)(mix, 8000).values()))
        assert (ratio_db(found, sources) > ratio_db(mix.expand_as(sources), sources) + 5).all()

def test_unknown_stems_are_learned_in_the_song(book):
    system = NMFSupervised(NAMES, dictionary=Dictionary(dict(drums=book.templates["drums"]), 8000, **GRID), free=8)
    assert system.shares.sum(1).tolist() == [8, 8] and system.known.shape == (257, 8)
    sources = toy(10); mix = sources.sum(0)
    assert (ratio_db(torch.stack(list(system(mix, 8000).values())), sources) > ratio_db(mix.expand_as(sources), sources) + 3).all()

@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), samples=st.integers(1, 3000), channels=st.integers(1, 4), log_scale=st.floats(-4, 2), free=st.booleans())
def test_stems_sum_to_the_mixture(book, seed, samples, channels, log_scale, free):
    mix = 10**log_scale * torch.randn(channels, samples, generator=gen(seed))
    out = torch.stack(list(NMFSupervised(["drums", "new" if free else "other"], dictionary=book, iterations=5)(mix, 8000).values()))
    assert out.shape == (2, *mix.shape) and (out.sum(0) - mix).abs().max() <= 1e-5 * mix.abs().max()
    assert not torch.stack(list(NMFSupervised(dictionary=book, iterations=3)(0 * mix, 8000).values())).any()
