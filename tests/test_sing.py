"""Singing: melody and alignment by known answers, pitch by an independent tracker, spectrum, lengths, levels, determinism; flite where it is cached."""
import os
import importlib.util
import subprocess
import sys
from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError, digest
from sepnb.music.assets import fetch, is_cached
from sepnb.music.score import Line, Note, shift, transpose
from sepnb.music.sing import (Singer, align, analyse, breath, double, envelopes, harmony, in_range, pitch_contour, presence_curve, sing, singers, timeline, vocals)
from sepnb.music.voices import VOWELS, FliteVoice, Phone, SynthVoice, read_phones, spell, split_words

VOICE, RATE = SynthVoice(), 44100
SYLLABLES = "Ev ery light is call ing out your name".split()


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def make_line(syllables=SYLLABLES, words="Every light is calling out your name", pitches=(55, 57, 59, 59, 62, 60, 59, 57, 55), length=0.5, at_s=0.3, section="verse"):
    notes = tuple(Note(at_s + i * length, at_s + (i + 1) * length, p, 90) for i, p in enumerate(pitches))
    return Line(tuple(syllables), words, notes, section)


def heard_cents(x, notes, rate=22050): # of each note's middle
    pitch = librosa.yin(librosa.resample(x.numpy(), orig_sr=RATE, target_sr=rate), fmin=70, fmax=800, sr=rate, frame_length=2048, hop_length=220)
    t = np.arange(len(pitch)) * 220 / rate
    return np.array([1200 * np.log2(np.median(pitch[(t > n.start_s + 0.1) & (t < n.end_s - 0.15)]) / (440 * 2 ** ((n.pitch - 69) / 12))) for n in notes])


def band_db(x, low_hz, high_hz): # share of the whole, dB
    energy, f = np.abs(np.fft.rfft(x.numpy())) ** 2, np.fft.rfftfreq(len(x), 1 / RATE)
    return 10 * np.log10(energy[(f >= low_hz) & (f < high_hz)].sum() / energy.sum())


@pytest.fixture(scope="module")
def flite():
    if not (is_cached("flite") and is_cached("libflite1")) and not os.environ.get("SEPNB_FETCH"):
        pytest.skip("flite is not in the cache; make repro, or SEPNB_FETCH=1, fetches it")
    folders = fetch("flite"), fetch("libflite1")
    try: FliteVoice("slt", folders).speak("la")
    except SepnbError as e:
        if "shared librar" in str(e): pytest.skip(f"the system lacks a library of flite's (libasound2?): {e}")
        raise
    return folders


# -- melody

@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(40, 80), st.floats(0.5, 1.5), st.floats(0, 0.5)), min_size=1, max_size=6), st.integers(0, 1000))
def test_each_note_is_in_tune_once_it_is_reached(rows, seed):
    notes, now = [], 0.2
    for pitch, length, rest in rows: notes.append(Note(now, now + length, pitch, 80)); now += length + rest
    t = np.arange(0, now + 0.3, 0.005); hz = pitch_contour(notes, t, generator=seeded(seed))
    assert np.isfinite(hz).all() and hz.min() > 440 * 2 ** ((min(n.pitch for n in notes) - 69 - 1.2) / 12)
    for n in notes:
        steady = (t > n.start_s + 0.1) & (t < min(n.end_s - 0.06, n.start_s + 0.36)) # before vibrato
        assert abs(1200 * np.log2(hz[steady] / (440 * 2 ** ((n.pitch - 69) / 12))).mean()) < 20


def test_mean_pitch_of_many_takes_is_the_note():
    note, t = (Note(0.0, 2.0, 60, 80),), np.arange(0.1, 1.9, 0.005)
    takes = np.stack([pitch_contour(note, t, generator=seeded(i)) for i in range(40)])
    errors = 1200 * np.log2(takes / (440 * 2 ** (-9 / 12))).mean(1)
    assert np.abs(errors).max() < 10 and abs(errors.mean()) < 2


@pytest.mark.parametrize("rate_hz", [5.0, 5.5, 6.0])
def test_vibrato_has_its_rate_after_its_delay(rate_hz):
    t = np.arange(0, 4, 0.005)
    hz = pitch_contour((Note(0.0, 4.0, 69, 80),), t, scoop_cents=0, drift_cents=0, jitter_cents=0, vibrato_hz=rate_hz, vibrato_cents=40, generator=seeded())
    cents = 1200 * np.log2(hz / 440)
    assert np.abs(cents[t < 0.35]).max() < 1e-6 and 30 < np.abs(cents).max() < 50
    steady = cents[(t > 0.8) & (t < 3.8)]
    assert abs(np.abs(np.fft.rfft(steady * np.hanning(len(steady)), 16384)).argmax() * 200 / 16384 - rate_hz) < 0.04 * rate_hz


