"""The doctor: every planted fault is found in the right song, healthy sets are left alone, memory does not grow with length."""
import re
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings, strategies as st

from sepnb.core import SepnbError
from sepnb.data import doctor as chapter
from sepnb.data.doctor import Finding, Meter, doctor, examine, format_findings, judge
from sepnb.data.tracks import BLOCK, find_tracks, manifest_row, song_files, stem_digest, track_digest, write_manifest, write_track
from sepnb.synth import toy_sources

STEMS = ("drums", "bass", "vocals")


def toy(seed, seconds=0.5): # stem → (c, t)
    return dict(zip(STEMS, toy_sources(torch.Generator().manual_seed(seed), seconds=seconds, sample_rate=8000, stems=STEMS)))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("healthy")
    for i, split in enumerate(["train", "train", "train", "valid", "test"]): write_track(root, split, f"Song {i}", toy(i), 8000, suffix=".wav")
    return root


@pytest.fixture
def copy(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "set"); return tmp_path / "set"


def edit(root, song, stem, change, *, rate=8000, subtype="PCM_16"):
    path = root / song / f"{stem}.wav"; x, _ = soundfile.read(path, dtype="float32", always_2d=True)
    soundfile.write(path, change(x), rate, subtype=subtype)


def test_healthy(healthy):
    assert doctor(healthy) == [] and format_findings([]) == "nothing wrong found"


def test_flac_and_wav_may_be_mixed(copy):
    path = copy / "train/Song 0/drums.wav"; x, rate = soundfile.read(path, dtype="int16"); path.unlink(); soundfile.write(path.with_suffix(".flac"), x, rate)
    assert doctor(copy) == []


def unlink(stem): return lambda r: (r / f"train/Song 1/{stem}.wav").unlink()
def put(name, data=b""): return lambda r: (r / name).write_bytes(data)
def change(stem, f, **kw): return lambda r: edit(r, "train/Song 1", stem, f, **kw)


