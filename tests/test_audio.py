"""Sound files: exact round trips, excerpts, rates, damage, full disks, and the same answer by two readers."""
import importlib.util
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import soundfile
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from sepnb import audio
from sepnb.audio import AudioInfo, audio_info, load_audio, load_stem_mp4, match_channels, resample, save_audio
from sepnb.blocks import check_writable, read_blocks, resample_blocks, save_blocks
from sepnb.core import SepnbError
from sepnb.synth import chirp, tone, toy_sources

RATES = [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000]
quick = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
signals = st.tuples(st.integers(1, 8), st.integers(1, 5000), st.integers(0, 2**31)) # channels, length, seed


def uniform(channels, length, seed=0, dtype=torch.float32):
    return torch.rand(channels, length, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def on_grid(x, bits=16): return (x * 2 ** (bits - 1)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) / 2 ** (bits - 1)


def refusal(call, *args, **kwargs):
    "The one line of the error that a call must raise."
    with pytest.raises(SepnbError) as caught: call(*args, **kwargs)
    line = str(caught.value)
    assert "\n" not in line and line.strip() == line
    return line


def stempeg_file():
    spec = importlib.util.find_spec("stempeg") # not imported: it raises where ffmpeg is missing
    found = sorted(Path(spec.origin).parent.glob("data/*.stem.mp4")) if spec else []
    return found[0] if found else pytest.skip("the stempeg package with its example file is not installed")


def write_with_av(path, x, rate, codec, *, format=None, options={}, container_options={}):
    "Encode `(c, t)` with libav."
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=format, options=container_options) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo" if len(x) == 2 else "mono", options=options)
        resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate, frame_size=stream.frame_size or 1152)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.numpy()), format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for part in (*resampler.resample(frame), *resampler.resample(None)): file.mux(stream.encode(part))
        file.mux(stream.encode(None))


# ---- round trips

@quick
@given(signals, st.sampled_from(RATES), st.sampled_from([("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.flac", "PCM_16"), ("a.flac", "PCM_24")]))
def test_integers_stay_within_half_a_step(tmp_path, signal, rate, how):
    (name, subtype), x = how, uniform(*signal)
    save_audio(tmp_path / name, x, rate, subtype=subtype, overwrite=True)
    y, got = load_audio(tmp_path / name)
    full = 2 ** (int(subtype[-2:]) - 1)
    below = x.clamp(max=(full - 1) / full) # +1 itself is one step above the largest integer
    assert got == rate and y.shape == x.shape and y.dtype == torch.float32
    assert (y - below).abs().max() <= 0.5 / full
    assert audio_info(tmp_path / name) == AudioInfo(rate, *x.shape)


@quick
@given(signals, st.integers(1, 400000), st.sampled_from([1e-4, 1.0, 1e2]))
def test_float_wav_is_exact_at_any_rate_and_scale(tmp_path, signal, rate, scale):
    x = uniform(*signal) * scale
    save_audio(tmp_path / "a.wav", x, rate, subtype="FLOAT", overwrite=True)
    y, got = load_audio(tmp_path / "a.wav")
    assert got == rate and torch.equal(x, y)


@quick
@given(signals, st.sampled_from(RATES), st.sampled_from(["a.wav", "a.flac"]))
def test_sixteen_bits_are_exact(tmp_path, signal, rate, name):
    x = on_grid(uniform(*signal))
    save_audio(tmp_path / name, x, rate, overwrite=True)
    assert torch.equal(load_audio(tmp_path / name)[0], x)


def test_all_65536_values_survive_and_other_readers_agree(tmp_path):
    pcm = np.arange(-32768, 32768, dtype=np.int16)
    for name in ("a.wav", "a.flac"):
        save_audio(tmp_path / name, torch.from_numpy(pcm / np.float32(32768))[None], 44100)
        assert np.array_equal(soundfile.read(tmp_path / name, dtype="int16")[0], pcm)
    assert np.array_equal(scipy.io.wavfile.read(tmp_path / "a.wav")[1], pcm)
    x = uniform(3, 1001) * 3
    save_audio(tmp_path / "f.wav", x, 48000, subtype="FLOAT")
    with pytest.warns(scipy.io.wavfile.WavFileWarning, match="not understood"): rate, y = scipy.io.wavfile.read(tmp_path / "f.wav") # the PEAK chunk
    assert rate == 48000 and np.array_equal(y.T, x.numpy())


