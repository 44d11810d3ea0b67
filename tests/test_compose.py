"""Pools, melodies and whole songs: what must hold for every seed; mma where it is cached."""
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sepnb.core import SepnbError
from sepnb.music.assets import fetch, is_cached
from sepnb.music.compose import Bar, _stem, band, bass_part, compose, covered, drum_part, find_mma, lay_bars, mma_parts, mma_song, run_mma, voicing
from sepnb.music.melody import LEAP, Demand, Motif, Plan, _tones, draw_motif, melody, plan_song, plans, set_syllables, sing_section
from sepnb.music.pools import POOLS, QUALITIES, SCALES, Pool, Style, belongings, check_pools, chord_pitches, chord_symbol, mode_of, read_lyrics, read_pools, syllables
from sepnb.music.score import STEMS, Score, activity, check, score_digest

SONGS = {(pool, seed): compose(POOLS[pool], seconds=20 + 2.5 * seed, seed=seed) for pool in POOLS for seed in range(5)} # 20 to 30 s


def section_of(score: Score, name: str) -> list[tuple[float, float]]: return [(a, b) for n, a, b in score.sections if n == name]


def sung_in(score: Score, span: tuple[float, float]): # words; and notes relative to the section. Light first syllables come before it
    rows = [l for l in score.lines if span[0] - 1.2 < l.notes[0].start_s < span[1] - 1.2]
    return [(l.words, l.section) for l in rows], np.array([(n.start_s - span[0], n.end_s - span[0], n.pitch, n.velocity) for l in rows for n in l.notes])


def repeats(score: Score, one: tuple[float, float], other: tuple[float, float]) -> bool: # words, tune and chords
    (words, notes), (again, tune) = sung_in(score, one), sung_in(score, other)
    return bool(words) and words == again and np.allclose(notes, tune, rtol=0, atol=5e-6) and chords_in(score, one) == chords_in(score, other)


def chords_in(score: Score, span: tuple[float, float]) -> list[str]:
    a, b = span
    at = lambda t: [c for s, c in score.chords if s <= t + 1e-6][-1]
    return [at(a + k * (b - a) / 64 + 1e-4) for k in range(64)]


# pools

def test_pools_share_nothing():
    check_pools(POOLS.values())
    for a, b in itertools.combinations(POOLS.values(), 2):
        mine, theirs = belongings(a), belongings(b)
        assert all(mine[kind] and not mine[kind] & theirs[kind] for kind in ("style", "groove", "pattern", "progression", "lyric"))


@pytest.mark.parametrize("kind", ["style", "groove", "pattern", "progression", "lyric"])
def test_a_shared_thing_is_found(kind):
    train, test = POOLS["train"], POOLS["test"]; mine, theirs = train.styles[0], test.styles[1]
    turned = tuple(tuple(" ".join(p.split()[1:] + p.split()[:1]) for p in trio) for trio in mine.progressions)
    changed = dict(style=replace(theirs, name=mine.name), groove=replace(theirs, grooves=mine.grooves), progression=replace(theirs, progressions=turned),
                   pattern=replace(theirs, kick=mine.kick, snare=mine.snare, hat=mine.hat)).get(kind, theirs)
    one = train.lyrics[0]
    words = (replace(one, title="Other", verse=tuple(l.upper() for l in one.verse)),) if kind == "lyric" else ()
    with pytest.raises(SepnbError, match=f"share the {kind}"): check_pools([train, replace(test, styles=(changed,), lyrics=words)])


def test_lyrics_are_many_metrical_and_plain():
    texts = [(l.foot, line) for p in POOLS.values() for l in p.lyrics for line in (*l.verse, *l.chorus, *l.bridge)]
    assert len(texts) > 400
    for foot, line in texts:
        assert len(syllables(line)) == (8 if foot == "iambic" else 7), line
        assert line.isascii() and all(s.strip("',.?!;").replace("'", "").isalpha() for s in syllables(line)), line
    assert all(len(l.verse) == 8 and len(l.chorus) == 4 and len(l.bridge) == 2 for p in POOLS.values() for l in p.lyrics)


