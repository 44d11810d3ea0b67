"""Scores: values, checks, pictures, MIDI files there and back."""
from dataclasses import replace

import mido
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.music.score import (DRUMS, STEMS, Line, Note, Part, Score, activity, check, from_midi, merge, midi_to_hz, note_name, piano_roll, plot_score,
                               score_digest, score_from_json, score_json, shift, to_midi, transpose, voice_part)


def tiny(**changes) -> Score:
    bass = Part("bass", "bass", 33, (Note(0.0, 1.0, 36, 100), Note(1.0, 2.0, 43, 90)))
    kit = Part("kit", "drums", DRUMS, (Note(0.0, 0.1, 36, 110), Note(1.0, 1.1, 38, 110)))
    line = Line(("la", "la"), "lala", (Note(0.0, 0.9, 60, 90), Note(1.0, 1.9, 62, 90)), "verse")
    return replace(Score("t", "s", "C major", 120.0, (4, 4), 2.5, (("verse", 0.0, 2.0),), ((0.0, "C"),), (kit, bass), (line,)), **changes)


@st.composite
def scores(draw):
    def notes(count, low, high):
        starts = sorted(draw(st.lists(st.integers(0, 900), min_size=count, max_size=count, unique=True)))
        rows = zip(starts, starts[1:] + [1000])
        return tuple(Note(a / 100, draw(st.integers(a + 1, b)) / 100, draw(st.integers(low, high)), draw(st.integers(1, 127))) for a, b in rows)
    parts = tuple(Part(f"p{k}", stem, DRUMS if stem == "drums" else draw(st.integers(0, 127)), notes(draw(st.integers(1, 6)), 20, 100))
                  for k, stem in enumerate(draw(st.lists(st.sampled_from(("drums", "bass", "other")), max_size=5))))
    sung = notes(draw(st.integers(1, 8)), 48, 80)
    line = Line(tuple("la" for _ in sung), "la " * len(sung), sung, "chorus")
    return Score("T", "s", "A minor", draw(st.sampled_from((60.0, 97.3, 180.0))), (3, 4), 10.0, (("chorus", 0.0, 10.0),), ((0.0, "Am"),), parts, (line,))


def test_pitch_names_and_frequencies():
    assert midi_to_hz(69) == 440 and note_name(60) == "C4" and note_name(0) == "C-1" and note_name(127) == "G9"
    assert torch.allclose(midi_to_hz(torch.tensor([57.0, 81.0])), torch.tensor([220.0, 880.0]))
    assert all(abs(midi_to_hz(p + 12) / midi_to_hz(p) - 2) < 1e-12 for p in range(100))


@settings(deadline=None, max_examples=25)
@given(score=scores())
def test_json_and_midi_come_back(score, tmp_path_factory):
    assert check(score) is score and score_from_json(score_json(score)) == score
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    to_midi(score, path)
    tick_s = 60 / score.tempo_bpm / 960
    for reading, part in zip(from_midi(path), (*score.parts, voice_part(score)), strict=True):
        assert (reading.name, reading.program) == (part.name, part.program)
        for a, b in zip(reading.notes, part.notes, strict=True):
            assert (a.pitch, a.velocity) == (b.pitch, b.velocity)
            assert abs(a.start_s - b.start_s) <= tick_s and abs(a.end_s - b.end_s) <= tick_s + 1e-4 * b.end_s


@settings(deadline=None, max_examples=25)
@given(score=scores(), by=st.integers(-12, 12), later=st.floats(0, 100))
def test_rewriting_conserves(score, by, later):
    for part in score.parts:
        moved = transpose(part, by)
        assert [n.pitch - m.pitch for n, m in zip(moved.notes, part.notes)] == [0 if part.program == DRUMS else by] * len(part.notes)
        assert transpose(moved, -by) == part and shift(part, 0.0) == part
        assert [n.start_s for n in shift(part, later).notes] == [n.start_s + later for n in part.notes]
        both = merge([part, transpose(part, by)], "both")
        assert len(both.notes) == 2 * len(part.notes) and list(both.notes) == sorted(both.notes, key=lambda n: (n.start_s, n.pitch))
    for stem in STEMS: assert 0 <= activity(score, stem) <= 1


def test_activity_counts_overlaps_once():
    held = Part("pad", "other", 48, (Note(0.0, 1.5, 60, 80), Note(0.5, 1.0, 64, 80), Note(1.0, 2.0, 67, 80)))
    score = tiny(parts=(held,))
    assert activity(score, "other") == pytest.approx(2.0 / 2.5) and activity(score, "bass") == 0
    assert activity(tiny(), "drums") == pytest.approx(0.6 / 2.5) and activity(tiny(), "vocals") == pytest.approx(1.8 / 2.5)