@pytest.mark.parametrize("suffix,rate", [(".mp3", 44100), (".mp3", 8000), (".ogg", 44100), (".ogg", 192000)])
@pytest.mark.parametrize("channels,samples", [(1, 1), (2, 1151), (2, 30001)])
def test_lossy_formats_keep_rate_channels_and_length(tmp_path, suffix, rate, channels, samples):
    x = 0.5 * torch.sin(torch.arange(samples) * 0.05).repeat(channels, 1)
    save_audio(tmp_path / f"a{suffix}", x, rate)
    y, got = load_audio(tmp_path / f"a{suffix}")
    assert (got, y.shape) == (rate, x.shape) and audio_info(tmp_path / f"a{suffix}") == AudioInfo(rate, *x.shape)
    if samples > 20000: assert (y - x).square().mean() < 1e-2 * x.square().mean() # no shift in time either


def test_equal_samples_make_equal_files(tmp_path):
    x = uniform(2, 3000)
    for name, subtype in (("a.wav", "FLOAT"), ("a.wav", "PCM_24"), ("a.flac", "PCM_16"), ("a.mp3", "PCM_16")):
        for copy in "12": save_audio(tmp_path / copy / name, x, 44100, subtype=subtype, overwrite=True)
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    save_audio(tmp_path / "f.wav", x, 44100, subtype="FLOAT")
    head = (tmp_path / "f.wav").read_bytes()[:200]
    assert head[head.index(b"PEAK") + 12:][:4] == bytes(4) # no time of day in it


def test_input_of_any_make_is_taken_and_left_alone(tmp_path):
    base = on_grid(uniform(2, 999) * 0.5)
    odd = torch.stack([base, base], -1)[..., 0] # not contiguous
    for k, x in enumerate((base.double(), odd, base.clone().requires_grad_(), base.numpy())):
        save_audio(tmp_path / f"{k}.wav", x, np.int64(16000))
        assert torch.equal(load_audio(tmp_path / f"{k}.wav")[0], base)
    loud = base * 4; before = loud.clone()
    save_audio(tmp_path / "loud.wav", loud, 16000, clip="rescale"); save_audio(tmp_path / "cut.wav", loud, 16000, clip="clamp")
    assert torch.equal(loud, before)


def test_beyond_full_scale(tmp_path):
    x = tone(100, amplitude=1.25)[None]
    for name in ("a.wav", "a.flac", "a.mp3", "a.ogg"):
        line = refusal(save_audio, tmp_path / name, x, 16000)
        assert name in line and "1.25" in line and not list(tmp_path.iterdir())
    save_audio(tmp_path / "f.wav", x, 16000, subtype="FLOAT"); assert torch.equal(load_audio(tmp_path / "f.wav")[0], x)
    save_audio(tmp_path / "r.wav", x, 16000, clip="rescale"); save_audio(tmp_path / "c.wav", x, 16000, clip="clamp")
    rescaled, clamped = load_audio(tmp_path / "r.wav")[0], load_audio(tmp_path / "c.wav")[0]
    assert (rescaled - x / x.abs().max()).abs().max() <= 1 / 32768 and (clamped - x.clamp(-1, 1)).abs().max() <= 1 / 32768
    save_audio(tmp_path / "one.wav", torch.tensor([[1.0, -1.0]]), 16000) # exactly full scale is fine
    assert "clip" in refusal(save_audio, tmp_path / "x.wav", x, 16000, clip="soft")


# ---- reading what others wrote

@pytest.mark.parametrize("name,kind,subtype,step", [
    ("a.wav", "WAV", "DOUBLE", 1e-7), ("a.wav", "WAV", "PCM_24", 2**-23), ("a.wav", "WAV", "PCM_32", 1e-7), ("a.wav", "WAV", "PCM_U8", 2**-6),
    ("a.wav", "WAVEX", "PCM_16", 2**-14), ("a.wav", "RF64", "PCM_16", 2**-14), ("a.aiff", "AIFF", "PCM_16", 2**-14), ("a.caf", "CAF", "FLOAT", 0),
    ("a.flac", "FLAC", "PCM_24", 2**-22), ("A.WAV", "WAV", "FLOAT", 0)])
@pytest.mark.parametrize("channels,samples,rate", [(1, 1, 8000), (2, 4411, 44100), (8, 333, 192000)])
def test_unusual_but_valid(tmp_path, name, kind, subtype, step, channels, samples, rate):
    x = uniform(channels, samples) * 0.9
    soundfile.write(tmp_path / name, x.T.numpy(), rate, format=kind, subtype=subtype)
    y, got = load_audio(tmp_path / name)
    assert got == rate and y.shape == x.shape and y.dtype == torch.float32 and (x - y).abs().max() <= step
    assert audio_info(tmp_path / name) == AudioInfo(rate, channels, samples)