def test_styles_are_complete():
    for style in (s for p in POOLS.values() for s in p.styles):
        steps = 4 * style.metre[0] * 4 // style.metre[1]
        assert {len(getattr(style, row)) for row in ("kick", "snare", "hat", "bass", "comp")} == {steps}
        assert set(style.bass) <= set("1358a.") and set(style.comp) <= set("Xxo^.") and set(style.kick + style.snare + style.hat) <= set("Xxo.")
        assert 60 <= style.tempo[0] < style.tempo[1] <= 180 and 0.5 <= style.swing <= 0.75 and all(len(g) in (3, 4) for g in style.grooves)
        assert all(0 <= k < 112 and k not in (52, 53, 54) for k in style.comp_programs + style.pad_programs) and all(32 <= k < 40 for k in style.bass_programs)
        assert any(plans(style, s)[0] for s in (20.0, 24.0, 28.0))
    assert {s.metre for p in POOLS.values() for s in p.styles} == {(4, 4), (3, 4), (6, 8)} == {s.metre for s in POOLS["train"].styles}


def test_unreadable_pools():
    with pytest.raises(SepnbError, match="odd"): read_pools("[[style]]\npool='train'\nname='odd'\ngrooves=[]", "")
    with pytest.raises(SepnbError, match="bridge"): read_lyrics("# train | iambic | T\nverse\nA\nchorus\nB\n")


# harmony

@pytest.mark.parametrize("numeral, tonic, mode, symbol, notes", [
    ("I", 0, "major", "C", {0, 4, 7}), ("vi7", 0, "major", "Am7", {9, 0, 4, 7}), ("bVII", 2, "major", "C", {0, 4, 7}), ("IVmaj7", 5, "major", "Bbmaj7", {10, 2, 5, 9}),
    ("i", 6, "minor", "F#m", {6, 9, 1}), ("bVI", 0, "minor", "Ab", {8, 0, 3}), ("iv6", 7, "minor", "Cm6", {0, 3, 7, 9}), ("V7", 4, "minor", "B7", {11, 3, 6, 9})])
def test_known_chords(numeral, tonic, mode, symbol, notes):
    assert chord_symbol(numeral, tonic, mode) == symbol and set(chord_pitches(symbol)) == notes


@given(numeral=st.sampled_from(["I", "ii7", "bIII", "IVmaj7", "V7", "vi", "bVII", "i7", "iv6"]), tonic=st.integers(0, 11), mode=st.sampled_from(["major", "minor"]))
@settings(deadline=None, max_examples=25)
def test_chords_transpose(numeral, tonic, mode):
    base = chord_pitches(chord_symbol(numeral, 0, "major"))
    assert chord_pitches(chord_symbol(numeral, tonic, mode)) == tuple((p + tonic) % 12 for p in base)
    with pytest.raises(SepnbError, match="unknown chord"): chord_symbol(numeral + "?", tonic, mode)