SONG = "train/Song 1"
CASES = { # what is broken: how, song, severity, what is said
    "missing stem": (unlink("bass"), SONG, "error", "has no stem 'bass', which 4 of 5 songs have"),
    "missing mixture": (unlink("mixture"), SONG, "error", "has no mixture"),
    "no files": (lambda r: [p.unlink() for p in (r / SONG).iterdir()], SONG, "error", "has no mixture"),
    "extra stem": (lambda r: shutil.copy(r / "test/Song 4/drums.wav", r / SONG / "piano.wav"), SONG, "warning", "stem 'piano', which only 1 of 5"),
    "text": (put(f"{SONG}/vocals.wav", b"la la la"), SONG, "error", "vocals.wav"),
    "empty file": (put(f"{SONG}/vocals.wav"), SONG, "error", "vocals.wav"),
    "junk": (put(f"{SONG}/drums.wav", b"RIFF" + bytes(range(256)) * 9), SONG, "error", "drums.wav"),
    "header only": (change("bass", lambda x: x[:0]), SONG, "error", "bass.wav"),
    "length": (change("bass", lambda x: x[:-1]), SONG, "error", r"lengths differ: 3999 samples \(bass\), 4000 samples \(drums, mixture, vocals\)"),
    "rate": (change("bass", lambda x: x, rate=8001), SONG, "error", r"sample rates differ: 8000 Hz \(drums, mixture, vocals\), 8001 Hz \(bass\)"),
    "channels": (change("bass", lambda x: x[:, :1]), SONG, "error", r"channel counts differ: 1 \(bass\), 2 \("),
    "not the sum": (change("mixture", lambda x: x / 2), SONG, "error", "not the sum of its stems: residual -6.0 dB"),
    "nearly the sum": (change("mixture", lambda x: x * 0.999), SONG, "warning", "residual -60.0 dB"),
    "silent stem": (change("bass", lambda x: 0 * x), SONG, "warning", "bass is silent"),
    "silent mixture": (change("mixture", lambda x: 0 * x), SONG, "error", "mixture is silent"),
    "mixture of silence": (lambda r: [edit(r, SONG, s, lambda x: 0 * x) for s in STEMS], SONG, "error", "residual 0.0 dB"),
    "other rate": (lambda r: [edit(r, SONG, s, lambda x: x, rate=4000) for s in (*STEMS, "mixture")], "", "warning", "between songs: 8000 Hz in 4, 4000 Hz in 1"),
    "nan": (change("drums", lambda x: np.where(x == x[7], np.nan, x), subtype="FLOAT"), SONG, "error", "drums holds .* NaN or infinite"),
    "inf": (change("drums", lambda x: x + np.float32("inf"), subtype="FLOAT"), SONG, "error", "drums holds 8000 samples that are NaN or infinite"),
    "clipping": (change("mixture", lambda x: np.clip(20 * x, -1, 1)), SONG, "warning", "mixture clips in [0-9]+ places"),
    "too loud": (change("mixture", lambda x: 2 * x / abs(x).max(), subtype="FLOAT"), SONG, "warning", "mixture passes full scale by 6.0 dB"),
    "same name": (lambda r: shutil.copytree(r / SONG, r / "test/song 1"), "test/song 1", "error", "is in train too"),
    "same audio": (lambda r: shutil.copytree(r / SONG, r / "test/Encore"), "test/Encore", "error", f"drums, bass, vocals, mixture: the same recording as in {SONG}"),
    "one stem again": (lambda r: shutil.copy(r / SONG / "bass.wav", r / "valid/Song 3/bass.wav"), "valid/Song 3", "error", f"^bass: the same recording as in {SONG}"),
    "within a split": (lambda r: shutil.copytree(r / SONG, r / "train/Encore"), SONG, "warning", "the same recording as in train/Encore"),
    "stray in set": (put("cover.png", b"x"), "", "warning", "file 'cover.png' is not read"),
    "stray in split": (put("test/x.wav", b"x"), "test", "warning", "file 'x.wav' is not read"),
    "stray in song": (put(f"{SONG}/vocals.mp3", b"x"), SONG, "warning", "file 'vocals.mp3' is not read"),
    "folder in song": (lambda r: (r / SONG / "takes").mkdir(), SONG, "warning", "folder 'takes' is not read"),
    "other split": (lambda r: (r / "dev").mkdir(), "", "warning", "folder 'dev' is not read"),
    "killed run": (lambda r: (r / "test/.Song 9.77.part").mkdir(), "test", "warning", "left by a killed run"),
    "empty split": (lambda r: shutil.rmtree(r / "valid/Song 3"), "valid", "error", "has no songs"),
    "no split": (lambda r: shutil.rmtree(r / "valid"), "valid", "warning", "has no songs"),
    "twice": (lambda r: shutil.copy(r / SONG / "bass.wav", r / SONG / "bass.flac"), SONG, "error", "'bass' is there twice"),
    "bad manifest": (put("manifest.csv", b"what?"), "", "error", "^manifest.csv is not a manifest"),
}


@pytest.mark.parametrize("case", CASES)
def test_fault(copy, case):
    breaks, song, severity, said = CASES[case]
    breaks(copy); findings = doctor(copy)
    if case in ("rate", "channels"): assert not [f for f in findings if not f.song] # one stem is the song's fault, not the set's
    assert any(f.song == song and f.severity == severity and re.search(said, f.what) for f in findings), format_findings(findings)
    assert not [f for f in findings if f.song.startswith("train/") and f.song not in (song, SONG)], "a healthy song is accused"
    assert all("\n" not in f.what and str(copy) not in f.what for f in findings)


def test_manifest(copy):
    rows = [manifest_row(t, licence="", source="") for t in find_tracks(copy)]
    write_manifest(copy, rows[1:]); assert doctor(copy) == [Finding("train/Song 0", "warning", "is not in the manifest")]
    write_manifest(copy, rows); assert doctor(copy) == []
    write_track(copy, "train", "Song 0", toy(99), 8000, overwrite=True)
    assert [(f.song, f.severity) for f in doctor(copy)] == [("train/Song 0", "error")] and "changed since" in doctor(copy)[0].what
    shutil.rmtree(copy / "train/Song 0")
    assert doctor(copy) == [Finding("train/Song 0", "error", "is in the manifest but not on disk")]