def test_opus(tmp_path):
    x = tone(440, sample_rate=48000)[None]
    soundfile.write(tmp_path / "a.opus", x.T.numpy(), 48000, format="OGG", subtype="OPUS")
    y, rate = load_audio(tmp_path / "a.opus")
    assert rate == 48000 and y.shape == x.shape and (y - x).square().mean() < 1e-2 * x.square().mean()


@quick
@given(st.integers(0, 29999), st.integers(1, 40000), st.sampled_from(["a.wav", "a.flac", "a.mp3", "a.ogg", "a.m4a"]))
def test_an_excerpt_is_a_slice(tmp_path, start, length, name):
    rate, path = 16000, tmp_path / name
    if not path.exists():
        x = toy_sources(torch.Generator().manual_seed(0), seconds=30000 / rate).sum(0) / 2
        if name == "a.m4a": write_with_av(path, x, rate, "alac")
        else: save_audio(path, x, rate)
    whole, _ = load_audio(path)
    part, _ = load_audio(path, start_s=start / rate, duration_s=length / rate)
    assert part.shape == (2, min(length, 30000 - start)) and torch.equal(part, whole[:, start:start + length])


@pytest.mark.parametrize("name,codec,options", [("a.mp3", "libmp3lame", dict(b="32k")), ("a.ogg", "vorbis", {}), ("a.opus", "libopus", {}), ("a.m4a", "aac", {})])
def test_an_excerpt_is_a_slice_where_seeking_would_fail(tmp_path, name, codec, options):
    song = toy_sources(torch.Generator().manual_seed(0), seconds=12, sample_rate=48000).sum(0) / 2
    song[:, 200000:300000] *= 1e-3; song[:, 400000:450000] = 0 # bit rates that change
    if codec == "vorbis": save_audio(tmp_path / name, song, 48000)
    else:
        try: write_with_av(tmp_path / name, song, 48000, codec, options=options)
        except Exception as e: pytest.skip(f"this PyAV cannot write {name}: {e}")
    whole, _ = load_audio(tmp_path / name)
    for start in range(7777, 560000, 36000):
        part, _ = load_audio(tmp_path / name, start_s=start / 48000, duration_s=1 / 24)
        assert torch.equal(part, whole[:, start:start + 2000])


def test_an_excerpt_costs_no_more_than_itself(tmp_path):
    path = tmp_path / "long.wav" # 1.4 GB, nearly all of it a hole
    size = 4 * 44100 * 8000
    with open(path, "wb") as f:
        f.write(b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 2, 44100, 176400, 4, 16) + b"data" + struct.pack("<I", size))
        f.truncate(44 + size); f.seek(44 + 4 * 44100 * 7000); f.write(struct.pack("<hh", 16384, -16384))
    x, _ = load_audio(path, start_s=7000, duration_s=0.5)
    assert x.shape == (2, 22050) and x[:, 0].tolist() == [0.5, -0.5] and not x[:, 1:].any() and audio_info(path).seconds == 8000


def test_rate_and_channels_on_loading(tmp_path):
    x = on_grid(toy_sources(torch.Generator().manual_seed(0), seconds=0.3).sum(0) / 2)
    save_audio(tmp_path / "a.wav", x, 16000)
    y, rate = load_audio(tmp_path / "a.wav", sample_rate=22050, channels=1)
    assert rate == 22050 and torch.equal(y, resample(x.mean(0, keepdim=True), 16000, 22050))
    assert load_audio(tmp_path / "a.wav", sample_rate=16000, channels=2)[1] == 16000
    assert "a.wav" in refusal(load_audio, tmp_path / "a.wav", channels=6)
    assert "a.wav" in refusal(load_audio, tmp_path / "a.wav", sample_rate=0)


