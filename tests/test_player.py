"""The parts of the player that need no browser; tests/browser plays it."""
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from sepnb.audio import save_audio
from sepnb.core import SepnbError
from sepnb.player import LOWEST_HZ, RANGE_DB, bands, peaks, picture, player_html
from sepnb.stft import STFT, magnitude
from sepnb.synth import tone


def loaded(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length", [1, 599, 600, 601, 44100])
@pytest.mark.parametrize("columns", [1, 600])
def test_peaks_are_those_of_the_whole_signal(channels, length, columns):
    x = torch.rand(channels, length, generator=torch.Generator().manual_seed(length)) - 0.5
    up, down = peaks(x, columns=columns)
    assert len(up) == len(down) == columns and min(up + down) >= 0
    assert max(up) == pytest.approx(max(float(x.max()), 0), abs=0.006) and max(down) == pytest.approx(max(-float(x.min()), 0), abs=0.006)


def test_peaks_lie_where_the_signal_has_them():
    x = torch.zeros(1, 1000)
    x[0, 250], x[0, 750] = 0.5, -1.0
    up, down = peaks(x, columns=10)
    assert up == [0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0] and down == [0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0]


@pytest.mark.parametrize("hz", [60.0, 440.0, 5000.0, 15000.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_a_tone_is_in_its_band_at_any_level(hz, scale):
    rate, rows = 44100, 112
    power = bands(magnitude(STFT(2048, 512)(scale * tone(hz, seconds=0.5, sample_rate=rate)[None].float())), sample_rate=rate)
    edges = np.geomspace(LOWEST_HZ, rate / 2, rows + 1)
    column = power[:, 360]
    row = rows - 1 - int(np.median(np.flatnonzero(column == column.max()))) # below 200 Hz rows share a bin
    bin_hz = rate / 2048
    assert edges[row] - bin_hz <= hz <= edges[row + 1] + bin_hz
    shown = plt.imread(io.BytesIO(picture(power, loudest=power.max())))
    assert shown.shape[:2] == (rows, 720) and shown[rows - 1 - row, 360, :3].sum() > 2 # bright there


def test_silence_and_the_range_of_the_picture():
    silent = picture(np.zeros((112, 720)), loudest=1e-12)
    assert np.ptp(plt.imread(io.BytesIO(silent))[..., :3].reshape(-1, 3), axis=0).max() == 0
    steps = picture(10 ** (-np.arange(0, RANGE_DB + 20, 10.0) / 10)[None], loudest=1.0)
    light = plt.imread(io.BytesIO(steps))[0, :, :3].sum(-1)
    assert (np.diff(light[:7]) < 0).all() and light[-1] == light[-2] # what is below the range is black


def test_a_page_survives_names_from_the_wild(tmp_path):
    x = 0.1 * torch.randn(1, 22050, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    save_audio(tmp_path / "a.flac", x, 22050)
    odd = '</script><b>"drums" & \'bass\''
    page = player_html({odd: {odd: tmp_path / "a.flac"}}, title=odd, note=odd, links={odd: 'x".html', "nobody": "y.html"})
    assert loaded(page)["systems"].keys() == {odd} and loaded(page)["links"] == {odd: 'x".html'}
    assert "<b>" not in page.replace(json.dumps(odd).replace("</", "<\\/"), "")
    assert page.count("</script>") == 3 and loaded(page)["start"] == {"A": odd, "B": odd}


def test_what_is_not_in_step_is_refused(tmp_path):
    for name, seconds, rate in (("a", 1, 8000), ("short", 0.5, 8000), ("fast", 1, 16000)):
        save_audio(tmp_path / f"{name}.wav", torch.zeros(2, int(seconds * rate)), rate)
    for bad in ("short", "fast"):
        with pytest.raises(SepnbError, match=f"{bad}.wav"):
            player_html({"x": {"y": tmp_path / "a.wav", "z": tmp_path / f"{bad}.wav"}})
    with pytest.raises(SepnbError, match="missing"):
        player_html({"x": {"y": tmp_path / "missing.wav"}})
    with pytest.raises(SepnbError, match="at least one"):
        player_html({"x": {}})
    assert loaded(player_html({"silence": {"y": tmp_path / "a.wav"}}))["loudest"] == 0.01


def test_the_limit_leaves_out_the_last_and_says_so(tmp_path):
    noise = 0.3 * torch.rand(2, 22050, generator=torch.Generator().manual_seed(0))
    save_audio(tmp_path / "a.flac", noise, 44100)
    tracks = {f"system{n}": {"x": tmp_path / "a.flac"} for n in range(6)}
    size = len(player_html(dict(list(tracks.items())[:1])))
    page = player_html(tracks, limit_mb=3.5 * size / 1e6)
    kept = list(loaded(page)["systems"])
    assert kept == [f"system{n}" for n in range(len(kept))] and 2 <= len(kept) < 6 and len(page) <= 3.5 * size
    assert "system5" in page.split("Left out")[1].split("</p>")[0] and "Left out" not in player_html(tracks, limit_mb=100)
    assert len(loaded(player_html(tracks, limit_mb=0.001))["systems"]) == 1 # one is always there


def test_the_library_is_the_published_one():
    from pathlib import Path
    root = Path(__file__).parents[1]
    theirs = root / "tests/browser/node_modules/wavesurfer.js/dist/wavesurfer.min.js"
    if not theirs.is_file():
        pytest.skip("wavesurfer.js was not fetched by npm (make test does where npm is installed)")
    assert theirs.read_bytes() == (root / "sepnb/static/wavesurfer.min.js").read_bytes()