@given(symbols=st.lists(st.sampled_from([r + q for r in ("C", "F#", "Bb", "A") for q in QUALITIES]), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_voicings_are_close_and_complete(symbols):
    last = None
    for s in symbols:
        last = voicing(chord_pitches(s), last)
        assert {p % 12 for p in last} == set(chord_pitches(s)) and max(last) - min(last) < 12 and all(48 < p < 76 for p in last) and last == sorted(last)


# melody

@given(count=st.integers(1, 9), foot=st.sampled_from(["iambic", "trochaic"]), style=st.sampled_from([s for p in POOLS.values() for s in p.styles]), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_syllables_are_in_order_and_stresses_on_feet(count, foot, style, seed):
    if not (found := plans(style, 24.0)[0]): return
    motif = draw_motif(found[seed % len(found)], np.random.default_rng(seed))
    if count > 8 and foot == "trochaic":
        with pytest.raises(SepnbError, match="split it"): set_syllables(count, foot, motif)
        return
    places = set_syllables(count, foot, motif)
    assert len(places) == count and all(a[0] < b[0] for a, b in zip(places, places[1:])) and all(-0.5 <= at < 4 for at, *_ in places)
    assert [due for _, due, strong in places if strong] == list(motif.beats[:(count + (foot == "trochaic")) // 2])


@given(seed=st.integers(0, 10**6), low=st.integers(40, 60), span=st.integers(4, 12), chord=st.sampled_from([(0, 4, 7), (9, 0, 4, 7), (10, 2, 5)]))
@settings(deadline=None, max_examples=25)
def test_melody_is_the_cheapest_of_all(seed, low, span, chord):
    wants = [Demand(chord, k != 1, low + span / 2 + k, k == 2) for k in range(3)]
    rng = np.random.default_rng(seed); tables = [_tones(w, SCALES["major"], low, low + span, rng) for w in wants]
    if not all(tables): return
    cost = lambda ps: sum(t[p] for t, p in zip(tables, ps)) + sum(LEAP[abs(b - a)] for a, b in zip(ps, ps[1:]))
    found = melody(wants, scale=SCALES["major"], low=low, high=low + span, rng=np.random.default_rng(seed))
    assert cost(found) == pytest.approx(min(cost(ps) for ps in itertools.product(*tables)), abs=1e-9)


def test_one_tune_takes_other_words():
    plan = Plan(POOLS["train"].styles[0], 2.0, 110.0, 1.5, ())
    sing = lambda texts: sing_section("verse", texts, "iambic", ("C", "G", "Am", "F"), plan, scale=SCALES["major"], voice_range=(52, 70), rng=np.random.default_rng(5))
    lyric = POOLS["train"].lyrics[0]; one, other = sing(lyric.verse[:4]), sing(lyric.verse[4:])
    assert [(s.pitches, s.starts_q, s.ends_q) for s in one] == [(s.pitches, s.starts_q, s.ends_q) for s in other] and one[0].text != other[0].text


# songs

@given(pool=st.sampled_from(sorted(POOLS)), seed=st.integers(0, 2**40), seconds=st.floats(18, 45), low=st.integers(45, 60), span=st.integers(12, 20))
@settings(deadline=None, max_examples=25)
@example(pool="train", seed=0, seconds=20.0, low=52, span=24)
@example(pool="train", seed=12, seconds=30.0, low=45, span=12) # muted strokes alone
@example(pool="train", seed=450, seconds=38.0, low=45, span=12) # a riff without chords, and a bass that goes with it
@example(pool="train", seed=357, seconds=30.0, low=45, span=12)
def test_any_song(pool, seed, seconds, low, span):
    score = compose(POOLS[pool], seconds=seconds, seed=seed, voice_range=(low, low + span))
    assert check(score) is score and score.seconds == seconds
    notes = [n for l in score.lines for n in l.notes]
    assert all(low <= n.pitch <= low + span for n in notes) and all(a.end_s <= b.start_s + 1e-6 for a, b in zip(notes, notes[1:]))
    assert min(n.end_s - n.start_s for n in notes) > 0.1
    assert all(b.notes[0].start_s - a.notes[-1].end_s > 0.1 for a, b in zip(score.lines, score.lines[1:])) # a breath
    style = next(s for s in POOLS[pool].styles if s.name == score.style)
    assert score.metre == style.metre and style.tempo[0] <= score.tempo_bpm <= style.tempo[1] and 60 <= score.tempo_bpm <= 180
    bar_s = 4 * score.metre[0] / score.metre[1] * 60 / score.tempo_bpm
    for _, a, b in score.sections: assert abs((b - a) / bar_s - round((b - a) / bar_s)) < 1e-3 # whole bars
    names = [n for n, *_ in score.sections]
    assert names.count("chorus") >= 2 and "verse" in names and names[0] == "intro"
    spans = section_of(score, "chorus")
    assert all(repeats(score, s, spans[0]) for s in spans) and not repeats(score, section_of(score, "verse")[0], spans[0])
    assert all(activity(score, stem) > 0.5 for stem in STEMS) and {p.stem for p in score.parts} == {"drums", "bass", "other"}
    lines = {l.replace("-", "") for lyric in POOLS[pool].lyrics for l in (*lyric.verse, *lyric.chorus, *lyric.bridge)}
    assert all(l.words in lines and "".join(l.syllables) == l.words.replace(" ", "").translate(str.maketrans("", "", ",.;:!?")) for l in score.lines)


def test_stresses_sing_chord_tones_and_tunes_go_by_steps():
    inside, moves = [], []
    for score in SONGS.values():
        lyric = next(l for p in POOLS.values() for l in p.lyrics if l.title == score.title)
        for line in score.lines:
            moves += [abs(b.pitch - a.pitch) for a, b in zip(line.notes, line.notes[1:])]
            for n in line.notes[lyric.foot == "iambic"::2]:
                now = {p for t in (n.start_s, n.start_s + 0.6) for p in chord_pitches([c for s, c in score.chords if s <= t + 1e-6][-1])} # sung early: the chord to come
                inside.append(n.pitch % 12 in now)
    assert np.mean(inside) > 0.95 and np.mean(np.array(moves) <= 2) > 0.7 and max(moves) <= 12 and np.mean(np.array(moves) == 0) < 0.15


def test_choruses_lie_higher_and_forms_differ():
    mean = lambda name: np.mean([n.pitch for s in SONGS.values() for l in s.lines if l.section == name for n in l.notes])
    assert mean("chorus") > mean("verse") + 2
    assert len({s.style for s in SONGS.values()}) > 8 and len({s.key for s in SONGS.values()}) > 6 and len({s.sections for s in SONGS.values()}) > 10


def test_forms_grow_with_the_seconds():
    shortest, longest = compose("train", seconds=6, seed=3), compose("train", seconds=150, seed=3)
    assert len(shortest.lines) >= 1 and len(longest.lines) > 15 and [n for n, *_ in longest.sections].count("chorus") >= 2
    assert longest.lines[-1].notes[-1].end_s > 120 and check(longest)


def test_strokes_fall_on_the_grid_and_fills_end_sections():
    style = replace(POOLS["train"].styles[0], swing=0.5); plan = Plan(style, 2.0, 120.0, 1.5, (("intro", 4.0, 0), ("verse", 16.0, 2), ("chorus", 16.0, 2)))
    bars = lay_bars(plan, dict.fromkeys(("intro", "verse", "chorus"), ("C", "Am", "F", "G")))
    kit = drum_part(style, bars, np.random.default_rng(0))
    assert all(abs(4 * n.start_s - round(4 * n.start_s)) < 1e-9 for n in kit.notes)
    assert sorted(n.start_s for n in kit.notes if n.pitch == 49) == [4.0, 20.0]
    assert all(any(n.pitch in (38, 43, 45, 48) for n in kit.notes if end - 2 <= n.start_s < end) for end in (4, 20, 36))
    line = bass_part(style, bars, np.random.default_rng(0))
    assert all(n.pitch % 12 == chord_pitches(b.chord(0))[0] for b in bars for n in line.notes if n.start_s == b.start_q) # roots on the first beat


def test_the_singer_does_not_depend_on_the_band():
    style = POOLS["test"].styles[0]
    quiet = replace(style, kick="................", bass="1...............", comp="X...............")
    one, other = (compose(Pool("test", (s,), POOLS["test"].lyrics), seconds=24, seed=2) for s in (style, quiet))
    assert one.lines == other.lines and one.parts != other.parts


CODE = "import json, sys; from sepnb.music.compose import compose; from sepnb.music.score import score_digest; print(json.dumps([score_digest(compose(p, seconds=21, seed=9, mma=sys.argv[1] or None)) for p in ('train', 'test')]))"


def elsewhere(mma: str = "", **env): # digests from a fresh process
    done = subprocess.run([sys.executable, "-c", CODE, mma], capture_output=True, text=True, env={**os.environ, **env}, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_compose_the_same_bytes():
    here = [score_digest(compose(p, seconds=21, seed=9)) for p in ("train", "test")]
    assert here == elsewhere(PYTHONHASHSEED="1") and here[0] != here[1]
    assert len({score_digest(compose("train", seconds=21, seed=k)) for k in range(6)}) == 6


def test_what_cannot_be_composed():
    for bad, word in ((dict(seconds=2.0), "no style"), (dict(seconds=24.0, voice_range=(60, 64)), "too narrow"), (dict(seconds=24.0, mma="/nowhere"), "no mma in /nowhere")):
        with pytest.raises(SepnbError, match=word) as e: compose("train", seed=0, **bad)
        assert "\n" not in str(e.value)


# mma

def test_a_chart_for_mma():
    bars = [Bar(0.0, 3.0, "verse", ((0.0, "Am"), (1.5, "G")), True, False), Bar(3.0, 3.0, "verse", ((0.0, "F"),), False, True), Bar(6.0, 3.0, "chorus", ((0.0, "C"),), True, True)]
    chart = mma_song(("a/b.mma", "V", "C", "F"), bars, (6, 8), 3).splitlines()
    assert chart == ["RndSeed 3", "Tempo 120", "Groove a/b.mma:V", "1 Am / / G", "Groove a/b.mma:F", "2 F", "Groove a/b.mma:C", "3 C"]
    assert [_stem(n, p) for n, p in (("Drum-Kick", 0), ("Walk", 33), ("Bass-Piano", 1), ("Arpeggio", 24), ("Melody-X", 0))] == ["drums", "bass", "other", "other", None]


@pytest.fixture(scope="module")
def mma() -> Path:
    if not is_cached("mma"): pytest.skip("mma is not in the cache ($SEPNB_CACHE); `sepnb.music.assets.fetch('mma')` downloads it")
    return fetch("mma")


def test_every_groove_plays_all_stems(mma):
    for style in (s for p in POOLS.values() for s in p.styles):
        plan = Plan(style, {3: 3.0, 6: 1.5}.get(style.metre[0], 2.0), 120.0, 1.5, ())
        plan = replace(plan, sections=(("intro", 4 * plan.foot_q, 0), ("verse", 4 * plan.foot_q, 1), ("chorus", 4 * plan.foot_q, 1)))
        bars = lay_bars(plan, dict.fromkeys(("intro", "verse", "chorus"), ("C", "Am7", "Fmaj7", "G7")))
        groove = style.grooves[0]
        parts = mma_parts(replace(style, grooves=(groove,)), bars, mma, np.random.default_rng(0))
        assert parts[0].name != "kit", f"{groove} leaves a stem silent"
        assert all(covered(parts, stem, bars) > 2 / 3 for stem in ("drums", "bass", "other"))
        assert max(n.end_s for p in parts for n in p.notes) <= bars[-1].start_q + bars[-1].length_q
        on_one = [any(abs(n.start_s - b.start_q) < 0.1 for p in parts if p.stem == "bass" for n in p.notes) for b in bars]
        assert np.mean(on_one) > 0.6, f"the bass of {groove} does not play on the first beat of these bars"
        last = [n.start_s for p in parts for n in p.notes if n.start_s >= bars[-1].start_q]
        assert last, f"{groove} does not reach the last bar: is a beat a quarter?"


def test_mma_is_deterministic_and_leaves_the_song_alone(mma):
    one, plain = compose("train", seconds=21, seed=9, mma=mma), compose("train", seconds=21, seed=9)
    assert [score_digest(one), score_digest(compose("test", seconds=21, seed=9, mma=mma))] == elsewhere(str(mma), PYTHONHASHSEED="2")
    assert one.lines == plain.lines and one.chords == plain.chords and one.parts != plain.parts


def test_mma_that_refuses(mma):
    with pytest.raises(SepnbError, match="failed") as e: run_mma("Groove no/such.mma:Thing\n1 C\n", mma)
    assert "\n" not in str(e.value) and find_mma(mma)[0].name == "mma"


def test_bands_need_nothing_installed():
    style = POOLS["valid"].styles[3]; plan = Plan(style, 3.0, 140.0, 1.5, (("intro", 3.0, 0), ("chorus", 12.0, 1)))
    parts = band(style, lay_bars(plan, dict(intro=("C", "F"), chorus=("Am", "Ebmaj7"))), np.random.default_rng(0))
    assert [p.stem for p in parts] == ["drums", "bass", "other", "other"] and isinstance(style, Style) and plan_song(POOLS["valid"], 24.0, np.random.default_rng(0))
    assert mode_of(["i"]) == "minor" and isinstance(Motif((0, 1, 2, 3), (0,) * 4, 0.5, 0.5), Motif)