def test_wav_with_other_chunks_and_placeholders(tmp_path):
    save_audio(tmp_path / "a.wav", on_grid(uniform(1, 100)), 8000); plain = (tmp_path / "a.wav").read_bytes()
    odd = plain[:12] + b"LIST" + struct.pack("<I", 5) + b"abcde\0" + plain[12:] # a chunk of odd size, padded
    (tmp_path / "odd.wav").write_bytes(odd)
    at = plain.index(b"data") + 4
    for k, size in enumerate((0xFFFFFFFF, 0x7FFFF000)): (tmp_path / f"pipe{k}.wav").write_bytes(plain[:at] + struct.pack("<I", size) + plain[at + 4:])
    for name in ("odd.wav", "pipe0.wav", "pipe1.wav"): assert torch.equal(load_audio(tmp_path / name)[0], load_audio(tmp_path / "a.wav")[0])
    (tmp_path / "oddcut.wav").write_bytes(odd[:-1])
    assert "truncated: 1 bytes" in refusal(audio_info, tmp_path / "oddcut.wav")


def test_flac_of_unknown_length(tmp_path):
    pytest.importorskip("av")
    x = on_grid(uniform(2, 20000)); save_audio(tmp_path / "a.flac", x, 44100)
    raw = bytearray((tmp_path / "a.flac").read_bytes()); raw[21] &= 0xF0; raw[22:26] = bytes(4); (tmp_path / "pipe.flac").write_bytes(raw)
    assert audio_info(tmp_path / "pipe.flac") == AudioInfo(44100, 2, 20000) and torch.equal(load_audio(tmp_path / "pipe.flac")[0], x)


def test_mp3_of_variable_rate_without_a_tag_is_read_to_its_end(tmp_path):
    x = 0.3 * uniform(2, 44100 * 6); x[:, :44100 * 3] = 0.3 * tone(440, seconds=3, sample_rate=44100)
    path = tmp_path / "vbr.mp3"
    try: write_with_av(path, x, 44100, "libmp3lame", options=dict(q="2"), container_options=dict(write_xing="0"))
    except Exception as e: pytest.skip(f"this PyAV cannot write MP3: {e}")
    if b"Xing" in path.read_bytes()[:4096] or b"Info" in path.read_bytes()[:4096]: pytest.skip("this PyAV wrote a tag")
    y, _ = load_audio(path)
    assert x.shape[1] <= y.shape[1] < x.shape[1] + 4 * 1152 and audio_info(path) == AudioInfo(44100, *y.shape)
    tail = y[:, 44100 * 5:44100 * 6]
    assert tail.square().mean() > 0.5 * x[:, 44100 * 5:].square().mean()
    assert torch.equal(load_audio(path, start_s=5, duration_s=0.5)[0], y[:, 44100 * 5:44100 * 5 + 22050])


# ---- libav: PyAV, the ffmpeg program, neither

@pytest.mark.parametrize("name,codec,format", [("a.m4a", "aac", None), ("a.mp4", "aac", None), ("a.aac", "aac", "adts"), ("a.mka", "flac", "matroska")])
def test_compressed_kinds(tmp_path, name, codec, format):
    x = torch.stack([tone(440, sample_rate=44100), tone(660, sample_rate=44100)])
    write_with_av(tmp_path / name, x, 44100, codec, format=format)
    y, rate = load_audio(tmp_path / name)
    assert rate == 44100 and audio_info(tmp_path / name) == AudioInfo(44100, *y.shape)
    assert 0 <= y.shape[1] - 44100 <= 3 * 1024
    peaks = torch.fft.rfft(y[:, :44100]).abs().argmax(-1)
    assert peaks.tolist() == [440, 660] and abs(float(y[:, 4000:40000].square().mean()) - 0.125) < 0.005


def test_stem_mp4_by_two_readers(monkeypatch):
    path = stempeg_file(); streams, rate = load_stem_mp4(path)
    assert streams.shape == (5, 2, 268288) and rate == 44100 and len(audio.STEM_MP4) == 5
    residual = streams[0] - streams[1:].sum(0) # the excerpt's mixture is only about the sum of its stems
    assert residual.square().mean() < 0.1 * streams[0].square().mean()
    assert streams.square().mean((1, 2)).min() > 1e-6 and streams.isfinite().all()
    assert torch.equal(load_audio(path)[0], streams[0]) and audio_info(path) == AudioInfo(44100, 2, 268288)
    for start, length in ((0, 0.1), (0.3, 0.2), (3.0, 1.0), (5.9, 9.0)):
        part, _ = load_stem_mp4(path, start_s=start, duration_s=length); at = round(start * rate)
        assert torch.equal(part, streams[:, :, at:at + round(length * rate)])
    if not shutil.which("ffmpeg"): pytest.skip("no ffmpeg program to compare with")
    monkeypatch.setitem(sys.modules, "av", None)
    again, again_rate = load_stem_mp4(path, start_s=2, duration_s=1)
    assert again_rate == rate and (again - streams[:, :, 2 * rate:3 * rate]).abs().max() < 1e-5


