"""Several processes, half of the bits, what it costs, and what is refused before the first step."""
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sepnb.train.loop as loop
from sepnb.core import SepnbError, seed_everything
from sepnb.data.bank import StemBank, fixed_excerpts
from sepnb.data.tracks import manifest_row, write_manifest, write_track
from sepnb.synth import toy_sources
from sepnb.train.__main__ import carry_out, job_from, main
from sepnb.train.checkpoint import build_model
from sepnb.train.loop import fit, recipe_from, training_costs
from sepnb.train.losses import LOSSES
from sepnb.train.parallel import Parallel, batch_norm, compiled, own_noise, start
from sepnb.train.state import Cost, Snapshot, board_energy_j, mark, metered, seconds_between

MASK = ("mask_rnn.DeepMaskInference", "magnitude_l1", dict(n_fft=256, hop_length=128, hidden=8, dropout=0.0))
NOISY = (*MASK[:2], {**MASK[2], "dropout": 0.3})
DEMUCS = ("demucs.Demucs", "waveform_l1", dict(width=4, depth=2, lstm=1, resample=1))
RECIPE = dict(segment_s=0.25, batch=4, steps=10, epochs=2, valid_excerpts=6, augment={"random_gain": {}, "swap_channels": {}, "remix": {"group": 2}}, ema=0.9, warmup=5)


def bank(seeds, seconds=2.0):
    return StemBank([toy_sources(seed_everything(i), seconds=seconds, sample_rate=8000, stems=["drums", "vocals"]) for i in seeds], sample_rate=8000)


def train(what, folder=None, rank=0, processes=1, port=0, slow=False):
    "Twenty steps in two epochs; the first of several processes leaves its result in the folder."
    name, loss, config = what
    if processes > 1: os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    learn, judge, generator = bank((0, 1)), bank((7,)), seed_everything(0, threads=1)
    engine = start(torch.device("cpu"), devices=processes)
    model = build_model(name, {**config, "stems": 2, "sample_rate": 8000})
    own_noise(0, rank)
    if slow:
        step = loop.augment
        def slowly(*args, **more): time.sleep(0.1); return step(*args, **more)
        loop.augment = slowly
    snapshot = Snapshot(Path(folder) / "state.safetensors", dict(a=1)) if folder else None
    history = fit(model, learn, judge, recipe_from({**RECIPE, "loss": loss}), generator=generator, snapshot=snapshot, engine=engine)
    if folder and rank == 0: save_file(model.state_dict(), Path(folder) / "weights.safetensors"); (Path(folder) / "history.json").write_text(json.dumps(history))
    return history, model.state_dict()


SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["lightning_fabric", "sepnb.train.__main__", "sepnb.models.mask_rnn", "sepnb.models.demucs", "sepnb.synth"]) # imported once, not by each


def begin(what, folder, slow=False):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes = [SERVER.Process(target=train, args=(what, folder, rank, 2, port, slow)) for rank in range(2)]
    for p in processes: p.start()
    return processes


def finish(processes, folder):
    for p in processes: p.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    return json.loads((folder / "history.json").read_text()), load_file(folder / "weights.safetensors")


@pytest.mark.parametrize("what", [MASK, DEMUCS], ids=["mask", "demucs"])
def test_two_processes_learn_what_one_does(tmp_path, what):
    two, weights = finish(begin(what, tmp_path / "two"), tmp_path / "two")
    one, alone = train(what)
    assert len(one) == len(two) == 2
    for a, b in zip(one, two):
        assert a["lr"] == b["lr"] and a["best"] == b["best"]
        assert abs(a["train_loss"] / b["train_loss"] - 1) < 1e-5 and abs(a["valid_loss"] / b["valid_loss"] - 1) < 1e-5
    assert all((weights[k].double() - alone[k].double()).abs().max() <= 1e-3 * max(1.0, alone[k].double().abs().max()) for k in alone)


