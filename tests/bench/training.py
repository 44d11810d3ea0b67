"""Training throughput beside the reference packages: the same network, the same weights, the same batches, one step each in turn.

A step is forward, loss, backward, clipping and optimiser. Ours is `train.loop`'s: the loss by `pick_loss`, clipping, Adam in one pass (`state.adam`), memory kept (`core.keep_memory`). Theirs is what the
project's own training script does: Open-Unmix a network a stem, each with a spectrogram of its own and Adam; Demucs 2 its function
`train_model` with its augmentation (flip, swap, shift, remix), where that version is here, else the same steps written out; asteroid its
L1 distance, clipping and Adam. Ours runs with torch's deterministic kernels, as `seed_everything` asks for, and with the
environment of a stage; theirs as torch is by itself. Both take the code path that `--path` says: `stage`, the widest vectors that this
processor has, as stages that train (`runner.WIDE`), or `avx2`, that of other stages (`runner.CODE_PATH`). Each side is a process of its own, asked for one step in turn.
Batches lie in memory on both sides; loader.py is about loading.
usage: python tests/bench/training.py [--only demucs] [--repeats 15] [--threads 1] [--seconds 2] [--batch 2] [--clock process] [--path avx2] [--published]
"""
import argparse, importlib, json, os, subprocess, sys, time, types
from pathlib import Path
from statistics import median

import torch

from sepnb.core import keep_memory, pick_device, seed_everything
from sepnb.data.augment import augment
from sepnb.models.demucs import Demucs
from sepnb.models.openunmix import OpenUnmix, from_reference_state as unmix_state
from sepnb.models.tasnet import ConvTasNet, from_asteroid_state
from sepnb.runner import CODE_PATH, WIDE
from sepnb.synth import toy_sources
from sepnb.train.losses import pick_loss
from sepnb.train.state import adam

REFS = Path(__file__).parents[2] / ".refs"
FOUR, LINE = ("drums", "bass", "other", "vocals"), 1.2
WARM = 8 # steps of each side before the clock runs: a training has hundreds, and only the first few ask the system for memory
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

def package(name, path, **modules): # without its own __init__, which would import much else
    bare = types.ModuleType(name); bare.__path__ = [str(path)]; sys.modules[name] = bare
    for module, content in modules.items(): sys.modules[f"{name}.{module}"] = content

def our_step(net, sources, loss, lr=1e-3): # as `train_epoch` does it
    keep_memory(); optimiser, generator, loss = adam(net, lr=lr), seed_everything(0), pick_loss(loss)
    def step(steps):
        batch = augment(sources.clone() if steps else sources, generator, steps, inplace=True); value = loss(net, batch.sum(1), batch)
        if not value.isfinite(): raise SystemExit("the loss is not finite")
        optimiser.zero_grad(set_to_none=True); value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0); optimiser.step()
        return value.item()
    return step

def openunmix(args, sources): # a network a stem
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio")); sys.path.append(str(REFS))
    model, transforms = importlib.import_module("openunmix.model"), importlib.import_module("openunmix.transforms")
    hidden, hop = (512, 1024) if args.published else (128, 2048)
    ours = OpenUnmix(4, 2, hidden=hidden, n_fft=4096, hop_length=hop, mask_exponent=1.0)
    device = sources.device
    theirs = [model.OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=hidden, max_bin=ours.targets[0].seen).to(device) for _ in FOUR]
    for own, net in zip(ours.targets, theirs): own.load_state_dict(unmix_state(net.state_dict()))
    stft, _ = transforms.make_filterbanks(n_fft=4096, n_hop=hop, sample_rate=44100)
    encoder = torch.nn.Sequential(stft, model.ComplexNorm(mono=False)).to(device)
    optimisers = [torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-5) for net in theirs]
    def step():
        x, losses = sources.sum(1), []
        for net, optimiser, y in zip(theirs, optimisers, map(torch.Tensor.contiguous, sources.unbind(1))):
            net.train(); optimiser.zero_grad()
            loss = torch.nn.functional.mse_loss(net(encoder(x)), encoder(y)); loss.backward(); optimiser.step(); losses.append(loss.item())
        return sum(losses) / len(losses)
    mine = our_step(ours.to(device).train(), sources, "magnitude_mse")
    return lambda: mine({}), step, ours, theirs