def test_without_pyav(tmp_path, monkeypatch):
    x = on_grid(uniform(2, 20000)); write_with_av(tmp_path / "a.m4a", x, 44100, "alac"); (tmp_path / "bad.m4a").write_bytes(bytes(range(256)) * 20)
    monkeypatch.setitem(sys.modules, "av", None)
    if shutil.which("ffmpeg"):
        assert torch.equal(load_audio(tmp_path / "a.m4a")[0], x) and audio_info(tmp_path / "a.m4a") == AudioInfo(44100, 2, 20000)
        assert torch.equal(load_audio(tmp_path / "a.m4a", start_s=0.25, duration_s=0.1)[0], x[:, 11025:15435])
        assert "bad.m4a" in refusal(load_audio, tmp_path / "bad.m4a") and "a.m4a ends" in refusal(load_audio, tmp_path / "a.m4a", start_s=9)
        assert "stream number 2" in refusal(load_stem_mp4, tmp_path / "a.m4a")
    monkeypatch.setenv("PATH", str(tmp_path))
    line = refusal(load_audio, tmp_path / "a.m4a")
    assert "a.m4a" in line and "pip install 'sepnb[mp4]'" in line and "ffmpeg" in line


def test_video_without_sound_and_odd_names(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10); stream.width = stream.height = 32; stream.pix_fmt = "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24"))); file.mux(stream.encode(None))
    assert "v.mp4 has no audio stream" in refusal(load_audio, tmp_path / "v.mp4")
    x = on_grid(uniform(2, 500))
    for name in ("a: b.m4a", "-x 100% ü.m4a", "-x 100% ü: b.wav"):
        write_with_av(tmp_path / "t.m4a", x, 8000, "alac")
        (tmp_path / "t.m4a").rename(tmp_path / name) if name.endswith("m4a") else save_audio(tmp_path / name, x, 8000)
        assert torch.equal(load_audio(tmp_path / name)[0], x)


# ---- what is refused

def test_bad_files(tmp_path):
    good = uniform(2, 20000) * 0.5
    for name in ("g.wav", "g.flac", "g.mp3"): save_audio(tmp_path / name, good, 44100)
    junk = bytes(range(256)) * 20
    cases = {"missing.wav": None, "folder.wav": "dir", "empty.wav": b"", "empty.mp3": b"", "text.wav": b"hello\n" * 99, "text.mp3": b"<html>404</html>",
             "text.m4a": b"hello", "junk.wav": junk, "junk.flac": junk, "junk.m4a": junk, "notes.xyz": junk}
    for name in ("g.wav", "g.flac"):
        raw = (tmp_path / name).read_bytes()
        for share in (0.02, 0.5, 0.99): cases[f"cut{share}{name}"] = raw[:int(len(raw) * share)]
    cases["header.wav"] = (tmp_path / "g.wav").read_bytes()[:44]
    cases["cut.mp3"] = (tmp_path / "g.mp3").read_bytes()[:-60]
    for name, content in cases.items():
        path = tmp_path / name
        if content == "dir": path.mkdir()
        elif content is not None: path.write_bytes(content)
        assert name in refusal(load_audio, path), name
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 44100)
    for call in (load_audio, audio_info): assert "none.wav holds 0 samples" in refusal(call, tmp_path / "none.wav")


def test_not_a_number(tmp_path):
    x = uniform(2, 1000); x[0, 5] = float("nan"); x[1, 7:9] = float("inf"); x[1, 20] = -float("inf")
    for subtype in ("FLOAT", "DOUBLE"):
        soundfile.write(tmp_path / "bad.wav", x.T.numpy(), 44100, subtype=subtype)
        line = refusal(load_audio, tmp_path / "bad.wav"); assert "bad.wav" in line and "4 of 2000" in line
    assert load_audio(tmp_path / "bad.wav", start_s=0.01)[0].isfinite().all() # a clean excerpt is clean
    for name, subtype in (("n.wav", "FLOAT"), ("n.wav", "PCM_16"), ("n.mp3", "PCM_16")):
        assert "4 of 2000" in refusal(save_audio, tmp_path / name, x, 44100, subtype=subtype) and not (tmp_path / name).exists()


