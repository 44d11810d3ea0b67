"""A killed run of training ends in the same bytes as one that nobody disturbed."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sepnb.core import SepnbError, seed_everything
from sepnb.data.bank import StemBank
from sepnb.models.mask_rnn import DeepMaskInference
from sepnb.synth import toy_sources
from sepnb.train.checkpoint import build_model
from sepnb.train.loop import fit, recipe_from, train_epoch
from sepnb.train.state import Run, Snapshot, averaged, pack, unpack

MODELS = [("mask_rnn.DeepMaskInference", "magnitude_l1", dict(n_fft=256, hop_length=128, hidden=8)),
          ("demucs.Demucs", "waveform_l1", dict(width=4, depth=2, lstm=1, resample=1))]
RECIPE = dict(segment_s=0.25, batch=2, steps=10, epochs=2, valid_excerpts=2, augment={"random_gain": {}, "swap_channels": {}}, ema=0.9, warmup=5)


def bank(seeds):
    return StemBank([toy_sources(seed_everything(i), seconds=2.0, sample_rate=8000, stems=["drums", "vocals"]) for i in seeds], sample_rate=8000)


def train(name, config, snapshot=None, **changes):
    "Twenty steps in two epochs."
    train, valid = bank((0, 1)), bank((7,))
    generator = seed_everything(0, threads=1)
    model = build_model(name, {**config, "stems": 2, "sample_rate": 8000})
    history = fit(model, train, valid, recipe_from({**RECIPE, **changes}), generator=generator, snapshot=snapshot)
    return history, model.state_dict()


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_resume
import sepnb.train.loop as loop
step = loop.augment
def slow(*args, **more): time.sleep(0.1); return step(*args, **more)
loop.augment = slow
test_resume.train({name!r}, {config!r}, test_resume.Snapshot({path!r}, dict(a=1)), loss={loss!r})
"""


def killed(tmp_path, name, loss, config):
    "Start in a process of its own, kill it when the first epoch is on the disk and the second is under way."
    path = tmp_path / "state.safetensors"
    code = SCRIPT.format(tests=str(Path(__file__).parent), name=name, config=config, loss=loss, path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(1200):
        if path.exists(): break
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.25)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    return path


@pytest.mark.parametrize("name,loss,config", MODELS, ids=lambda v: v if isinstance(v, str) else "")
def test_ten_steps_a_kill_and_ten_steps_are_twenty_steps(tmp_path, name, loss, config):
    path = killed(tmp_path, name, loss, config)
    assert not [p for p in path.parent.iterdir() if p != path], "something half-written was left"
    torch.manual_seed(99) # the random state of the new process does not matter
    history, weights = train(name, config, Snapshot(path, dict(a=1)), loss=loss)
    expected, undisturbed = train(name, config, loss=loss)
    assert history == expected and len(history) == 2
    assert all(torch.equal(weights[k], undisturbed[k]) for k in undisturbed)


def small():
    seed_everything(0)
    return DeepMaskInference(stems=2, n_fft=256, hop_length=128, hidden=8)


def test_other_settings_are_refused_and_named(tmp_path):
    model = small()
    run = Run(model, torch.optim.Adam(model.parameters()), torch.Generator())
    path = tmp_path / "s.safetensors"
    Snapshot(path, dict(recipe=dict(lr=1e-3, batch=8), seed=1)).save(run)
    with pytest.raises(SepnbError, match=r"recipe\.lr: 0\.001 then, 0\.01 now") as error:
        Snapshot(path, dict(recipe=dict(lr=1e-2, batch=8), seed=1)).restore(run)
    assert "\n" not in str(error.value)
    assert Snapshot(path, dict(seed=1, recipe=dict(batch=8, lr=1e-3))).restore(run) # the order of keys does not matter


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no facts"])
def test_a_damaged_state_is_one_line(tmp_path, damage):
    model, path = small(), tmp_path / "s.safetensors"
    run = Run(model, torch.optim.Adam(model.parameters()), torch.Generator())
    Snapshot(path, {}).save(run)
    if damage == "no facts": save_file({"a": torch.zeros(1)}, path)
    else: path.write_bytes({"cut": path.read_bytes()[:-50], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(SepnbError, match="delete it") as error:
        Snapshot(path, {}).restore(run)
    assert "\n" not in str(error.value)


def test_a_state_of_another_model_is_refused(tmp_path):
    one, two = small(), DeepMaskInference(stems=2, n_fft=256, hop_length=128, hidden=4)
    runs = [Run(m, torch.optim.Adam(m.parameters()), torch.Generator()) for m in (one, two)]
    with pytest.raises(SepnbError, match="another model"):
        unpack(runs[1], pack(runs[0]), [])


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    model, path = small(), tmp_path / "s.safetensors"
    run = Run(model, torch.optim.Adam(model.parameters()), torch.Generator())
    Snapshot(path, {}).save(run); before = path.read_bytes()
    def full(self, data): raise OSError(28, "No space left on device", str(self))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SepnbError, match="No space left"):
        Snapshot(path, {}).save(run)
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_the_average_follows_and_is_what_is_kept():
    history, weights = train(MODELS[0][0], MODELS[0][2], ema=0.99)
    plain, sharp = train(MODELS[0][0], MODELS[0][2], ema=0.0)
    assert [r["train_loss"] for r in history] == [r["train_loss"] for r in plain], "the average does not disturb the training"
    assert any(not torch.equal(weights[k], sharp[k]) for k in weights)
    with pytest.raises(SepnbError, match="ema"): averaged(small(), 1.0)


def test_the_rate_rises_step_by_step():
    model = small(); seen = []
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    optimiser.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    run = Run(model, optimiser, torch.Generator().manual_seed(0))
    train_epoch(run, bank((0,)), recipe_from({**RECIPE, "steps": 4, "warmup": 8, "lr": 0.8})); run.history.append({})
    train_epoch(run, bank((0,)), recipe_from({**RECIPE, "steps": 6, "warmup": 8, "lr": 0.8}))
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8])
