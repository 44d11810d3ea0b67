"""The stem player in a real browser: what sounds is measured in the audio graph, not believed."""
import pytest
import torch

from sepnb.audio import save_audio
from sepnb.player import player_html
from sepnb.synth import chirp, times

RATE, SECONDS = 44100, 8.0
FROM, TO = 500.0, 8500.0 # Hz: a glide whose pitch tells the time
HZ = {("truth", "high"): 3000.0, ("truth", "low"): 300.0, ("model", "high"): 5000.0, ("model", "low"): 600.0}
TAP = """() => { const d = player.deck, a = d.context.createAnalyser(); a.fftSize = 4096; a.smoothingTimeConstant = 0; d.out.connect(a);
  window.heard = () => { const x = new Float32Array(a.frequencyBinCount), hz = i => i * d.made.sampleRate / a.fftSize, place = d.paused ? d.at : d.place; a.getFloatFrequencyData(x);
    const peaks = []; let top = x.indexOf(Math.max(...x)); for (let i = 2; i < x.length - 2; i++) if (x[i] > -60 && x[i] > x[top] - 30 && x[i] >= Math.max(x[i-1], x[i-2], x[i+1], x[i+2])) peaks.push(hz(i));
    return { level: x[top], hz: hz(top), peaks, time: d.currentTime, place, latency: d.made.outputLatency || 0 } } }"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, t = tmp_path_factory.mktemp("sounds"), times(SECONDS, RATE)
    made = {"glide": {"mixture": folder / "glide.mp3"}}
    save_audio(made["glide"]["mixture"], 0.5 * chirp(FROM, TO, seconds=SECONDS, sample_rate=RATE).expand(2, -1), RATE)
    for (system, stem), hz in HZ.items():
        made.setdefault(system, {})[stem] = folder / f"{system}-{stem}.flac"
        save_audio(made[system][stem], (0.3 * torch.sin(2 * torch.pi * hz * t)).float().expand(2, -1), RATE)
    return made


@pytest.fixture
def player(files, tmp_path, visit):
    def opened(**how):
        path = tmp_path / "player.html"
        path.write_text(player_html(files, title="Two tones and a glide", note="made for this test", links={"model": "evaluate-model.html"}), encoding="utf-8")
        return visit(path, **how)
    return opened


def start(page):
    page.click("#play")
    page.wait_for_function("!player.deck.paused && player.deck.made.currentTime > player.deck.since + 0.2")
    page.evaluate(TAP)
    page.wait_for_timeout(200)


def settle(page, *expected):
    "Wait until exactly these frequencies sound; fail with what sounds instead."
    for _ in range(30):
        page.wait_for_timeout(50)
        heard = page.evaluate("heard()")
        rounded = sorted({round(hz / 50) * 50 for hz in heard["peaks"]})
        if len(rounded) == len(expected) and all(abs(a - b) <= 50 for a, b in zip(rounded, sorted(expected))):
            return heard
    raise AssertionError(f"want {sorted(expected)} Hz, hear {rounded}")


def test_nothing_sounds_and_all_is_drawn_before_play(player):
    page = player()
    assert page.evaluate("player.deck.paused && !player.deck.made")
    assert page.locator(".lane:visible").count() == 1 and page.locator("#time").inner_text() == f"0:00.0 / 0:0{SECONDS}"
    page.wait_for_function("player.lanes.mixture.wave.getDecodedData()")
    assert page.evaluate("player.lanes.mixture.wave.getDecodedData().duration") == pytest.approx(SECONDS, abs=0.1)
    assert page.evaluate("document.querySelector('.lane img').naturalWidth") == 720


def glide_agrees(page):
    # what sounds now says its own time by its pitch; clock, slider, playhead and waveform must say the same
    heard = page.evaluate("""() => { const h = heard(), s = document.querySelector('.lane:not([hidden]) .screen').getBoundingClientRect(), p = document.querySelector('.lane:not([hidden]) .playhead').getBoundingClientRect();
      return { ...h, playhead: (p.left + p.width / 2 - s.left) / s.width * player.deck.duration, slider: +document.querySelector('#seek').value, wave: player.lanes.mixture.wave.getCurrentTime() } }""")
    sound = (heard["hz"] - FROM) / (TO - FROM) * SECONDS + 4096 / RATE / 2 # the spectrum looks back half its window
    assert sound == pytest.approx(heard["place"], abs=0.08), heard
    for name in ("playhead", "slider", "wave"):
        assert heard[name] == pytest.approx(heard["place"] - heard["latency"], abs=0.08), (name, heard)
    return heard["place"]


def test_sound_clock_and_playhead_agree_while_playing_and_after_seeking(player):
    page = player()
    start(page)
    first = glide_agrees(page)
    page.wait_for_timeout(700)
    assert glide_agrees(page) > first + 0.5
    page.evaluate("const s = document.querySelector('#seek'); s.value = 5; s.dispatchEvent(new Event('input'))")
    page.wait_for_timeout(250)
    assert 5.0 < glide_agrees(page) < 6.5
    box = page.locator(".lane:visible img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.wait_for_timeout(250)
    assert 2.0 < glide_agrees(page) < 3.5
    box = page.locator(".lane:visible .wave").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.wait_for_timeout(250)
    assert 4.0 < glide_agrees(page) < 5.5


def test_pause_holds_and_goes_on_from_there(player):
    page = player()
    start(page)
    page.keyboard.press("x") # focus is on the Play button: keys work all the same
    page.keyboard.press("x")
    page.click("#play")
    page.wait_for_timeout(150)
    held = page.evaluate("player.deck.currentTime")
    page.wait_for_timeout(300)
    assert page.evaluate("player.deck.currentTime") == held > 0 and page.evaluate("heard().level") < -80
    page.click("#play")
    page.wait_for_timeout(300)
    assert held < page.evaluate("player.deck.currentTime") < held + 1.5
    glide_agrees(page)


def test_solo_mute_and_switching_do_what_they_say(player):
    page = player()
    page.click("#slotA")
    page.check("input[value=truth]")
    start(page)
    settle(page, 300, 3000)
    page.click(".lane[data-stem=low] .solo")
    settle(page, 300)
    page.click("#slotB")
    page.check("input[value=model]") # solo stays: like is compared with like
    settle(page, 600)
    before = page.evaluate("player.deck.place")
    page.keyboard.press("x")
    settle(page, 300)
    page.keyboard.press("x")
    after = settle(page, 600)["place"]
    assert before < after < before + 4 # it went on, it did not begin anew
    page.click(".lane[data-stem=low] .solo")
    page.click(".lane[data-stem=low] .mute")
    settle(page, 5000)
    page.keyboard.press("Shift+Digit2") # Shift and the stem's number: the same as the button
    settle(page, 600, 5000)
    page.keyboard.press("Digit1")
    settle(page, 5000)
    assert page.locator("#slotB").inner_text() == "B: model" and page.locator("#how").get_attribute("href") == "evaluate-model.html"
    assert page.locator(".lane[data-stem=high] img").get_attribute("alt") == "Spectrogram: high, model"


def test_tracks_of_a_system_start_at_the_same_sample(player):
    page = player()
    page.check("input[value=truth]")
    page.evaluate("() => { window.starts = []; const s = AudioBufferSourceNode.prototype.start; AudioBufferSourceNode.prototype.start = function (...a) { starts.push(a); return s.apply(this, a) } }")
    start(page)
    page.keyboard.press("x")
    page.wait_for_timeout(200)
    page.check("input[value=model]")
    page.wait_for_function("starts.length >= 4")
    together = page.evaluate("starts.map(([when, offset]) => when - offset)") # when the excerpt's first sample would have sounded
    assert max(together) - min(together) < 0.5 / RATE


def test_the_end_stops_or_repeats(player):
    page = player()
    start(page)
    page.evaluate("player.deck.currentTime = player.deck.duration - 0.3")
    page.wait_for_function("player.deck.ended && player.deck.paused", timeout=3000)
    assert page.locator("#play").inner_text() == "Play"
    page.keyboard.press("l")
    page.click("#play")
    page.wait_for_function("!player.deck.paused")
    page.evaluate("player.deck.currentTime = player.deck.duration - 0.3")
    page.wait_for_function("!player.deck.paused && player.deck.currentTime > 0.1 && player.deck.currentTime < 2", timeout=3000)
    glide_agrees(page)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_is_accessible(player, serious, width, scheme):
    page = player(width=width, scheme=scheme)
    page.check("input[value=truth]")
    page.click(".lane[data-stem=low] .solo")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