@pytest.mark.parametrize("what", [NOISY, DEMUCS], ids=["mask", "demucs"])
def test_two_processes_ten_steps_a_kill_and_ten_steps_are_twenty_steps(tmp_path, what):
    undisturbed = begin(what, tmp_path / "whole")
    processes = begin(what, tmp_path / "killed", slow=True); state = tmp_path / "killed" / "state.safetensors"
    for _ in range(2400):
        if state.exists(): break
        assert all(p.is_alive() for p in processes)
        time.sleep(0.05)
    time.sleep(0.25)
    os.kill(processes[0].pid, signal.SIGKILL)
    for p in processes: p.join(60)
    assert processes[0].exitcode == -signal.SIGKILL and processes[1].exitcode not in (0, None), "the other one does not wait for ever"
    assert not (tmp_path / "killed" / "weights.safetensors").exists(), "it was over before it could be killed"
    history, weights = finish(begin(what, tmp_path / "killed"), tmp_path / "killed")
    expected, whole = finish(undisturbed, tmp_path / "whole")
    assert history == expected and all(torch.equal(weights[k], whole[k]) for k in whole)
    with pytest.raises(SepnbError, match="2 processes, not 1"): train(what, tmp_path / "killed")


@pytest.mark.parametrize("kind,shape", [(nn.BatchNorm1d, (6, 4)), (nn.BatchNorm1d, (5, 4, 7)), (nn.BatchNorm2d, (2, 4, 3, 5)), (nn.BatchNorm3d, (2, 4, 3, 2, 2))])
@pytest.mark.parametrize("settings", [{}, dict(momentum=None), dict(affine=False), dict(track_running_stats=False), dict(eps=1e-3, momentum=0.01)], ids=str)
def test_shared_norm_alone_is_torchs(kind, shape, settings):
    def outcome(forward):
        norm = kind(4, **settings).double(); x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).add(9).requires_grad_()
        for _ in range(3): y = forward(norm, x)
        (y.sigmoid() * torch.arange(shape[-1])).sum().backward()
        return [y, x.grad, *(p.grad for p in norm.parameters()), *norm.buffers()]
    for ours, theirs in zip(outcome(batch_norm), outcome(kind.forward)): torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name,config", [MASK[::2], ("openunmix.OpenUnmix", dict(n_fft=256, hop_length=128, hidden=16, max_hz=None, dropout=0.0)), DEMUCS[::2],
    ("tasnet.ConvTasNet", dict(filters=16, kernel=64, bottleneck=8, hidden=16, blocks=2, repeats=1)), ("deep_unet.MultiUNet", dict(table="cpu", n_fft=256, hop_length=128))])
def test_sixteen_bits_stay_in_the_network(name, config):
    sources, seen = fixed_excerpts(bank((0,)), count=2, samples=4000), []
    def steps(half):
        seed_everything(0, threads=1); model = build_model(name, {**config, "stems": 2, "sample_rate": 8000}).train(); torch.manual_seed(0)
        if hasattr(model, "stft"): model.stft.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        with torch.autocast("cpu", torch.bfloat16, enabled=half): loss = LOSSES["magnitude_l1" if hasattr(model, "stft") else "waveform_l1"](model, sources.sum(1), sources)
        loss.backward(); return loss, model
    (full, exact), (half, model) = steps(False), steps(True)
    assert half.dtype == torch.float32 and 0 < abs(half.item() / full.item() - 1) < 0.03 and set(seen) <= {torch.complex64}
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for (k, a), (_, b) in zip(model.named_buffers(), exact.named_buffers()):
        if "running" in k: assert a.dtype == torch.float32 and (a - b).norm() < 0.03 * b.norm().clamp_min(0.1), f"{k}: statistics of a norm"


def test_a_network_that_cannot_be_compiled_is_computed_as_it_is(capsys):
    model = build_model(MASK[0], MASK[2]).eval(); mag = torch.rand(1, 2, 129, 5)
    def broken(graph, inputs): raise RuntimeError("no compiler here")
    with compiled(model, backend=broken):
        assert torch.equal(model.network(mag), type(model).network(model, mag)) and torch.equal(model.network(mag), model.network(mag))
    assert capsys.readouterr().err.count("cannot be compiled") == 1 and "network" not in vars(model)
    with compiled(model, backend="eager"), pytest.raises(RuntimeError): model.network(mag[:, :, :9]) # a fault of the input is told as such


@pytest.mark.parametrize("settings,word", [(dict(device="cuda", devices=2), "there are"), (dict(device="mps", devices=2), "there are 1"), (dict(device="cpu", devices=0), "0 devices"),
                                           (dict(device="cpu", precision="8"), "precision")])
def test_impossible_engines_are_refused(settings, word, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SepnbError, match=word): start(torch.device(settings.pop("device")), **settings)


def test_without_fabric_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(SepnbError, match="pip install lightning-fabric"): start(torch.device("cpu"), precision="bf16-mixed")
    assert start(torch.device("cpu")).processes == 1