def test_glide_is_half_way_before_the_beat_and_there_soon_after():
    notes, t = (Note(0.0, 1.0, 60, 80), Note(1.0, 1.5, 72, 80)), np.arange(0, 1.5, 0.001)
    hz = pitch_contour(notes, t, glide_s=0.1, scoop_cents=0, vibrato_cents=0, drift_cents=0, jitter_cents=0, generator=seeded())
    midi = 69 + 12 * np.log2(hz / 440); at = lambda s: midi[round(s * 1000)]
    assert at(0.93) == pytest.approx(60) and at(0.99) == pytest.approx(66, abs=0.01) and at(1.045) == pytest.approx(72, abs=0.01)


def test_no_notes_no_melody():
    with pytest.raises(SepnbError, match="no notes"): pitch_contour((), np.zeros(3), generator=seeded())


# -- sounds and syllables

names = st.sampled_from(["aa", "iy", "er", "s", "t", "m", "l", "pau"])


@settings(deadline=None, max_examples=60)
@given(st.lists(names, min_size=1, max_size=20), st.integers(1, 8))
def test_alignment_uses_every_note_and_every_sound_once_in_order(sounds, count):
    phones = [Phone(n, 0.1 * i, 0.1 * i + 0.1) for i, n in enumerate(sounds)]; syllables = ["x"] * count
    if not any(p.name in VOWELS for p in phones):
        with pytest.raises(SepnbError, match="no vowel"): align(phones, "words", syllables)
        return
    units = align(phones, "words", syllables)
    assert [i for u in units for i in range(u.first, u.last + 1)] == list(range(count))
    assert [p for u in units for part in u[:3] for p in part] == [p for p in phones if p.name != "pau"]
    assert all(u.body and u.body[0].name in VOWELS and u.body[-1].name in VOWELS for u in units)
    assert not any(p.name in VOWELS for u in units for p in (*u.onset, *u.coda))


@settings(deadline=None, max_examples=60)
@given(st.lists(names, min_size=1, max_size=16), st.lists(st.tuples(st.floats(0.06, 1.0), st.floats(0, 0.4)), min_size=1, max_size=6), st.floats(0, 1))
def test_timeline_puts_vowels_on_beats_and_never_runs_backwards(sounds, rows, start):
    phones = [Phone(n, 0.1 * i, 0.1 * i + 0.1) for i, n in enumerate(["aa", *sounds])]; notes, now = [], start
    for length, rest in rows: notes.append(Note(now, now + length, 60, 80)); now += length + rest
    units = align(phones, "words", ["x"] * len(notes)); song_s, speech_s, spans = timeline(units, notes)
    assert (np.diff(song_s) >= 0).all() and song_s[0] >= -1e-9 and song_s[-1] <= notes[-1].end_s + 1e-3
    for u, (begin, end), following in zip(units, spans, [*spans[1:], (np.inf, 0)]):
        assert begin <= notes[u.first].start_s + 1e-9 < end <= following[0] + 1e-6
        assert np.interp(notes[u.first].start_s + 1e-4, song_s, speech_s) == pytest.approx(u.body[0].start_s, abs=0.02)


def test_a_word_keeps_its_syllables_when_another_word_differs():
    phones = read_phones("pau:0.1 eh:0.2 v:0.3 er:0.4 iy:0.5 pau:0.6 l:0.7 ay:0.8 t:0.9 pau:1.0")
    units = align(phones, "every light", ("ev", "ery", "light"))
    assert [[p.name for p in u.body] for u in units] == [["eh"], ["er", "iy"], ["ay"]] and [p.name for p in units[2].onset] == ["l"]


def test_spelling_and_words():
    assert spell("phone") == ["f", "ao", "n"] and spell("yes")[0] == "y" and spell("why")[-1] == "iy"
    assert split_words("Well, I'm-not “here” 24/7") == ["Well", "I'm", "not", "here"]


# -- voices and spectra

def test_the_synthetic_voice_repeats_itself_and_stays_within_bounds():
    (a, rate, phones), (b, _, _) = VOICE.speak("Shining through the trees"), VOICE.speak("Shining through the trees")
    assert np.array_equal(a, b) and rate == 16000 and 0.05 < np.abs(a).max() < 1
    assert all(p.end_s == q.start_s for p, q in zip(phones, phones[1:])) and abs(phones[-1].end_s * rate - len(a)) <= 1


def test_formants_move_with_alpha():
    speech = analyse(VOICE, "see"); at = np.array([0.3]); f = np.arange(1025) * RATE / 2048
    peak = lambda alpha: f[1500 <= f][envelopes(speech, at, sample_rate=RATE, alpha=alpha, presence=0)[0][0][1500 <= f].argmax()]
    assert peak(1.2) / peak(1.0) == pytest.approx(1.2, rel=0.03)


