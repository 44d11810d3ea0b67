"""A whole set: parallel, resumable, and the same numbers either way."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sepnb.campaign import ScoreStore, evaluate_songs, fingerprint
from sepnb.core import SepnbError, seed_everything
from sepnb.data.tracks import find_tracks, load_track, write_track
from sepnb.separator import Separator, build
from sepnb.synth import toy_sources

STEMS = ("other", "vocals")


class Slow(Separator):
    "Half the mixture each, slowly; a module-level class, so that workers can be given it."
    def __init__(self, stems, seconds=0.0, die_on=None):
        super().__init__(stems)
        self.seconds, self.die_on = seconds, die_on

    def estimate(self, mix, sources=None):
        time.sleep(self.seconds)
        if self.die_on is not None and abs(float(mix.abs().max()) - self.die_on) < 1e-6: os.kill(os.getpid(), signal.SIGKILL)
        return torch.stack([mix / 2] * len(self.stems))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    for i in range(4):
        sources = toy_sources(seed_everything(i), seconds=2.5, sample_rate=8000, stems=STEMS)
        write_track(folder, "test", f"toy {i}", dict(zip(STEMS, sources)), 8000)
    return folder


def test_jobs_do_not_change_a_digit(folder):
    songs, system = find_tracks(folder, split="test"), build("ibm", STEMS)
    one = evaluate_songs(system, songs)
    assert json.dumps(one) == json.dumps(evaluate_songs(system, songs, jobs=3))
    assert [r["song"] for r in one[::4]] == [t.name for t in songs]


RUN = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_campaign import STEMS, Slow
from sepnb.campaign import ScoreStore, evaluate_songs
from sepnb.data.tracks import find_tracks
if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluate_songs(Slow(STEMS, seconds={seconds}), find_tracks({folder!r}, split="test"), jobs={jobs}, store=ScoreStore({store!r}, fingerprint="x"))
"""


@pytest.mark.parametrize("jobs", (1, 2))
def test_killed_evaluation_continues(folder, tmp_path, jobs):
    store, script = tmp_path / "partial.jsonl", tmp_path / "run.py"
    script.write_text(RUN.format(tests=os.path.dirname(__file__), seconds=0.7, folder=str(folder), jobs=jobs, store=str(store)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    for _ in range(600):
        if store.exists() and store.read_text().count("\n") >= 2: break
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL); process.wait()
    before = ScoreStore(store, fingerprint="x").songs
    assert 1 <= len(before) < 4
    songs = find_tracks(folder, split="test")
    marked = ScoreStore(store, fingerprint="x")
    for song in before: marked.songs[song] = [{**r, "si_sdr": 99.0} for r in before[song]] # to tell kept rows from new ones
    rows = evaluate_songs(Slow(STEMS), songs, store=marked)
    assert {r["song"] for r in rows if r["si_sdr"] == 99.0} == set(before)
    again = evaluate_songs(Slow(STEMS), songs, store=ScoreStore(store, fingerprint="x"))
    assert json.dumps(again) == json.dumps(evaluate_songs(Slow(STEMS), songs))


def test_dead_worker_is_one_clear_line_and_loses_nothing(folder, tmp_path):
    songs = find_tracks(folder, split="test")
    loudest = float(load_track(songs[3]).sum(0).abs().max())
    store = ScoreStore(tmp_path / "partial.jsonl", fingerprint="x")
    with pytest.raises(SepnbError, match="worker process died"):
        evaluate_songs(Slow(STEMS, seconds=0.2, die_on=loudest), songs, jobs=2, store=store)
    assert songs[3].name not in store.songs and ScoreStore(tmp_path / "partial.jsonl", fingerprint="x").songs
    rows = evaluate_songs(Slow(STEMS), songs, store=ScoreStore(tmp_path / "partial.jsonl", fingerprint="x"))
    assert len({r["song"] for r in rows}) == 4


@pytest.mark.parametrize("cut", (1, 5, 40))
def test_torn_line_is_done_again(tmp_path, cut):
    path = tmp_path / "partial.jsonl"
    store = ScoreStore(path, fingerprint="x")
    for song in "ab": store.add(song, [dict(song=song, value=float("nan"))])
    path.write_bytes(path.read_bytes()[:-cut])
    again = ScoreStore(path, fingerprint="x")
    assert list(again.songs) == (["a"] if cut < 35 else [])
    again.add("c", []); assert list(ScoreStore(path, fingerprint="x").songs) == [*again.songs]


@pytest.mark.parametrize("dirt", (b"\x00\xff\n", b"[1, \n", b'{"a": \n', b"\n"))
def test_a_damaged_line_ends_what_is_known(tmp_path, dirt):
    path = tmp_path / "partial.jsonl"; store = ScoreStore(path, fingerprint="x")
    for song in "abc": store.add(song, [])
    lines = path.read_bytes().splitlines(keepends=True)
    for at, known in ((2, ["a"]), (0, [])):
        path.write_bytes(b"".join([*lines[:at], dirt, *lines[at + 1:]]))
        assert list(ScoreStore(path, fingerprint="x").songs) == known


def test_fingerprint_finds_a_model_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); (tmp_path / "runs" / "net").mkdir(parents=True)
    marks = set()
    for weights in "ab":
        (tmp_path / "runs" / "net" / "model.json").write_text(json.dumps({"sha256": weights})); marks.add(fingerprint("net", seed=1))
    assert len(marks) == 2


def test_fingerprint_sees_weights_and_code(tmp_path):
    first = fingerprint(str(tmp_path), seed=1)
    (tmp_path / "model.json").write_text('{"sha256": "a"}'); second = fingerprint(str(tmp_path), seed=1)
    (tmp_path / "model.json").write_text('{"sha256": "b"}'); third = fingerprint(str(tmp_path), seed=1)
    assert len({first, second, third, fingerprint(str(tmp_path), seed=2)}) == 4
    assert third == fingerprint(str(tmp_path), seed=1)


def test_nothing_to_do_is_said(folder):
    with pytest.raises(SepnbError, match="no song"): evaluate_songs(build("ibm", STEMS), [])
    with pytest.raises(SepnbError, match="0 jobs"): evaluate_songs(build("ibm", STEMS), find_tracks(folder, split="test"), jobs=0)
