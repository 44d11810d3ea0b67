"""Playing: every note sounds where it should, on every kind of instrument, the same every time and in every process; relatives are known."""
import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sepnb.audio import save_audio
from sepnb.core import SepnbError, digest
from sepnb.music.assets import is_cached
from sepnb.music.band import HITS, ROLES, STAND_IN, TONES, play_hit, play_tone, put, role_of
from sepnb.music.patches import Patches, envelope, play_patch, read_patch
from sepnb.music.render import (PLAYERS, Font, Instrument, Kit, Layer, choose_layer, find_preset, humanise, known, likeness, name_role, open_font, open_player,
                                origins, read_kit, render_kit, render_part)
from sepnb.music.score import DRUMS, Note, Part

RATE = 44100
needs_tsf = pytest.mark.skipif(__import__("importlib.util").util.find_spec("tinysoundfont") is None, reason="the tinysoundfont package is not here")


def gen(seed=0): return torch.Generator().manual_seed(seed)
def rms(x): return float(x.square().mean().sqrt())
def note(start, pitch, velocity=100, length=0.2): return Note(start, start + length, pitch, velocity)
def part(*notes, program=0): return Part("p", "drums" if program == DRUMS else "other", program, tuple(sorted(notes, key=lambda n: (n.start_s, n.pitch))))


NOTES = st.lists(st.builds(note, st.floats(0, 3), st.integers(0, 127), st.integers(1, 127), st.floats(0.01, 2)), max_size=12)


# ---------------------------------------------------------------- instruments of our own

def sine_font(path, presets): # one sine, 1378 Hz, as A6 of each (bank, program)
    wave = (np.sin(2 * np.pi * np.arange(1280) / 32) * 20000).astype("<i2")
    chunk = lambda name, data: name + np.uint32(len(data)).tobytes() + data + b"\0" * (len(data) % 2)
    name, words = (lambda text: text.encode().ljust(20, b"\0")), (lambda *v: np.array(v, "<u2").tobytes())
    pdta = {b"phdr": b"".join(name(f"P{b}.{p}") + words(p, b, i) + bytes(12) for i, (b, p) in enumerate((*presets, (0, 0)))),
            b"pbag": b"".join(words(i, 0) for i in range(len(presets) + 1)), b"pmod": bytes(10), b"pgen": words(*(41, 0) * len(presets), 0, 0),
            b"inst": name("I") + words(0) + name("EOI") + words(1), b"ibag": words(0, 0, 2, 0), b"imod": bytes(10), b"igen": words(54, 1, 53, 0, 0, 0),
            b"shdr": name("s") + np.array([0, 1280, 0, 1280, 32 * 1760], "<u4").tobytes() + bytes([93, 0]) + words(0, 1) + name("EOS") + bytes(26)}
    body = chunk(b"LIST", b"INFO" + chunk(b"ifil", words(2, 1))) + chunk(b"LIST", b"sdta" + chunk(b"smpl", wave.tobytes() + bytes(92)))
    path.write_bytes(chunk(b"RIFF", b"sfbk" + body + chunk(b"LIST", b"pdta" + b"".join(chunk(n, d) for n, d in pdta.items()))))
    return Font(path)


DRUM_NAMES = ("Kick", "Snare", "Closed HH", "Open HH", "Tom Low", "Crash")


@pytest.fixture(scope="module")
def folder(tmp_path_factory): # a kit whose drums are tones of 100, 200, … Hz, and a font
    folder = tmp_path_factory.mktemp("kit"); t = torch.arange(RATE) / RATE; drums = []
    for i, name in enumerate(DRUM_NAMES, 1):
        layers = ""
        for k in range(2): # soft: a tone; hard: the octave above it
            save_audio(folder / f"{i}{k}.wav", 0.5 * torch.sin(2 * torch.pi * 100 * i * 2 ** k * t)[None], RATE)
            layers += f"<layer><filename>{i}{k}.wav</filename><min>{k / 2}</min><max>{(k + 1) / 2}</max></layer>"
        drums.append(f"<instrument><name>{name}</name><volume>0.5</volume>{layers}</instrument>")
    (folder / "drumkit.xml").write_text(f"<drumkit_info><instrumentList>{''.join(drums)}</instrumentList></drumkit_info>")
    sine_font(folder / "sine.sf2", ((0, 0), (0, 33), (0, 48), (128, 0), (128, 8)))
    return folder


