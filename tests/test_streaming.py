"""A song in, files out: whose fault an error is, and what is left when something fails."""
import errno
import os
from pathlib import Path

import pytest
import torch

from sepnb import streaming
from sepnb.audio import audio_info, load_audio, save_audio
from sepnb.core import SepnbError
from sepnb.separator import Separator
from sepnb.streaming import read_spool, separate_file, spool_stems


class Shares(Separator):
    sample_rate, channels, segment_s = 8000, 2, 1.0
    fails: BaseException | None = None
    def estimate(self, mix, sources=None):
        if self.fails: raise self.fails
        return torch.stack([0.5 * mix, 0.5 * mix])


@pytest.fixture
def song(tmp_path):
    save_audio(tmp_path / "song.wav", 0.1 * torch.randn(2, 20000, generator=torch.Generator().manual_seed(0)), 8000)
    return tmp_path / "song.wav"


def targets(folder, suffix=".wav"): return {stem: folder / "out" / f"{stem}{suffix}" for stem in ("bass", "drums")}


def left(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file or directory", "weights"), OSError(errno.EIO, "Input/output error"),
                                   PermissionError(errno.EACCES, "Permission denied", "/dev/accelerator")], ids=lambda e: type(e).__name__)
def test_an_error_of_the_system_is_not_blamed_on_the_output(error, song, tmp_path):
    separator = Shares(["bass", "drums"]); separator.fails = error
    with pytest.raises(OSError) as caught: separate_file(separator, song, targets(tmp_path))
    assert caught.value is error and left(tmp_path) == ["song.wav"]


def test_a_song_that_cannot_be_read_further_is_not_blamed_on_the_output(song, tmp_path, monkeypatch):
    def broken(path):
        yield torch.zeros(2, 9000)
        raise OSError(errno.EIO, "Input/output error", str(path))
    monkeypatch.setattr(streaming, "read_blocks", broken)
    with pytest.raises(OSError, match="song.wav"): separate_file(Shares(["bass", "drums"]), song, targets(tmp_path))
    assert left(tmp_path) == ["song.wav"]


@pytest.mark.parametrize("where", ["spool", "rename", "folder", "work"])
def test_an_error_of_the_output_names_the_output(where, song, tmp_path, monkeypatch):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device")
    if where == "spool": monkeypatch.setattr(streaming, "_write", full)
    if where == "rename": monkeypatch.setattr(streaming.os, "replace", full)
    if where == "folder": monkeypatch.setattr(Path, "mkdir", full)
    if where == "work": monkeypatch.setattr(streaming.tempfile, "TemporaryDirectory", full)
    with pytest.raises(SepnbError, match="No space left") as caught: separate_file(Shares(["bass", "drums"]), song, targets(tmp_path))
    monkeypatch.undo()
    assert str(tmp_path / "out") in str(caught.value) and ".sepnb-" not in str(caught.value) and "\n" not in str(caught.value)
    assert left(tmp_path) == ["song.wav"]


def test_a_file_that_takes_only_parts_gets_all(tmp_path):
    x = torch.randn(2, 2, 4001); files = [tmp_path / "a", tmp_path / "b"]
    class Slow:
        def __init__(self): self.data = b""
        def write(self, data): self.data += bytes(data[:1000]); return min(1000, len(data))
    slow = Slow(); streaming._write(slow, x[0].T.contiguous().numpy())
    spool_stems(x.split(77, -1), files)
    assert slow.data == files[0].read_bytes()
    assert all(torch.equal(torch.cat(list(read_spool(f, channels=2)), -1), stem) for f, stem in zip(files, x))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_the_stems_sum_to_the_song(suffix, song, tmp_path):
    done = separate_file(Shares(["bass", "drums"]), song, targets(tmp_path, suffix))
    info = audio_info(song)
    assert len(done.files) == 2 and done.gain == 1 and {audio_info(f) for f in done.files} == {info}
    if suffix in (".wav", ".flac"): assert (sum(load_audio(f)[0] for f in done.files) - load_audio(song)[0]).abs().max() <= 1.1 / 32768
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f.name for f in done.files)