def demucs(args, sources):
    sizes = dict(width=64) if args.published else dict(width=32, depth=3, kernel=16, stride=8, lstm=1, resample=1)
    ours = Demucs(4, 2, **sizes, edges="zero")
    if (REFS / "demucs2").is_dir():
        tools = types.ModuleType("demucs2.utils"); tools.capture_init = lambda f: f
        tools.center_trim = lambda x, like: x[..., (x.shape[-1] - like.shape[-1]) // 2:][..., :like.shape[-1]]
        tools.apply_model = tools.average_metric = None
        sys.path.append(str(REFS)); package("demucs2", REFS / "demucs2/demucs", utils=tools)
        net, augmentations = importlib.import_module("demucs2.model"), importlib.import_module("demucs2.augment"); train = importlib.import_module("demucs2.train").train_model
        named = {} if args.published else dict(depth=3, kernel_size=16, stride=8, lstm_layers=1, resample=False)
        theirs = net.Demucs(list(FOUR), channels=sizes["width"], normalize=True, **named)
        chain = torch.nn.Sequential(augmentations.FlipSign(), augmentations.FlipChannels(), augmentations.Shift(1), augmentations.Remix(group_size=2))
        theirs.to(sources.device).train(); optimiser = torch.optim.Adam(theirs.parameters(), lr=3e-4); data = list(sources.cpu()); length = theirs.valid_length(sources.shape[-1])
        data = [torch.nn.functional.pad(x, (0, length - x.shape[-1])) for x in data]
        def step():
            with open("/dev/null", "w") as nowhere:
                kept, sys.stdout = sys.stdout, nowhere # its progress bar
                try: return train(0, data, theirs, torch.nn.L1Loss(), optimiser, chain, device=sources.device, workers=0, batch_size=len(data))[0]
                finally: sys.stdout = kept
    else: raise ImportError("demucs 2 is not in .refs/demucs2")
    mine = our_step(ours.to(sources.device).train(), sources, "waveform_l1", 3e-4)
    return lambda: mine({"random_shift": {"max_samples": 1}, "swap_channels": {}, "flip_sign": {}, "remix": {"group": 2}}), step, ours, [theirs]

class Parts(torch.nn.Module):
    "asteroid's ConvTasNet from its filterbanks and its separator."
    def __init__(self, stems, *, filters, kernel, bottleneck, hidden, blocks, repeats, skip, mask):
        super().__init__()
        sys.path.append(str(REFS)); package("asteroid", REFS / "asteroid")
        make = importlib.import_module("asteroid_filterbanks").make_enc_dec
        separator = importlib.import_module("asteroid.masknn.convolutional").TDConvNet
        self.encoder, self.decoder = make("free", kernel_size=kernel, n_filters=filters, stride=kernel // 2)
        self.masker = separator(filters, stems, n_blocks=blocks, n_repeats=repeats, bn_chan=bottleneck, hid_chan=hidden, skip_chan=skip, mask_act=mask)

    def forward(self, x):
        w = self.encoder(x)
        return self.decoder(self.masker(w) * w[:, None])[:, :, None]

def tasnet(args, sources): # one channel, as asteroid has it
    sources = sources.mean(2, keepdim=True); wide = dict(filters=512, kernel=16, bottleneck=128, hidden=512, blocks=8, repeats=3)
    sizes = dict(stems=4, skip=128, mask="sigmoid", **(wide if args.published else dict(filters=192, kernel=64, bottleneck=96, hidden=192, blocks=8, repeats=2)))
    theirs = Parts(**sizes).to(sources.device).train(); ours = ConvTasNet.preset("speech", **{"sample_rate": 44100, **sizes})
    ours.load_state_dict(from_asteroid_state(theirs.state_dict())); ours.to(sources.device)
    optimiser = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    def step():
        out = theirs(sources.sum(1)); length = min(out.shape[-1], sources.shape[-1])
        loss = torch.nn.functional.l1_loss(out[..., :length], sources[..., :length])
        optimiser.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(theirs.parameters(), 5.0); optimiser.step()
        return loss.item()
    mine = our_step(ours.train(), sources, "waveform_l1")
    return lambda: mine({}), step, ours, [theirs]

CASES = {"openunmix 1.3.0": openunmix, "demucs 2.0.3": demucs, "asteroid 0.7.0, Conv-TasNet": tasnet}

def serve(args): # one step for every line on stdin, its seconds on stdout
    torch.set_num_threads(args.threads); device, clock = pick_device(args.device), CLOCKS[args.clock]; out = sys.stdout; torch.manual_seed(0)
    def now():
        if device.type == "cuda": torch.cuda.synchronize(device)
        return clock()
    sources = torch.stack([toy_sources(seed_everything(i), seconds=args.seconds, sample_rate=44100, channels=2, stems=list(FOUR)) for i in range(args.batch)]).to(device)
    try: ours, theirs, net, nets = CASES[args.case](args, sources)
    except (ImportError, FileNotFoundError) as e: print(json.dumps(str(e)), flush=True); return 0
    step = ours if args.side == "sepnb" else theirs; torch.use_deterministic_algorithms(args.side == "sepnb", warn_only=True)
    print(json.dumps(sum(p.numel() for n in ([net] if args.side == "sepnb" else nets) for p in n.parameters())), flush=True)
    for _ in sys.stdin: start = now(); step(); print(json.dumps(now() - start), file=out, flush=True)
    return 0

def ask(process, line=""):
    if line: process.stdin.write(line); process.stdin.flush()
    answer = process.stdout.readline()
    if not answer: raise SystemExit("a side of the benchmark ended early; its message stands above")
    return json.loads(answer)

def compare(case, args): # → (s a step, s a step, parameters, parameters), or why it was left out
    command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--side"]
    environment = {**(WIDE if args.path == "stage" else CODE_PATH), **os.environ}
    sides = {k: subprocess.Popen([*command, k], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) for k in ("sepnb", "package")}
    try:
        counts = [ask(p) for p in sides.values()]; refused = [c for c in counts if isinstance(c, str)]
        if refused: return refused[0]
        times = [[ask(p, "\n") for p in sides.values()] for _ in range(args.repeats + WARM)][WARM:]
        return *(median(x) for x in zip(*times)), *counts
    finally:
        for p in sides.values(): p.kill(); p.wait()

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a case's name"); parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1); parser.add_argument("--seconds", type=float, default=2.0); parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: the processor time of this process, for a machine that others use too")
    parser.add_argument("--path", choices=("stage", "avx2"), default="stage", help="of both sides")
    parser.add_argument("--published", action="store_true", help="published sizes, instead of those for the CPU"); parser.add_argument("--device", default="auto")
    parser.add_argument("--case", help=argparse.SUPPRESS); parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args(); slower = False
    if args.side: return serve(args)
    print(f"{args.batch} excerpts of {args.seconds:g} s, four stems, {pick_device(args.device).type}, {args.threads} threads, {args.path} path, {args.clock} clock; s a step, median of {args.repeats}")
    print(f"{'':32}{'sepnb':>10}{'package':>10}{'faster':>10}{'parameters':>24}")
    for case in CASES:
        if args.only not in case: continue
        found = compare(case, args)
        if isinstance(found, str): print(f"{case:32} left out: {found}"); continue
        a, b, mine, other = found; slower |= b < LINE * a
        print(f"{case:32}{a:10.3f}{b:10.3f}{b / a:8.2f} ×{mine:12,}{other:12,}", flush=True)
    return int(slower)

if __name__ == "__main__": sys.exit(main())