@pytest.fixture(scope="module", params=["builtin", "font", "kit"])
def player(request, folder):
    if request.param == "font": pytest.importorskip("tinysoundfont")
    return {"builtin": None, "font": Font(folder / "sine.sf2"), "kit": read_kit(folder)}[request.param]


BEAT = part(*(note(0.25 * i, (36, 42, 38, 46)[i % 4], 60 + 8 * (i % 8)) for i in range(8)), program=DRUMS)


# ---------------------------------------------------------------- all of them

def test_same_seed_same_bytes(player):
    play = lambda seed: render_part(BEAT, player, seconds=2.25, generator=gen(seed))
    first = play(1); play(2); render_part(part(note(0, 38, 127, 9), program=DRUMS), player, seconds=0.3, generator=gen(3)) # cut while it rings
    assert torch.equal(first, play(1)) and not torch.equal(first, play(2))
    assert first.dtype == torch.float32 and first.shape == (2, round(2.25 * RATE)) and first.isfinite().all() and first[:, -1].abs().max() == 0


def test_length_is_exact(player):
    for seconds, rate in ((0, RATE), (1 / RATE, RATE), (0.3333, 22050), (1.0001, 48000)):
        x = render_part(BEAT, player, seconds=seconds, sample_rate=rate, generator=gen())
        assert x.shape == (2, round(seconds * rate))


def test_notes_begin_in_time(player):
    for at in (0.0, 0.1, 0.51237):
        x = render_part(part(note(at, 36, 127, 0.3), program=DRUMS), player, seconds=1, generator=gen(), feel=0)
        loud = (x.abs().amax(0) > 1e-6).nonzero()[0].item()
        assert -1 <= loud - round(at * RATE) <= 90, at


def test_louder_is_louder(player):
    level = [rms(render_part(part(note(0, 36, v, 0.3), program=DRUMS), player, seconds=0.5, generator=gen(), feel=0)) for v in (20, 50, 90, 127)]
    assert all(b > 1.3 * a for a, b in zip(level, level[1:]))


def test_nothing_to_play(player):
    for p in (part(program=DRUMS), part(note(5, 36), program=DRUMS)): assert render_part(p, player, seconds=0.5, generator=gen()).abs().max() == 0


@settings(deadline=None, max_examples=8)
@given(notes=NOTES, seed=st.integers(0, 99), feel=st.sampled_from([0.0, 1.0, 3.0]))
def test_any_notes(player, notes, seed, feel):
    for p in (part(*notes, program=DRUMS), part(*notes, program=48)):
        if isinstance(player, Kit) and p.program < DRUMS: continue
        x = render_part(p, player, seconds=1.5, sample_rate=16000, generator=gen(seed), feel=feel)
        assert x.shape == (2, 24000) and x.isfinite().all() and x.abs().max() < 40


def play_beat(folder): return [digest(render_part(BEAT, p, seconds=1, generator=gen(4))) for p in (None, Font(folder / "sine.sf2"), read_kit(folder))]


@needs_tsf
def test_same_in_every_process(folder):
    with multiprocessing.get_context("spawn").Pool(1) as pool: assert pool.map(play_beat, [folder]) == [play_beat(folder)]


# ---------------------------------------------------------------- feel

@settings(deadline=None, max_examples=50)
@given(notes=NOTES, seed=st.integers(0, 999), timing=st.floats(0, 0.02), spread=st.floats(0, 30))
def test_humanise_keeps_notes_valid(notes, seed, timing, spread):
    notes = part(*notes).notes; played = humanise(notes, generator=gen(seed), timing_s=timing, velocity=spread)
    assert sorted(n.pitch for n in notes) == sorted(n.pitch for n in played) and list(played) == sorted(played, key=lambda n: (n.start_s, n.pitch))
    assert all(n.start_s >= 0 and n.end_s > n.start_s and 1 <= n.velocity <= 127 for n in played)
    assert sum(n.end_s - n.start_s for n in played) == pytest.approx(sum(n.end_s - n.start_s for n in notes))
    if timing == spread == 0: assert played == notes


def test_feel_zero_is_what_is_written():
    notes = tuple(note(0.1 * i, 60, 80) for i in range(1, 30))
    assert humanise(notes, generator=gen(), timing_s=0, velocity=0) == notes
    assert max(abs(b.start_s - a.start_s) for a, b in zip(notes, humanise(notes, generator=gen(1)))) < 0.024