def test_bad_requests(tmp_path):
    x = uniform(2, 100); save_audio(tmp_path / "a.wav", x, 44100)
    for how in (dict(start_s=-1), dict(start_s=float("nan")), dict(duration_s=0), dict(duration_s=-2), dict(start_s=1)):
        assert "a.wav" in refusal(load_audio, tmp_path / "a.wav", **how)
    assert "exists" in refusal(save_audio, tmp_path / "a.wav", x, 44100)
    before = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "file").touch(); (tmp_path / "dir.wav").mkdir()
    calls = [("b.aiff", x, 44100, {}), ("b", x, 44100, {}), ("b.wav", x[0], 44100, {}), ("b.wav", x[None], 44100, {}), ("b.wav", x[:, :0], 44100, {}),
             ("b.wav", (x * 100).short(), 44100, {}), ("b.wav", x, 44100, dict(subtype="PCM_8")), ("b.flac", x, 44100, dict(subtype="FLOAT")),
             ("b.flac", uniform(9, 10), 44100, {}), ("b.mp3", uniform(3, 10), 44100, {}), ("b.mp3", x, 96000, {}), ("b.mp3", x, 40000, {}),
             ("b.ogg", x, 384000, {}), ("b.flac", x, 700000, {}), ("b.wav", torch.zeros(1, 1).expand(2, 2**31), 44100, {}),
             ("file/b.wav", x, 44100, {}), ("dir.wav", x, 44100, dict(overwrite=True))]
    for name, signal, rate, how in calls: assert str(tmp_path / name) in refusal(save_audio, tmp_path / name, signal, rate, **how), name
    for rate in (0, -1, 44100.5, float("nan"), float("inf")): refusal(save_audio, tmp_path / "b.wav", x, rate)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "dir.wav", "file"] and (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write and read everywhere")
def test_forbidden(tmp_path):
    save_audio(tmp_path / "a.wav", uniform(1, 10), 8000); (tmp_path / "a.wav").chmod(0); tmp_path.chmod(0o500)
    try: assert "a.wav" in refusal(load_audio, tmp_path / "a.wav") and "b.wav" in refusal(save_audio, tmp_path / "b.wav", uniform(1, 10), 8000)
    finally: tmp_path.chmod(0o700)


# ---- a disk that fills up, a run that is killed

FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from sepnb.audio import save_audio, load_audio
from sepnb.core import SepnbError
torch.set_num_threads(1)
folder = Path(sys.argv[1]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
x = (0.1 * torch.randn(2, 30000, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.flac", "PCM_16"), ("d.flac", "PCM_24"), ("e.mp3", "PCM_16"), ("f.ogg", "PCM_16")):
    save_audio(folder / name, x, 44100, subtype=subtype); old = (folder / name).read_bytes()
    for size in (0, 10, len(old) // 2, len(old) - 1000, len(old) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        for overwrite, target in ((False, "new" + name), (True, name)):
            try: save_audio(folder / target, x, 44100, subtype=subtype, overwrite=overwrite)
            except SepnbError as e: assert target in str(e) and "File too large" in str(e) and "\\n" not in str(e), e
            else: sys.exit(f"{name} with room for {size} of {len(old)} bytes went unnoticed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (folder / name).read_bytes() == old and load_audio(folder / name)[0].shape == x.shape
assert len(list(folder.iterdir())) == 6, list(folder.iterdir())
song = (0.1 * torch.randn(2, 44100 * 40)).clamp(-1, 1)
save_audio(folder / "song.ogg", song, 44100); assert load_audio(folder / "song.ogg")[0].shape == song.shape # in one piece it would crash the encoder
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] or f"killed by signal {-done.returncode}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("kind,subtype", [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", None)])
def test_no_format_overlooks_a_full_device(kind, subtype):
    with pytest.raises(OSError, match="No space left"): audio._encode(Path("/dev/full"), [uniform(2, 30000)], 2, 44100, kind, subtype)


def test_a_killed_run_leaves_the_old_file(tmp_path, monkeypatch):
    x = on_grid(uniform(2, 200000)); save_audio(tmp_path / "a.wav", x, 44100); calls = []
    real = audio._as_stored
    def stop_at_third(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(audio, "_as_stored", stop_at_third)
    with pytest.raises(KeyboardInterrupt): save_audio(tmp_path / "a.wav", x * 0, 44100, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"] and torch.equal(load_audio(tmp_path / "a.wav")[0], x)


# ---- resampling

@quick
@given(st.integers(0, 3000), st.integers(1, 200000), st.integers(1, 200000), st.sampled_from([(), (1,), (2, 3)]))
def test_length_contract(t, from_hz, to_hz, lead):
    to_hz = max(1, min(to_hz, from_hz * 50)) # keep outputs small
    assert resample(torch.zeros(*lead, t), from_hz, to_hz).shape == (*lead, -(-t * to_hz // from_hz))


@pytest.mark.parametrize("from_hz,to_hz", [(44100, 16000), (16000, 44100), (44100, 48000), (192000, 44100), (8000, 44100), (44100, 22050), (44100, 44099)])
@pytest.mark.parametrize("dtype,scale", [(torch.float32, 1.0), (torch.float64, 1.0), (torch.float32, 1e-4), (torch.float32, 1e2)])
def test_tones_kept_in_place_and_killed(from_hz, to_hz, dtype, scale):
    nyquist = min(from_hz, to_hz) / 2
    at = lambda rate, hz: scale * torch.sin(2 * torch.pi * hz * torch.arange(rate // 2, dtype=torch.float64) / rate + 0.3)
    middle = slice(to_hz // 8, 3 * to_hz // 8)
    for share, most_db in ((0.01, -100), (0.3, -100), (0.8, -60)): # analytic: the same sine, sampled at the new rate
        y = resample(at(from_hz, share * nyquist).to(dtype), from_hz, to_hz)
        assert y.dtype == dtype
        error = (y.double()[:to_hz // 2] - at(to_hz, share * nyquist))[middle].square().mean() / (scale**2 / 2)
        assert 10 * torch.log10(error + 1e-30) < most_db
    for share in (1.02, 1.2, 1.9):
        if from_hz > to_hz and share * nyquist < from_hz / 2:
            y = resample(at(from_hz, share * nyquist).to(dtype), from_hz, to_hz)
            assert 10 * torch.log10(y[middle].double().square().mean() / (scale**2 / 2) + 1e-30) < -110


def test_round_trip_keeps_low_tones_and_instants():
    x = torch.stack([tone(60, sample_rate=44100), tone(440, sample_rate=44100), chirp(20, 5000, sample_rate=44100)])
    y = resample(resample(x, 44100, 16000), 16000, 44100); middle = slice(4000, -4000)
    assert y.shape == x.shape and ((y - x)[:, middle].square().mean(1) / x[:, middle].square().mean(1)).max() < 1e-8
    click = torch.zeros(44100); click[22050] = 1
    for rate in (16000, 22050, 48000, 96000): assert resample(click, 44100, rate).abs().argmax() == rate // 2


def test_resample_is_linear_per_row_and_pure():
    g = torch.Generator().manual_seed(0); x, y = torch.randn(2, 2, 3, 1501, generator=g, dtype=torch.float64); before = x.clone()
    both = resample(2 * x - y, 44100, 32000)
    assert (both - (2 * resample(x, 44100, 32000) - resample(y, 44100, 32000))).abs().max() < 1e-12
    rows = torch.stack([torch.stack([resample(row, 44100, 32000) for row in group]) for group in x])
    assert torch.equal(rows, resample(x, 44100, 32000)) and torch.equal(x, before)
    assert torch.equal(resample(x.transpose(0, 1), 44100, 32000), resample(x, 44100, 32000).transpose(0, 1))
    assert resample(x, 44100, 44100) is x and not resample(torch.zeros(2, 999), 44100, 8000).any()
    assert resample(x.half(), 44100, 32000).dtype == torch.float16
    for bad in ((0, 8000), (8000, -1), (8000.5, 8000), (float("nan"), 8000)): refusal(resample, x, *bad)
    assert "int16" in refusal(resample, torch.zeros(9, dtype=torch.int16), 8000, 16000)


# ---- channels

@quick
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 50), st.sampled_from([(), (2,), (2, 3)]))
def test_channels(have, want, t, lead):
    x = torch.rand(*lead, have, t)
    if have == want: assert match_channels(x, want) is x
    elif want == 1: assert torch.allclose(match_channels(x, 1), x.sum(-2, keepdim=True) / have, atol=1e-6)
    elif have == 1:
        y = match_channels(x, want)
        assert y.shape == (*lead, want, t) and torch.equal(y, x.expand(*lead, want, t))
        y.zero_(); assert x.any() or not x.numel() # copies, not views
    else:
        line = refusal(match_channels, x, want); assert str(have) in line and str(want) in line
    refusal(match_channels, x, 0)


# ---- in blocks: the same bits as the whole

@quick
@given(signals, st.sampled_from(RATES), st.sampled_from(RATES + [44101]), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 3000))
def test_resampling_in_blocks_is_resampling(signal, from_hz, to_hz, dtype, size):
    x = uniform(*signal, dtype=dtype)
    if x.shape[-1] / size > 500: return
    y = torch.cat(list(resample_blocks(x.split(size, -1), from_hz, to_hz)), -1)
    assert y.dtype == dtype and torch.equal(y, resample(x, from_hz, to_hz))


def test_resampling_in_blocks_takes_stems_and_lets_blocks_through():
    x = torch.stack([uniform(2, 9000, seed) for seed in range(3)])
    assert torch.equal(torch.cat(list(resample_blocks(x.split(777, -1), 44100, 16000)), -1), resample(x, 44100, 16000))
    block = uniform(1, 5)
    assert next(resample_blocks([block], 8000, 8000)) is block


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_reading_in_blocks_is_reading(tmp_path, suffix):
    save_audio(tmp_path / f"a{suffix}", uniform(2, 150001) * 0.5, 22050)
    parts = list(read_blocks(tmp_path / f"a{suffix}"))
    assert len(parts) == 3 and torch.equal(torch.cat(parts, -1), load_audio(tmp_path / f"a{suffix}")[0])


def test_reading_in_blocks_by_libav_and_ffmpeg(tmp_path, monkeypatch):
    write_with_av(tmp_path / "a.m4a", on_grid(uniform(2, 150001) * 0.5), 44100, "alac")
    def streamed(): return torch.cat(list(read_blocks(tmp_path / "a.m4a")), -1)
    assert torch.equal(streamed(), load_audio(tmp_path / "a.m4a")[0]) and audio_info(tmp_path / "a.m4a").samples == streamed().shape[-1]
    if not shutil.which("ffmpeg"): pytest.skip("no ffmpeg")
    by_av = streamed(); monkeypatch.setitem(sys.modules, "av", None)
    assert torch.equal(streamed(), by_av)
    blocks = read_blocks(tmp_path / "a.m4a"); next(blocks); blocks.close() # ends the ffmpeg process, too
    (tmp_path / "bad.m4a").write_bytes(bytes(range(256)) * 50)
    assert "bad.m4a" in refusal(lambda: list(read_blocks(tmp_path / "bad.m4a")))


def test_damage_is_found_when_it_is_reached(tmp_path):
    x = uniform(2, 200000); save_audio(tmp_path / "a.wav", x, 44100); whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-100])
    assert "truncated" in refusal(lambda: next(read_blocks(tmp_path / "cut.wav"))) # the header tells
    x[0, 150000] = float("nan"); soundfile.write(tmp_path / "nan.wav", x.T.numpy(), 44100, subtype="FLOAT")
    blocks = read_blocks(tmp_path / "nan.wav"); next(blocks)
    assert "nan.wav" in refusal(lambda: list(blocks))


@pytest.mark.parametrize("name,subtype", [("a.wav", "PCM_16"), ("a.wav", "PCM_24"), ("a.wav", "FLOAT"), ("a.flac", "PCM_16"), ("a.mp3", "PCM_16")])
def test_writing_in_blocks_gives_the_same_file(tmp_path, name, subtype):
    x = uniform(2, 140001) * 0.9
    save_audio(tmp_path / "whole" / name, x, 44100, subtype=subtype)
    assert save_blocks(tmp_path / "blocks" / name, x.split(1777, -1), 44100, subtype=subtype) == 140001
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()


def test_writing_in_blocks_refuses_and_leaves_nothing(tmp_path):
    x = uniform(1, 100)
    for blocks, how in (([], {}), ([x, 2 * x], {}), ([x, x * float("nan")], {}), ([x], dict(clip="rescale")), ([x], dict(subtype="PCM_8")), ([uniform(9, 5)], {})):
        refusal(save_blocks, tmp_path / "a.flac", blocks, 44100, **how)
    def fails(): yield x; raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): save_blocks(tmp_path / "a.wav", fails(), 44100)
    assert not list(tmp_path.iterdir())
    save_blocks(tmp_path / "a.wav", [x, 2 * x], 44100, clip="clamp")
    assert load_audio(tmp_path / "a.wav")[0].shape == (1, 200)
    for name, how in (("a.mp3", dict(sample_rate=44099)), ("a.mp3", dict(channels=3)), ("a.wav", dict(samples=2**31)), ("a.xyz", {})):
        refusal(check_writable, name, **{**dict(channels=2, samples=9, sample_rate=44100), **how})