def test_an_unequal_share_is_refused():
    engine = Parallel(SimpleNamespace(global_rank=0, world_size=3, device=torch.device("cpu")))
    with pytest.raises(SepnbError, match="batch of 4 .* by 3"): engine.prepare(SimpleNamespace(model=nn.Linear(1, 1)), recipe_from(RECIPE))
    engine.release(None)


class FakeEvent:
    "Ticks half a second at each mark."
    now = 0.0
    def __init__(self, enable_timing): assert enable_timing
    def record(self, stream): FakeEvent.now += 500.0; self.at = FakeEvent.now
    def synchronize(self): pass
    def elapsed_time(self, other): return other.at - self.at


class FakeNvml:
    "A driver whose counter goes up by 7 J at each look."
    joules, uuid = 100, b"GPU-abc"
    def nvmlInit_v2(self): return 0
    def nvmlDeviceGetHandleByUUID(self, name, handle): return 0 if name == self.uuid else 6
    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value): FakeNvml.joules += 7; value._obj.value = FakeNvml.joules * 1000; return 0


def test_what_a_gpu_took_is_measured_on_it(monkeypatch):
    gpu = torch.device("cuda", 0)
    for name, value in dict(Event=FakeEvent, current_stream=lambda d: None, max_memory_allocated=lambda d: 3 * 2**20, get_device_properties=lambda d: SimpleNamespace(uuid="abc")).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml())
    assert seconds_between(mark(gpu), mark(gpu)) == 0.5
    cost = Cost()
    with metered(cost, gpu): cost.step_s += 2.0; cost.draw_s += 1.0
    assert (cost.device_s, cost.gpu_mb, cost.energy_j) == (3.0, 3.0, 7.0)
    monkeypatch.setattr(FakeNvml, "uuid", b"GPU-other")
    assert board_energy_j(gpu) is None
    def no_driver(name): raise OSError(name)
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert board_energy_j(gpu) is None and board_energy_j(torch.device("cpu")) is None


def prepared(root, stems=("drums", "vocals")):
    rows = []
    for i, split in enumerate(["train", "train", "valid"]):
        sources = toy_sources(seed_everything(i), seconds=2.0, sample_rate=8000, stems=list(stems))
        rows.append(manifest_row(write_track(root, split, f"song {i}", dict(zip(stems, sources)), 8000), licence="CC0-1.0", source="synthetic"))
    write_manifest(root, rows)


def job(root, **changes):
    return job_from(dict(name="dmi", model=MASK[0], config=MASK[2], recipe=dict(segment_s=0.25, batch=4, steps=3, epochs=2, valid_excerpts=2), tracks=str(root / "tracks"), out=str(root / "dmi"),
                         history=str(root / "dmi.csv"), cost=str(root / "dmi.cost.json"), state=str(root / "state" / "dmi.safetensors"), threads=1, device="cpu") | changes)


def spoil(what, root, monkeypatch):
    "Break one thing; changes of the job that go with it."
    tracks, song = root / "tracks", root / "tracks" / "train" / "song 1"
    def replaced(samples, **how): (song / "vocals.flac").unlink(); soundfile.write(song / "vocals.wav", samples, 8000, **how)
    if what == "no folder": shutil.rmtree(tracks)
    elif what == "no songs": shutil.rmtree(tracks / "train")
    elif what == "no songs to judge by": shutil.rmtree(tracks / "valid")
    elif what == "a missing stem": (song / "vocals.flac").unlink()
    elif what == "other stems to judge by": (tracks / "valid" / "song 2" / "vocals.flac").rename(tracks / "valid" / "song 2" / "bass.flac")
    elif what == "NaN": replaced(np.full((16000, 2), np.nan, np.float32), subtype="FLOAT")
    elif what == "a damaged file": (song / "vocals.flac").write_bytes(b"fLaC")
    elif what == "a shorter stem": replaced(np.zeros((8000, 2)))
    elif what == "songs too short": return dict(recipe=dict(segment_s=9.0, batch=2))
    elif what == "no manifest": (tracks / "manifest.csv").unlink()
    elif what == "too little memory": monkeypatch.setattr("sepnb.data.bank.free_memory", lambda: 1000)
    elif what == "a full disk": monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    elif what == "a full disk for the bank": monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)); return dict(banks=str(root / "banks"))
    elif what == "a file where the state belongs": (root / "state").write_text("")
    elif what == "a file where the weights belong": (root / "dmi").write_text("")
    elif what == "a state of other settings": Snapshot(root / "state" / "dmi.safetensors", dict(seed=2)).save(SimpleNamespace(**vars(tiny())))
    elif what == "a damaged state": (root / "state").mkdir(); (root / "state" / "dmi.safetensors").write_bytes(b"hello")
    elif what == "an unknown loss": return dict(recipe=dict(loss="l7", segment_s=0.25))
    elif what == "an unknown device": return dict(device="cuda:77")
    return {}