def test_truncated_files(copy):
    for suffix in (".wav", ".flac"):
        path = copy / "train/Song 1/drums.wav"; cut = path.with_suffix(suffix)
        if suffix == ".flac": path.unlink(); soundfile.write(cut, *soundfile.read(copy / "train/Song 2/drums.wav"))
        cut.write_bytes(cut.read_bytes()[:cut.stat().st_size // 2])
        assert [f for f in doctor(copy) if f.song == "train/Song 1" and f.severity == "error" and "drums" in f.what]


def test_not_a_set(tmp_path):
    with pytest.raises(SepnbError): doctor(tmp_path / "nowhere")
    assert [f.severity for f in doctor(tmp_path) if f.song == ""] == ["error"]
    write_track(tmp_path, "test", "only", toy(0), 8000)
    assert [(f.song, f.severity) for f in doctor(tmp_path)] == [("train", "warning"), ("valid", "warning")]


def test_order_and_text(copy):
    for case in ("silent stem", "stray in set", "missing mixture", "other split"): CASES[case][0](copy)
    findings = doctor(copy); text = format_findings(findings)
    assert [f.song for f in findings] == ["", "", SONG, SONG] and [f.severity for f in findings[2:]] == ["error", "warning"]
    assert text.startswith("whole set\n") and text.endswith("\n1 error, 3 warnings") and text.count(SONG) == 1
    assert doctor(copy) == findings


@settings(deadline=None, max_examples=25)
@given(hot=st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5]), min_size=1, max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_clipping_is_a_run_wherever_blocks_end(hot, cuts):
    x = np.array(hot)[:, None]; meter = Meter()
    for part in np.split(x, sorted(c for c in cuts if 0 < c < len(x))): meter.add(part)
    runs = re.findall("1{3,}", "".join(str(int(abs(v) == 1)) for v in hot)) # the same question, asked of a string
    assert meter.clipped == len(runs) and meter.samples == len(x) and meter.peak == abs(x).max()


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1])
@pytest.mark.parametrize("stems", [1, 2, 7])
def test_rounding_is_no_fault(tmp_path, scale, stems):
    "Files that others wrote, each rounded by itself, as in MUSDB18-HQ."
    x = scale * torch.randn(stems, 2, 4000, generator=torch.Generator().manual_seed(stems)).clamp(-4, 4) / 8 / stems
    for i, s in enumerate([*x, x.sum(0)]): soundfile.write(tmp_path / (f"s{i}.wav" if i < stems else "mixture.wav"), s.T.numpy(), 8000, subtype="PCM_16")
    exam = examine(song_files(tmp_path))
    assert exam.residual_peak is not None and not [v for v in judge(exam) if "sum" in v[1]]


def test_block_hashes_are_those_of_the_manifest(tmp_path, monkeypatch):
    track = write_track(tmp_path, "train", "song", toy(0), 8000)
    exam = examine(song_files(track.folder))
    assert {s: exam.meters[s].hash.hexdigest() for s in track.stems} == {s: stem_digest(track.path(s)) for s in track.stems}
    monkeypatch.setattr(chapter, "BLOCK", 999)
    small = examine(song_files(track.folder))
    assert (small.residual_peak, small.residual_db) == (0, -200) and all(abs(small.meters[s].energy - exam.meters[s].energy) < 1e-6 for s in exam.meters)
    assert BLOCK == 2**20 and track_digest(track) == track_digest(find_tracks(tmp_path)[0])


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "BLOCK", 2**14)
    peaks = []
    for seconds in (10, 80):
        (tmp_path / f"{seconds}").mkdir(); x = np.random.default_rng(0).integers(-999, 999, (seconds * 8000, 2)).astype("int16")
        for stem in ("a", "b", "mixture"): soundfile.write(tmp_path / f"{seconds}/{stem}.wav", x, 8000)
        tracemalloc.start(); examine(song_files(tmp_path / f"{seconds}")); peaks.append(tracemalloc.get_traced_memory()[1]); tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
