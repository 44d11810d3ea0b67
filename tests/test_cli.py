"""The command as a user meets it: a process of its own, with good files and with bad ones."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf

from sepnb.audio import audio_info, load_audio

RUN = [sys.executable, "-c", "import sys; from sepnb.cli import main; sys.exit(main())"]


def sepnb(*args, cwd, **kwargs):
    return subprocess.run([*RUN, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=120, **kwargs)


def write(path, *, channels=2, rate=44100, samples=3000, subtype="PCM_16", fill=None):
    x = 0.1 * np.random.default_rng(0).standard_normal((samples, channels)) if fill is None else np.full((samples, channels), fill)
    sf.write(path, x, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("channels,rate,samples,fill", [
    (1, 44100, 3000, None), (2, 44100, 1, None), (8, 44100, 2000, None), (2, 8000, 5001, None), (2, 192000, 9000, None), (2, 44100, 4000, 0.0), (2, 11025, 777, None)])
def test_unusual_files_come_back_as_they_were(channels, rate, samples, fill, tmp_path):
    song = write(tmp_path / "song.wav", channels=channels, rate=rate, samples=samples, fill=fill)
    done = sepnb("separate", song, "-o", "out", "--system", "hpss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "out" / "song").iterdir())
    assert len(files) == 2
    for f in files:
        assert audio_info(f) == audio_info(song)
    total = sum(load_audio(f)[0] for f in files)
    assert (total - load_audio(song)[0]).abs().max() < 2e-4


def bad_inputs(folder):
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not music\n" * 50)
    sf.write(folder / "nan.wav", np.full((100, 2), np.nan), 44100, subtype="FLOAT")
    sf.write(folder / "none.wav", np.zeros((0, 2)), 44100)
    good = write(folder / "good.wav")
    (folder / "short.wav").write_bytes(good.read_bytes()[:30])
    return good


@pytest.mark.parametrize("args", [
    ["separate", "empty.wav"], ["separate", "text.wav"], ["separate", "nan.wav"], ["separate", "none.wav"], ["separate", "short.wav"], ["separate", "missing.wav"],
    ["separate", "."], ["separate", "good.wav", "--system", "hpsss"], ["separate", "good.wav", "--system", "irm"], ["separate", "good.wav", "--system", "runs/none"],
    ["separate", "good.wav", "--two-stems", "flute"], ["separate", "good.wav", "--overlap", "1"], ["separate", "good.wav", "--name", "../{stem}.{ext}"],
    ["separate", "good.wav", "--format", "flac", "--float32"], ["separate", "good.wav", "good.wav"],
    ["separate", "good.wav", "--device", "toaster", "--system", "runs/none"], ["separate", "good.wav", "-o", "good.wav"], ["separate", "good.wav", "--stems", "a", "a"],
    ["data", "doctor", "missing"]], ids=" ".join)
def test_a_mistake_costs_one_line(args, tmp_path):
    bad_inputs(tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    done = sepnb(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("sepnb: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_one_bad_song_among_good_ones_stops_before_any_work(tmp_path):
    good = bad_inputs(tmp_path)
    done = sepnb("separate", good, "text.wav", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out").exists()


def test_nothing_is_overwritten_without_force(tmp_path):
    song = write(tmp_path / "song.wav")
    assert sepnb("separate", song, "-o", "out", cwd=tmp_path).returncode == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.wav")}
    again = sepnb("separate", song, "-o", "out", cwd=tmp_path)
    assert again.returncode == 2 and "--force" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.wav")} == files
    assert sepnb("separate", song, "-o", "out", "--force", cwd=tmp_path).returncode == 0


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    "A limit on the size of files stands for a full disk: writing fails in the middle."
    song = write(tmp_path / "song.wav", samples=200_000)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    done = subprocess.run([sys.executable, "-c", limit + "import sys; from sepnb.cli import main; sys.exit(main())", "separate", str(song), "-o", "out"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    song = write(tmp_path / "song.wav")
    (tmp_path / "out").mkdir(mode=0o500)
    assert sepnb("separate", song, "-o", "out", cwd=tmp_path).returncode == 2


def under_way(tmp_path):
    "A separation that has begun to write, in a process of its own; Ctrl-C works there even if the tests run in the background."
    song = write(tmp_path / "song.wav", samples=44100 * 240)
    process = subprocess.Popen([*RUN, "separate", str(song), "-o", "out"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is not None:
        pytest.skip("this machine is too fast to be interrupted")
    return process


def test_ctrl_c_leaves_no_broken_file(tmp_path):
    process = under_way(tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("sepnb: interrupted")
    assert not (tmp_path / "out").exists()


def test_a_polite_kill_leaves_no_broken_file(tmp_path):
    process = under_way(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and not (tmp_path / "out").exists()


def test_the_words_of_demucs_and_spleeter(tmp_path):
    song = write(tmp_path / "song.wav", samples=30000)
    args = ["separate", song, "--two-stems", "percussive", "--segment", 0.3, "--overlap", 0.5, "--shifts", 2, "-j", 2, "-d", "cpu", "-q"]
    for out, more in (("a", ["--seed", 3]), ("b", ["--seed", 3]), ("c", ["--seed", 4])):
        done = sepnb(*args, *more, "--format", "flac", "--int24", "--filename", "{stem}/{track}.{ext}", "-o", out, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    files = {out: {p.relative_to(tmp_path / out).as_posix(): p.read_bytes() for p in (tmp_path / out).rglob("*.flac")} for out in "abc"}
    assert set(files["a"]) == {"percussive/song.flac", "no_percussive/song.flac"}
    assert files["a"] == files["b"] != files["c"]
    total = sum(load_audio(p)[0] for p in (tmp_path / "a").rglob("*.flac"))
    assert (total - load_audio(song)[0]).abs().max() < 1e-4


def test_stems_can_be_stored_otherwise(tmp_path):
    song = write(tmp_path / "song.wav", samples=5000, rate=48000)
    assert sepnb("separate", song, "--format", "mp3", "-o", "m", cwd=tmp_path).returncode == 0
    assert {p.name for p in (tmp_path / "m" / "song").iterdir()} == {"harmonic.mp3", "percussive.mp3"}
    assert sepnb("separate", song, "--float32", "-o", "f", cwd=tmp_path).returncode == 0
    assert sf.info(tmp_path / "f" / "song" / "harmonic.wav").subtype == "FLOAT"


def test_one_song_that_is_damaged_at_its_end_does_not_stop_the_others(tmp_path):
    x = 0.1 * np.random.default_rng(0).standard_normal((90000, 2)); x[-1] = np.nan
    sf.write(tmp_path / "a.wav", x, 44100, subtype="FLOAT")
    good = write(tmp_path / "b.wav")
    done = sepnb("separate", "a.wav", good, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "a.wav" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b"]


def test_completion(tmp_path):
    pytest.importorskip("shtab")
    done = sepnb("--print-completion", "bash", cwd=tmp_path)
    assert done.returncode == 0 and "--two-stems" in done.stdout


def test_systems_as_text_and_json(tmp_path):
    text, data = sepnb("systems", cwd=tmp_path), sepnb("systems", "--json", cwd=tmp_path)
    rows = json.loads(data.stdout)
    assert {"mixture", "ibm", "irm", "wfm", "hpss"} <= {r["name"] for r in rows}
    assert len(text.stdout.splitlines()) == len(rows)


@pytest.mark.parametrize("args", [[], ["separate"], ["data"], ["data", "doctor"], ["systems"]])
def test_help_says_what_it_takes(args, tmp_path):
    done = sepnb(*args, "--help", cwd=tmp_path)
    assert done.returncode == 0 and "usage: sepnb" in done.stdout


def test_the_doctor_speaks_by_exit_code(tmp_path):
    for song, length in (("a", 2000), ("b", 2000)):
        folder = tmp_path / "set" / "train" / song
        folder.mkdir(parents=True)
        rng = np.random.default_rng(len(song))
        parts = (rng.integers(-3000, 3000, (2, length, 2)) + ord(song)).astype("int16")
        for name, x in (("guitar", parts[0]), ("backing", parts[1]), ("mixture", parts.sum(0).astype("int16"))):
            sf.write(folder / f"{name}.wav", x, 44100, subtype="PCM_16")
    (tmp_path / "set" / "train" / "b" / "guitar.wav").unlink()
    done = sepnb("data", "doctor", "set", cwd=tmp_path)
    assert done.returncode == 1 and "guitar" in done.stdout