def tiny():
    model = nn.Linear(1, 1)
    return loop.Run(model, torch.optim.Adam(model.parameters()), torch.Generator())


FAULTS = {"no folder": "prepare stage", "no songs": "no songs in", "no songs to judge by": "no songs in", "a missing stem": "song 1 has the stems drums", "other stems to judge by": "song 2 has the stems",
          "NaN": "song 1.* NaN or infinite", "a damaged file": "vocals", "a shorter stem": "differ", "songs too short": "shorten segment_s", "no manifest": "prepare stage", "too little memory": "GB are free",
          "a full disk": "make room", "a full disk for the bank": "make room", "a file where the state belongs": "cannot write", "a file where the weights belong": "cannot write",
          "a state of other settings": "other settings", "a damaged state": "delete it", "an unknown loss": "unknown loss", "an unknown device": "cuda:77"}


@pytest.mark.parametrize("what", FAULTS)
def test_one_clear_error_before_any_step(tmp_path, monkeypatch, what, capsys):
    prepared(tmp_path / "tracks")
    def spent(*args, **settings): pytest.fail("a step was spent")
    monkeypatch.setattr(loop, "train_epoch", spent)
    wanted = job(tmp_path, **spoil(what, tmp_path, monkeypatch))
    with pytest.raises(SepnbError, match=FAULTS[what]) as error: carry_out(wanted, progress=False)
    assert "\n" not in str(error.value)
    path = tmp_path / "job.json"; path.write_text(json.dumps(vars(wanted)))
    assert main([str(path)]) == 2 and capsys.readouterr().out == f"error: {error.value}\n"


@pytest.mark.parametrize("kind,text", [(RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), (MemoryError, ""), (torch.OutOfMemoryError, "CUDA out of memory")])
def test_a_step_that_finds_no_memory_says_what_to_lower(monkeypatch, kind, text):
    def none_left(*args): raise kind(text)
    monkeypatch.setitem(LOSSES, "magnitude_l1", none_left)
    with pytest.raises(SepnbError, match="lower batch or segment_s") as error: train(MASK)
    assert "\n" not in str(error.value)
    def other(*args): raise RuntimeError("shapes differ")
    monkeypatch.setitem(LOSSES, "magnitude_l1", other)
    with pytest.raises(RuntimeError, match="shapes differ"): train(MASK)


def test_the_cost_of_a_continued_run_is_that_of_all_of_it(tmp_path, monkeypatch):
    prepared(tmp_path / "tracks"); carry_out(job(tmp_path, out=str(tmp_path / "whole"), cost=str(tmp_path / "whole.cost.json")), progress=False)
    epoch = loop._one_epoch
    def only_one(run, *args, **settings):
        if run.history: raise KeyboardInterrupt
        epoch(run, *args, **settings)
    with monkeypatch.context() as m:
        m.setattr(loop, "_one_epoch", only_one)
        with pytest.raises(KeyboardInterrupt): carry_out(job(tmp_path), progress=False)
    assert not (tmp_path / "dmi.cost.json").exists()
    carry_out(job(tmp_path), progress=False)
    part, whole = training_costs(tmp_path)
    assert (part["system"], whole["system"]) == ("dmi", "whole") and part["steps"] == whole["steps"] == 6 and part["audio_s"] == whole["audio_s"] == 6 * 4 * 0.25
    assert all(0 < r["loader_share"] < 1 and 0 < r["device_s"] and 0 < r["wall_s"] and r["peak_mb"] > 50 and r["processes"] == 1 and r["energy_j"] is None for r in (part, whole))
    assert (tmp_path / "dmi" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (tmp_path / "dmi" / "model.json").read_bytes() == (tmp_path / "whole" / "model.json").read_bytes()
    (tmp_path / "x.cost.json").write_text("{}")
    with pytest.raises(SepnbError, match="x.cost.json"): training_costs(tmp_path)
