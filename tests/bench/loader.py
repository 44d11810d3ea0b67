"""How much of a training step is compute: the stem bank beside a plain DataLoader that reads random excerpts from files.

Three models at one scale of params.yaml, each with its own recipe: batch, excerpt, augmentation. One step is a batch, forward, loss,
backward, clipping, optimiser. `bank` draws and augments as training does; `files` opens every stem of every example with soundfile,
without augmentation, in the same process or in worker processes. The sides take turns; times are medians of the steps.
usage: python tests/bench/loader.py [--tracks data/tracks] [--models joint_rnn unet demucs] [--scale cpu] [--steps 7] [--threads 1] [--device auto] [--clock process]
"""
import argparse, random, sys, time
from pathlib import Path
from statistics import median

import soundfile
import torch
import yaml

from sepnb.core import keep_memory, pick_device, seed_everything
from sepnb.data.augment import augment
from sepnb.data.bank import draw, load_bank
from sepnb.data.tracks import find_tracks
from sepnb.train.checkpoint import build_model
from sepnb.train.loop import near, recipe_from
from sepnb.train.losses import pick_loss
from sepnb.train.state import adam

LINE = 0.95 # so much of a step should be compute
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

class Files(torch.utils.data.Dataset):
    "Excerpts from anywhere in the songs, read from the files of their stems."
    def __init__(self, tracks, samples, length): self.tracks, self.samples, self.length = [t for t in tracks if t.samples >= samples], samples, length
    def __len__(self): return self.length
    def __getitem__(self, index):
        track, stems = random.choice(self.tracks), []; start = random.randrange(track.samples - self.samples + 1)
        for stem in track.stems:
            path = next(track.folder.glob(f"{stem}.*")) # FLAC or WAV
            stems.append(soundfile.read(path, start=start, frames=self.samples, dtype="float32", always_2d=True)[0].T)
        return torch.stack([torch.from_numpy(x.copy()) for x in stems])

def block(name, params): # of one model, wherever it stands
    for section in ("models", "more_models"):
        if name in (params.get(section) or {}): return params[section][name]
    raise SystemExit(f"params.yaml has no model '{name}'")

def settle(device): # a GPU works on by itself; times are taken when it has done what it was told
    if device.type == "cuda": torch.cuda.synchronize(device)

def sides(tracks, bank, recipe, steps, workers, device): # name → a function that makes one batch
    samples, generator = round(recipe.segment_s * bank.sample_rate), seed_everything(1)
    def from_bank(): return augment(draw(bank, generator, batch=recipe.batch, samples=samples, coherent=recipe.coherent), generator, recipe.augment, inplace=True).to(device)
    out = {"bank": from_bank}
    for n in workers:
        data = Files(tracks, samples, recipe.batch * (steps + 2))
        stream = iter(torch.utils.data.DataLoader(data, batch_size=recipe.batch, num_workers=n, worker_init_fn=random.seed if n else None))
        out[f"files, {n} workers" if n else "files"] = lambda stream=stream: next(stream).to(device)
    return out

def measure(net, makers, recipe, steps, device, clock): # side → [(s for the batch, s for the rest)]
    optimiser, loss_of = adam(net, lr=recipe.lr), pick_loss(recipe.loss); times = {name: [] for name in makers}
    for _ in range(steps + 1):
        for name, make in makers.items():
            settle(device); start = clock()
            sources = make(); settle(device); had = clock()
            loss = loss_of(net, sources.sum(1), sources); optimiser.zero_grad(set_to_none=True); loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_norm); optimiser.step(); settle(device)
            times[name].append((had - start, clock() - had))
    return {name: rows[1:] for name, rows in times.items()} # the first one warms up

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", default="data/tracks"); parser.add_argument("--models", nargs="+", default=["joint_rnn", "unet", "demucs"])
    parser.add_argument("--scale", default="cpu"); parser.add_argument("--params", default=str(Path(__file__).parents[2] / "params.yaml"))
    parser.add_argument("--steps", type=int, default=7); parser.add_argument("--threads", type=int, default=1); parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="of the DataLoader; 0: none")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: the processor time of this process, for a machine that others use too; counts no waiting")
    parser.add_argument("--songs", type=int, default=0, help="of the training split, at most; 0: all")
    args = parser.parse_args(); keep_memory(); torch.set_num_threads(args.threads); device = pick_device(args.device); params = yaml.safe_load(Path(args.params).read_text())
    tracks = find_tracks(args.tracks, split="train")[:args.songs or None]; bank = near(load_bank(tracks), device); few = False
    print(f"{len(tracks)} songs, {bank.seconds:.0f} s, {len(bank.pcm)} stems at {bank.sample_rate} Hz; {device.type}, {args.threads} threads, {args.clock} clock; ms, medians of {args.steps} steps")
    print(f"{'':32}{'batch':>10}{'compute':>10}{'share of compute':>18}")
    for name in args.models:
        entry = block(name, params); recipe = recipe_from(entry[args.scale]["recipe"])
        shape = dict(stems=len(bank.pcm), channels=bank.pcm.shape[1], sample_rate=bank.sample_rate); seed_everything(1)
        net = build_model(entry["model"], {**entry[args.scale]["config"], **shape}).to(device).train()
        for side, rows in measure(net, sides(tracks, bank, recipe, args.steps, args.workers, device), recipe, args.steps, device, CLOCKS[args.clock]).items():
            wait, work = (1000 * median(x) for x in zip(*rows)); share = work / (wait + work); few |= side == "bank" and share < LINE
            print(f"{f'{name}, {side}':32}{wait:10.1f}{work:10.1f}{100 * share:16.1f} %", flush=True)
    return int(few)

if __name__ == "__main__": sys.exit(main())