# ---------------------------------------------------------------- the built-in band

def test_roles():
    assert set(ROLES.values()) == set(HITS) and all(set(v) <= set(HITS) for v in STAND_IN.values())
    small = ("kick", "snare", "closed")
    assert all(role_of(key, small) for key in range(128)) and all(role_of(key, HITS) == ROLES.get(key, "rim") for key in range(128))


@pytest.mark.parametrize("family", range(16))
def test_tones_are_in_tune(family):
    tone = replace(TONES[family], vibrato=0.0, breath=0.0)
    for pitch in (110.0, 440.0):
        x = play_tone(tone, pitch, hold_s=0.5, velocity=0.5, sample_rate=RATE, generator=gen(family))[:RATE // 2]
        spectrum = torch.fft.rfft(x * torch.hann_window(len(x), dtype=x.dtype), 8 * len(x)).abs(); peak = float(spectrum[:round(pitch * 1.5 * 2 ** tone.octave * 4)].argmax()) / 4
        assert abs(1200 * np.log2(peak / pitch / 2 ** tone.octave)) < 8 and 0.005 < x.abs().max() < 1.5


def test_hits_die_away():
    for role, hit in HITS.items():
        x = play_hit(hit, 1.0, sample_rate=22050, generator=gen()); assert rms(x[-len(x) // 10:]) < 0.1 * rms(x[:len(x) // 10]), role
        assert torch.allclose(play_hit(hit, 0.5, sample_rate=22050, generator=gen()), x * 0.5 ** 1.6)


def test_bands_differ_by_seed():
    x = [render_part(part(*(note(0.3 * i, p) for i, p in enumerate((36, 38, 42))), program=DRUMS), None, seconds=1, generator=gen(s), feel=0)[0] for s in range(4)]
    assert all(likeness(a, b) < 0.97 for i, a in enumerate(x) for b in x[:i])


@given(at=st.integers(0, 40), n=st.integers(0, 40))
def test_put(at, n):
    out, sound = torch.zeros(2, 20), torch.rand(2, n)
    put(out, sound, at); want = torch.zeros(2, 100); want[:, at:at + n] = sound
    assert torch.equal(out, want[:, :20])


# ---------------------------------------------------------------- fonts

@needs_tsf
def test_font_plays_the_right_pitch(folder):
    for pitch in (45, 57, 69, 81):
        x = render_part(part(note(0, pitch, 100, 2.0)), folder / "sine.sf2", seconds=1, generator=gen(), feel=0)[0]
        assert abs(torch.fft.rfft(x).abs().argmax().item() - 440 * 2 ** ((pitch - 69) / 12)) <= 1


@needs_tsf
def test_presets(folder):
    sound = open_font(Font(folder / "sine.sf2"))
    assert [find_preset(sound, p) for p in (0, 5, 33, 38, 48, 40, 55, 128)] == [(0, 0), (0, 0), (0, 33), (0, 33), (0, 48), None, (0, 48), (128, 0)]
    assert [find_preset(sound, 128, d) for d in (0, 8, 16)] == [(128, 0), (128, 8), (128, 0)]
    only = open_font(sine_font(folder / "drums.sf2", ((0, 0),))); assert find_preset(only, 128) == (0, 0) # as the AVL kits have it


@needs_tsf
def test_notes_end(folder):
    x = render_part(part(note(0.1, 69, 100, 0.2)), Font(folder / "sine.sf2"), seconds=1, generator=gen(), feel=0)
    assert rms(x[:, 5000:12000]) > 0.01 and x[:, 20000:].abs().max() < 1e-3


@needs_tsf
def test_repeated_key(folder):
    "A key that is struck again while it is held sounds again."
    once = render_part(part(note(0, 69, 100, 0.5)), folder / "sine.sf2", seconds=1, generator=gen(), feel=0)
    twice = render_part(part(note(0, 69, 100, 0.5), note(0.5, 69, 100, 0.4)), folder / "sine.sf2", seconds=1, generator=gen(), feel=0)
    assert rms(twice[:, 25000:38000]) > 20 * rms(once[:, 25000:38000])


@needs_tsf
def test_bad_fonts(tmp_path, folder):
    (tmp_path / "a.sf2").write_bytes((folder / "sine.sf2").read_bytes()[:300]); (tmp_path / "b.sf2").touch()
    for path, message in (("a.sf2", "not a SoundFont"), ("b.sf2", "not a SoundFont"), ("c.sf2", "no SoundFont at")):
        with pytest.raises(SepnbError, match=message) as e: render_part(part(note(0, 60)), tmp_path / path, seconds=1, generator=gen())
        assert "\n" not in str(e.value)
    with pytest.raises(SepnbError, match="no instrument like program 80"): render_part(part(note(0, 60), program=80), folder / "sine.sf2", seconds=1, generator=gen())


def test_without_the_library(folder, monkeypatch):
    monkeypatch.setattr("sepnb.music.render.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SepnbError, match="pip install --no-deps tinysoundfont"): render_part(part(note(0, 60)), folder / "sine.sf2", seconds=1, generator=gen())


# ---------------------------------------------------------------- patches

def patch(path, waves, *, mode=1 | 4 | 32, root=lambda i: 220.0 * 2 ** i, rates=bytes(6), levels=bytes(6), cut=None): # a recording an octave
    body = b""
    for i, wave in enumerate(waves):
        data = (wave * 32767).astype("<i2").tobytes() if mode & 1 else (wave * 127).astype("i1").tobytes(); hz = round(root(i) * 1000)
        body += bytes(8) + np.array([len(data), 0, len(data)], "<u4").tobytes() + np.uint16(RATE).tobytes() + np.array([hz // 2 + 1, hz, hz], "<u4").tobytes()
        body += bytes(3) + rates + levels + bytes(6) + bytes([mode]) + bytes(40) + data
    path.write_bytes((b"GF1PATCH110\0".ljust(198, b"\0") + bytes([len(waves)]) + bytes(40) + body)[:cut]); return path


def cycles(hz, n): return np.sin(2 * np.pi * np.arange(round(n * RATE / hz)) * hz / RATE) * 0.9


@pytest.mark.parametrize("mode", [1 | 4 | 32, 4 | 32, 1 | 4 | 8 | 32, 1])
def test_patches_are_in_tune(tmp_path, mode):
    loops = mode & 4; recordings = read_patch(patch(tmp_path / "000_A.pat", [cycles(220 * 2 ** i, 10 if loops and not mode & 8 else 1000) for i in range(3)], mode=mode))
    for hz in (150.0, 220.0, 300.0, 700.0, 1500.0):
        x = play_patch(recordings, hz, hold_s=1.0, velocity=1.0, sample_rate=RATE)[:RATE // 2]
        assert abs(torch.fft.rfft(x * torch.hann_window(len(x), dtype=x.dtype)).abs().argmax().item() * RATE / len(x) - hz) < 4 and 0.5 < x.abs().max() < 0.95


def test_patch_rates_agree(tmp_path):
    "The same note at another rate is the same sound."
    recordings = read_patch(patch(tmp_path / "000_A.pat", [cycles(220, 10)]))
    slow, fast = (play_patch(recordings, 330, hold_s=0.5, velocity=0.7, sample_rate=rate) for rate in (22050, 44100))
    assert (slow[:10000] - fast[::2][:10000]).abs().max() < 0.01


def test_envelopes(tmp_path):
    one = lambda **kw: read_patch(patch(tmp_path / f"{len(list(tmp_path.iterdir()))}.pat", [np.ones(200)], **kw))[0]
    slow = (2 << 6) | 32 # a ramp of 255·2¹³/(32·8)/44100 = 0.185 s over the whole range
    rises = envelope(one(mode=1 | 4 | 32 | 64, rates=bytes([slow, 63, 63, 63, 63, 63]), levels=bytes([255, 255, 255, 0, 0, 0])), RATE, RATE // 2, RATE)
    assert (np.diff(rises[:8000]) >= 0).all() and rises[9000] == 1 == rises[RATE // 2 - 1] and rises[-1] < 1e-9 and 0 < rises[4000] < 0.5
    decays = envelope(one(mode=1 | 4 | 64, rates=bytes([63, slow, 63, 63, 63, 63]), levels=bytes([255, 0, 0, 0, 0, 0])), RATE, RATE, RATE)
    assert decays[9000] < 1e-9 # it does not wait for the key
    plain = envelope(one(mode=1 | 4), RATE, 4410, RATE); assert plain[4000] == 1 and plain[-1] == 0


def test_patches_play_parts(tmp_path):
    patch(tmp_path / "032_Bass.pat", [cycles(55, 10)], root=lambda i: 55.0); patches = Patches(tmp_path, (0,))
    play = lambda p, seed=0: render_part(p, patches, seconds=1.0, generator=gen(seed))
    bass = part(note(0.0, 33), note(0.5, 40), program=33); x = play(bass)
    assert torch.equal(x, play(bass)) and not torch.equal(x, play(bass, 1)) and x.shape == (2, RATE) and 50 <= torch.fft.rfft(x[0, :RATE // 5]).abs().argmax().item() * 5 <= 60
    for program in (0, 40, DRUMS):
        with pytest.raises(SepnbError, match=f"nothing like program {program}"): play(part(note(0, 40), program=program))


@pytest.mark.parametrize("cut, message", [(0, "not a Gravis patch"), (150, "not a Gravis patch"), (260, "damaged"), (-1, "damaged"), (None, "cannot read")])
def test_broken_patches(tmp_path, cut, message):
    path = tmp_path / "000_A.pat"
    if cut is not None: patch(path, [cycles(220, 3)], cut=cut)
    with pytest.raises(SepnbError, match=message) as e: read_patch(path)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- kits

def kit_hz(x): return torch.fft.rfft(x[0, :RATE // 10]).abs().argmax().item() * 10


def test_kit_plays_the_right_drum(folder):
    kit = read_kit(folder)
    for key, soft in ((36, 100), (38, 200), (40, 200), (42, 300), (46, 400), (41, 500), (50, 500), (49, 600), (51, 600), (37, 200), (56, 200), (54, 300)):
        for velocity, factor in ((40, 1), (110, 2)):
            x = render_kit((note(0, key, velocity),), kit, seconds=0.2, generator=gen()); assert kit_hz(x) == soft * factor, (key, velocity)
            assert abs(x.abs().max() - 0.25 * (velocity / 127) ** 1.3) < 0.1 * x.abs().max() # half-scale recordings at half volume


def test_hats_choke(folder):
    kit = read_kit(folder); play = lambda *n: render_kit(n, kit, seconds=1, generator=gen())
    rings, stopped = play(note(0, 46)), play(note(0, 46), note(0.3, 44, 1))
    assert rms(rings[:, RATE // 2:]) > 0.05 and rms(stopped[:, RATE // 2:]) < 0.001 and torch.equal(rings[:, :13000], stopped[:, :13000])
    both = play(note(0, 49), note(0.3, 42)); assert rms(both[:, RATE // 2:]) > 0.05 # a cymbal rings on


@given(velocity=st.floats(0, 1), edges=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_layers(velocity, edges):
    drum = Instrument("x", (1, 1), tuple(Layer(None, min(e), max(e)) for e in edges))
    chosen = choose_layer(drum, velocity); gap = lambda x: max(x.low - velocity, velocity - x.high, 0)
    assert gap(chosen) == min(map(gap, drum.layers))


def test_a_song_may_vary_its_drums(folder):
    kit = read_kit(folder, vary=True); kick, snare = kit.hits["kick"][0], kit.hits["snare"][0]
    kit = replace(kit, hits=kit.hits | {"kick": (kick, snare)})
    found = {kit_hz(render_kit((note(0, 36, 40), note(0.1, 36, 40)), kit, seconds=0.1, generator=gen(s))) for s in range(12)}
    assert found == {100, 200} and {kit_hz(render_kit((note(0, 36, 40),), replace(kit, vary=False), seconds=0.1, generator=gen(s))) for s in range(6)} == {100}


XML = "<drumkit_info xmlns='http://x'><instrumentList>{}</instrumentList></drumkit_info>"


@pytest.mark.parametrize("text, message", [(None, "no drum kit in"), ("<drumkit", "no drum kit in"), (XML.format(""), "has no 'kick'"),
    (XML.format("".join(f"<instrument><name>{n}</name><layer><filename>{n}.wav</filename></layer></instrument>" for n in ("Kick", "Snare", "Hat"))), "lacks Kick.wav"),
    (XML.format("<instrument><name>Kick</name><layer><filename>../../secret.wav</filename></layer></instrument>"), "has no 'kick'")])
def test_broken_kits(tmp_path, text, message):
    if text: (tmp_path / "drumkit.xml").write_text(text)
    with pytest.raises(SepnbError, match=message) as e: read_kit(tmp_path)
    assert "\n" not in str(e.value)


def test_old_kits(tmp_path):
    "The oldest have a file an instrument; numbers may be missing; another rate, mono."
    for n in ("Kick", "Snare", "Hat"): save_audio(tmp_path / f"{n}.flac", 0.5 * torch.sin(torch.arange(22050) * 2 * torch.pi * 441 / 22050)[None], 22050)
    (tmp_path / "drumkit.xml").write_text(XML.format("".join(f"<instrument><name>{n}</name><filename>{n}.flac</filename><pan_L>0.25</pan_L></instrument>" for n in ("Kick", "Snare", "Hat"))))
    x = render_kit((note(0, 36, 127),), read_kit(tmp_path), seconds=0.5, generator=gen())
    assert kit_hz(x) == 440 and torch.allclose(x[0], x[1] / 4, atol=1e-5)


def test_kit_cannot_play_a_melody(folder):
    with pytest.raises(SepnbError, match="'p' is not of drums .* give it a SoundFont"): render_part(part(note(0, 60)), read_kit(folder), seconds=1, generator=gen())


def test_unreadable_recording(folder, tmp_path):
    kit = read_kit(folder); broken = tmp_path / "x.wav"; broken.write_text("RIFF"); drum = replace(kit.hits["kick"][0], layers=(Layer(broken, 0, 1),))
    with pytest.raises(SepnbError, match="x.wav"): render_kit((note(0, 36),), replace(kit, hits=kit.hits | {"kick": (drum,)}), seconds=1, generator=gen())


@pytest.mark.parametrize("name, role", [("Hi-Hat Semiopen (Paiste 14)", "open"), ("Pearl Side Stick", "rim"), ("Kick Stomp", "kick"), ("Ride (Custom, Zagrebin)", "ride"), ("Bongo Hi", "conga"),
    ("Pearl Tom Floor", "tom_low"), ("Snare Roll", ""), ("Zildjian Splash Choke", ""), ("Tambourine Pedal", "tambourine"), ("d4 - high tom", "tom_high"), ("BD_08", "kick"), ("17", "")])
def test_names(name, role): assert name_role(name) == role


# ---------------------------------------------------------------- relatives, and the real ones

def test_relatives():
    assert origins([]) == frozenset() and origins(["timgm", "builtin"]) == {"gs bank", "builtin"}
    for name, k in PLAYERS.items(): assert k.origins and k.licence and (k.asset or k.kind == "builtin") and known(name) is k
    with pytest.raises(SepnbError, match="unknown player 'kazoo'; choose from builtin"): open_player("kazoo")
    assert open_player("builtin") is None


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 99), gain=st.sampled_from([1e-4, -1.0, 1e2]), late=st.integers(0, 3000))
def test_likeness(seed, gain, late):
    a, b = torch.randn(2, 9000, generator=gen(seed)).mul(torch.exp(-torch.arange(9000) / 1500))
    assert likeness(a, torch.cat([torch.zeros(late), gain * a])) > 0.95 and likeness(a, b) < 0.5 and likeness(a, a[:0]) == 0


def cached(name):
    if not is_cached(PLAYERS[name].asset) and not os.environ.get("SEPNB_FETCH"): pytest.skip(f"{PLAYERS[name].asset} is not in the cache; set SEPNB_FETCH=1 to fetch it")
    return open_player(name)


@needs_tsf
@pytest.mark.parametrize("name", [n for n, k in PLAYERS.items() if k.asset])
def test_real_players(name):
    font, plays = cached(name), PLAYERS[name].plays
    music = part(*(note(0.25 * i, 40 + i, 90) for i in range(8)), program=33) if plays == "pitched" else BEAT
    x = render_part(music, font, seconds=2.5, generator=gen(1))
    assert rms(x) > 0.003 and x.isfinite().all() and torch.equal(x, render_part(music, font, seconds=2.5, generator=gen(1)))
    if plays != "drums":
        for program in range(0, 128, 5): assert rms(render_part(part(note(0, 55, 100, 0.5), program=program), font, seconds=0.6, generator=gen())) > 1e-4, program


@needs_tsf
def test_a_font_is_played_faster_than_real_time(folder):
    notes = part(*(note(i / 8, 60 + i % 5, 90) for i in range(160))); begun = time.process_time()
    render_part(notes, folder / "sine.sf2", seconds=20, generator=gen())
    assert time.process_time() - begun < 10