def test_presence_is_a_share_of_one_curve():
    speech = analyse(VOICE, "morning light")
    whole = presence_curve(speech, 1.0)
    assert np.allclose(presence_curve(speech, 0.5), whole / 2) and -6.1 < whole.min() and whole.max() < 12.1


def test_presence_adds_at_2_to_4_khz():
    dull, bright = (sing([make_line()], Singer(VOICE, presence=p), seconds=5, generator=seeded())[0] for p in (0.0, 1.0))
    assert band_db(bright, 2000, 4000) > band_db(dull, 2000, 4000) + 6
    assert -16 < band_db(bright, 2000, 4000) < -6 # the real vocal at hand: -12
    assert band_db(bright, 8000, 16000) > -60 # something above the speech's band


# -- songs

def test_sung_in_tune():
    line = make_line()
    errors = heard_cents(sing([line], VOICE, seconds=5, generator=seeded(3))[0], line.notes)
    assert np.median(np.abs(errors)) < 15 and np.abs(errors).max() < 40


def test_same_seed_same_song_in_any_process_and_another_seed_another():
    call = lambda seed: sing([make_line()], VOICE, seconds=5, generator=seeded(seed))
    first = call(1); analyse.cache_clear()
    assert torch.equal(first, call(1)) and not torch.equal(first, call(2))
    code = ("import sys, torch; from sepnb.core import digest; from sepnb.music.sing import sing; from sepnb.music.voices import SynthVoice\n"
            "from sepnb.music.score import Line, Note\nassert 'pyworld' not in sys.modules\n"
            f"line = {make_line()!r}\nprint(digest(sing([line], SynthVoice(), seconds=5, generator=torch.Generator().manual_seed(1))))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == digest(first)


@settings(deadline=None, max_examples=8)
@given(st.floats(1.2, 3.0), st.sampled_from([16000, 22050, 44100]), st.integers(36, 84))
def test_any_length_and_rate(seconds, rate, pitch):
    line = Line(("Light",), "Light", (Note(0.0, min(1.0, seconds), pitch, 127),), "verse")
    x = sing([line], VOICE, seconds=seconds, sample_rate=rate, generator=seeded())
    assert x.shape == (1, round(seconds * rate)) and x.dtype == torch.float32 and x.isfinite().all() and 0.05 < x.abs().max() <= 0.9 + 1e-6


def test_silence_without_lines_and_outside_of_them():
    assert sing([], VOICE, seconds=1.5, generator=seeded()).equal(torch.zeros(1, 66150)) and sing([], VOICE, seconds=0, generator=seeded()).shape == (1, 0)
    assert not vocals([], VOICE, key="C major", seconds=1, generator=seeded()).any()
    x = sing([make_line(at_s=2.0)], VOICE, seconds=9, generator=seeded())[0]
    assert not x[:int(1.2 * RATE)].any() and x[int(7.0 * RATE):].abs().max() < 1e-6 and x[int(1.4 * RATE):int(1.9 * RATE)].any() # a breath


def test_level_and_no_clipping():
    loud = make_line(); loud = replace(loud, notes=tuple(replace(n, velocity=127) for n in loud.notes))
    x = sing([loud], VOICE, seconds=5, generator=seeded())
    assert x.abs().max() <= 0.9 + 1e-6 and -24 < 10 * torch.log10(x.square().mean()) < -18


def test_velocity_is_loudness():
    line = make_line(); notes = tuple(replace(n, velocity=120 if i < 4 else 40) for i, n in enumerate(line.notes))
    x = sing([replace(line, notes=notes)], VOICE, seconds=5, generator=seeded())[0]
    early, late = (x[int(a * RATE):int(b * RATE)].square().mean() for a, b in ((0.3, 1.8), (2.8, 4.7)))
    assert 10 * torch.log10(early / late) > 4


@pytest.mark.parametrize("change, word", [(dict(words="Hm", syllables=("Hm",), count=1), "vowel|nothing"), (dict(count=3), "3 notes for 9"), (dict(semitones=50), "cannot be sung"),
                                          (dict(semitones=-40), "cannot be sung"), (dict(late=9), "not within")])
def test_what_cannot_be_sung_is_one_line(change, word):
    line = make_line(); line = replace(line, notes=line.notes[:change.pop("count", 9)]); line = shift(transpose(line, change.pop("semitones", 0)), change.pop("late", 0))
    with pytest.raises(SepnbError, match=word) as e: sing([replace(line, **change)], VOICE, seconds=5, generator=seeded())
    assert "\n" not in str(e.value)


def test_without_pyworld_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyworld", None); analyse.cache_clear()
    with pytest.raises(SepnbError, match="pip install pyworld"): sing([make_line()], VOICE, seconds=5, generator=seeded())


# -- more than one

@settings(deadline=None, max_examples=25)
@given(st.sampled_from([f"{k} {m}" for k in ("C", "F#", "A#", "E") for m in ("major", "minor")]), st.integers(0, 11))
def test_thirds_stay_in_the_key(key, step):
    tonic = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B").index(key.split()[0]); scale = (0, 2, 4, 5, 7, 9, 11) if "major" in key else (0, 2, 3, 5, 7, 8, 10)
    line = make_line(pitches=[60 + step] * 9); third = harmony([line], key)[0].notes[0].pitch
    assert third - 60 - step in (3, 4)
    if (60 + step - tonic) % 12 in scale:
        assert (third - tonic) % 12 in scale and harmony(harmony([line], key), key, above=False)[0] == line
    assert harmony([line], "Gb major") == harmony([line], "F# major")
    with pytest.raises(SepnbError, match="no key"): harmony([line], "H dur")


def test_a_double_is_near_and_within_the_song():
    lines = [make_line(at_s=0.0), make_line(at_s=5.5)]
    for seed in range(20):
        late = [b.notes[0].start_s - a.notes[0].start_s for a, b in zip(lines, double(lines, seconds=10.0, generator=seeded(seed)))]
        assert late[0] >= 0 and late[1] <= 1e-9 and max(map(abs, late)) < 0.1


def test_a_chorus_is_wider_than_a_verse():
    lines = [make_line(), replace(shift(make_line(), 5.0), section="chorus")]
    x = vocals(lines, VOICE, key="G major", seconds=10, generator=seeded())
    side = (x[0] - x[1]).square()
    assert x.shape == (2, 441000) and x.abs().max() <= 0.9 + 1e-6 and side[:4 * RATE].mean() < 1e-8 and side[5 * RATE:].mean() > 1e-4


def test_range_by_octaves():
    low = in_range([make_line()], Singer(VOICE, low=40, high=52))[0]
    assert {a.pitch - b.pitch for a, b in zip(make_line().notes, low.notes)} == {12}
    assert in_range([make_line()], Singer(VOICE, low=50, high=66))[0] == make_line()


def test_splits_share_no_voice():
    voices = {split: {s.voice.name for s in singers(split, "anywhere")} for split in ("train", "valid", "test")}
    assert len(set.union(*voices.values())) == sum(map(len, voices.values())) and all(s.low < s.high for split in voices for s in singers(split))
    with pytest.raises(SepnbError, match="no singers"): singers("dev")


def test_breath_is_noise_between_800_and_8000_hz():
    x = torch.from_numpy(breath(seconds=0.5, generator=seeded()))
    assert abs(x.square().mean() - 1) < 1e-6 and band_db(x, 700, 9000) > -0.5


# -- flite

@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_flite_sings_in_tune_and_with_presence(flite, split):
    singer = singers(split, *flite)[0]; line = in_range([make_line()], singer)[0]
    x = sing([line], singer, seconds=5, generator=seeded())[0]
    assert np.median(np.abs(heard_cents(x, line.notes))) < 15
    assert -17 < band_db(x, 2000, 4000) < -6
    analyse.cache_clear(); assert torch.equal(x, sing([line], singer, seconds=5, generator=seeded())[0])


def test_flite_errors(flite, tmp_path):
    with pytest.raises(SepnbError, match="no flite"): FliteVoice("slt", (tmp_path,)).speak("hello")
    with pytest.raises(SepnbError, match="nothing|no vowel"): sing([replace(make_line(), words="…")], FliteVoice("slt", flite), seconds=5, generator=seeded())


# -- hibari

def test_hibari_sings_in_tune():
    if importlib.util.find_spec("onnxruntime") is None: pytest.skip("package onnxruntime is not here")
    if not is_cached("hibari-tts") and not os.environ.get("SEPNB_FETCH"): pytest.skip("hibari-tts is not in the cache; pip install onnxruntime and set SEPNB_FETCH=1")
    singer = [s for s in singers("train", hibari=fetch("hibari-tts")) if s.voice.name == "hibari"][0]
    x, rate, phones = singer.voice.speak("Walking home along the river")
    again, _, _ = singer.voice.speak("Walking home along the river")
    assert np.array_equal(x, again) and abs(phones[-1].end_s - len(x) / rate) < 1e-6 and [p.name for p in phones if p.name in VOWELS][:2] == ["ao", "ih"]
    assert all(p.end_s == pytest.approx(q.start_s) for p, q in zip(phones, phones[1:]))
    for phone in (p for p in phones if p.name in VOWELS): # lengths are right: there is voice where a vowel is said to be
        assert np.square(x[round(phone.start_s * rate):round(phone.end_s * rate)]).mean() > 0.05 * np.square(x).mean()
    line = in_range([make_line()], singer)[0]
    assert np.median(np.abs(heard_cents(sing([line], singer, seconds=5, generator=seeded())[0], line.notes))) < 15