@pytest.mark.parametrize("changes, word", [
    (dict(seconds=1.5), "in a song of 1.5 s"),
    (dict(parts=(Part("a", "horns", 60, ()),)), "no stem 'horns'"),
    (dict(parts=(Part("a", "bass", DRUMS, ()),)), "program 128"),
    (dict(parts=(Part("a", "bass", 33, ()), Part("a", "other", 0, ()))), "one name"),
    (dict(parts=(Part("a", "bass", 33, (Note(1.0, 1.0, 36, 90),)),)), "a note from 1 to 1 s"),
    (dict(parts=(Part("a", "bass", 33, (Note(1.0, 1.2, 36, 0),)),)), "velocity 0"),
    (dict(parts=(Part("a", "bass", 33, (Note(float("nan"), 1.2, 36, 9),)),)), "nan"),
    (dict(lines=(Line(("la",), "la", (), "verse"),)), "0 notes for 1"),
    (dict(lines=(Line(("la", "la"), "lala", (Note(0.0, 1.0, 60, 9), Note(0.5, 1.5, 60, 9)), "verse"),)), "two notes at once"),
    (dict(sections=(("verse", 0.0, 1.5), ("chorus", 1.0, 2.0))), "sections overlap"),
])
def test_check_names_the_fault(changes, word):
    with pytest.raises(SepnbError, match=word) as e: check(tiny(**changes))
    assert "\n" not in str(e.value)


def test_piano_roll_is_bounded_and_loses_no_note():
    roll = piano_roll((Note(0.0, 0.001, 60, 127), Note(9.99, 10.0, 127, 1)), seconds=10.0, step_s=0.1)
    assert roll.shape == (128, 100) and roll[60, 0] == 1 and roll[127, 99] > 0 and roll.count_nonzero() == 2
    assert piano_roll((), seconds=0.01).shape == (128, 1)


def test_plot_does_not_show_or_fail_on_silence():
    import matplotlib.pyplot as plt
    for score in (tiny(), tiny(parts=(), lines=())):
        fig = plot_score(score); assert len(fig.axes) == 2; plt.close(fig)


def test_midi_with_tempo_changes_and_running_notes(tmp_path):
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1_000_000), mido.Message("note_on", note=60, velocity=9), mido.Message("note_off", note=60, time=480),
                            mido.MetaMessage("set_tempo", tempo=500_000), mido.Message("note_on", note=62, velocity=9), mido.Message("note_on", note=62, velocity=0, time=480),
                            mido.Message("note_on", note=64, velocity=9), mido.MetaMessage("end_of_track", time=480)])
    midi = mido.MidiFile(ticks_per_beat=480); midi.tracks.append(track); midi.save(tmp_path / "a.mid")
    [reading] = from_midi(tmp_path / "a.mid")
    assert [(round(n.start_s, 6), round(n.end_s, 6), n.pitch) for n in reading.notes] == [(0, 1, 60), (1, 1.5, 62), (1.5, 2, 64)]


def test_files_that_cannot_be(tmp_path):
    for content in (b"", b"MThd", b"la la la", b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x03\xc0MTrk\x00\x00\x00\xff\x00"):
        (tmp_path / "bad.mid").write_bytes(content)
        with pytest.raises(SepnbError, match="bad.mid"): from_midi(tmp_path / "bad.mid")
    with pytest.raises(SepnbError, match="none.mid"): from_midi(tmp_path / "none.mid")
    to_midi(tiny(), tmp_path / "a.mid")
    with pytest.raises(SepnbError, match="exists"): to_midi(tiny(), tmp_path / "a.mid")
    many = tuple(Part(f"p{k}", "other", k, (Note(0.0, 1.0, 60, 90),)) for k in range(16))
    with pytest.raises(SepnbError, match="15 channels"): to_midi(tiny(parts=many), tmp_path / "b.mid")
    assert not (tmp_path / "b.mid").exists()
    for text in ("", "[]", '{"title": 1}'):
        with pytest.raises(SepnbError): score_from_json(text)


def test_digest_sees_every_note():
    assert score_digest(tiny()) == score_digest(tiny()) != score_digest(tiny(tempo_bpm=121.0))
    louder = replace(tiny().parts[1], notes=(replace(tiny().parts[1].notes[0], velocity=99), tiny().parts[1].notes[1]))
    assert score_digest(tiny(parts=(tiny().parts[0], louder))) != score_digest(tiny())
