"""Demucs beside the network of the package demucs: the same weights, the same music, real-time factor and peak memory.

Each side runs in a process of its own and is asked for one pass in turn, so that both see the same machine.
usage: python tests/bench/demucs.py [--width 64] [--seconds 10] [--repeats 5] [--threads 1 2]
"""
import argparse, json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

import torch

from sepnb.core import seed_everything
from sepnb.models.demucs import Demucs, from_reference_state
from sepnb.synth import toy_sources

REFS = Path(__file__).parents[2] / ".refs"
RATE, STEMS = 44100, 4

def memory(field): # of this process, MiB, from the kernel's own table
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)).split()[1]) / 1024

def theirs(width): # the package's class, its arguments as in version 2
    sys.path.insert(0, str(REFS)) # before this folder, where this file has the same name
    from demucs.demucs import Demucs as Package
    return Package(["drums", "bass", "other", "vocals"], channels=width, gelu=False, dconv_mode=0, norm_starts=99, lstm_layers=2)

def load(side, width, folder): # weights stay in the file and are shared by all processes
    state = torch.load(folder / "state.pt", mmap=True, weights_only=True)
    with torch.device("meta"): net = theirs(width) if side == "package" else Demucs(STEMS, 2, width=width, edges="zero")
    if side == "sepnb":
        state = from_reference_state(state)
        net.resampler = type(net.resampler)(2)
    torch.nn.Module.load_state_dict(net, state, assign=True) # the package has its own, which knows no `assign`
    return net.eval()

def serve(side, width, threads, folder): # one pass for every line on stdin
    torch.set_num_threads(threads)
    net, mix = load(side, width, folder), torch.load(folder / "mix.pt", weights_only=True)
    touched = sum(float(p.detach().sum()) for p in net.parameters()) # all weights are in memory now
    before = memory("VmRSS")
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.inference_mode(): out = net(mix)
        seconds = time.perf_counter() - start
        torch.save(out, folder / f"{side}.pt")
        print(json.dumps(dict(seconds=seconds, peak=memory("VmHWM"), working=memory("VmHWM") - before, finite=touched == touched)), flush=True)

def ask(process):
    process.stdin.write("\n"); process.stdin.flush()
    line = process.stdout.readline()
    if not line: raise SystemExit("a side of the benchmark ended early; its message stands above")
    return json.loads(line)

def compare(args, threads, folder):
    command = [sys.executable, __file__, "--width", str(args.width), "--threads", str(threads), "--folder", str(folder), "--side"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    sides = {side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
             for side in ("sepnb", "package")}
    try:
        rows = {side: [] for side in sides}
        for turn in range(args.repeats + 1): # the first pass warms up and is not timed
            for side in list(sides)[:: 1 if turn % 2 else -1]: rows[side].append(ask(sides[side]))
    finally:
        for process in sides.values(): os.killpg(process.pid, signal.SIGKILL); process.wait()
    a, b = (torch.load(folder / f"{side}.pt", weights_only=True) for side in sides)
    return {side: dict(rtf=median(r["seconds"] for r in found[1:]) / args.seconds, **found[-1]) for side, found in rows.items()}, float((a - b).abs().max()), float(b.std())

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=64); parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5); parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", help=argparse.SUPPRESS); parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side: return serve(args.side, args.width, args.threads[0], args.folder)
    fine = True
    with tempfile.TemporaryDirectory() as name:
        folder, generator = Path(name), seed_everything(0, threads=1)
        torch.save(toy_sources(generator, seconds=args.seconds, sample_rate=RATE).sum(0)[None], folder / "mix.pt")
        net = theirs(args.width); torch.save(net.state_dict(), folder / "state.pt")
        print(f"{args.seconds:g} s of stereo at {RATE} Hz, width {args.width}, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters; torch {torch.__version__}")
        del net
        print(f"{'':12}{'real-time factor':>34}{'peak of the process, MiB':>36}{'beyond its weights, MiB':>36}")
        print(f"{'threads':12}" + f"{'sepnb':>12}{'package':>12}{'ratio':>10}" + 2 * f"{'sepnb':>14}{'package':>12}{'ratio':>10}")
        for threads in args.threads:
            found, worst, level = compare(args, threads, folder)
            ours, package = found["sepnb"], found["package"]
            cells = "".join(f"{ours[k]:{w}.{d}f}{package[k]:12.{d}f}{ours[k] / package[k]:10.2f}" for k, w, d in (("rtf", 12, 3), ("peak", 14, 0), ("working", 14, 0)))
            print(f"{threads:<12}{cells}    largest difference {worst:.1e} of a deviation {level:.3f}", flush=True)
            fine &= worst < 1e-4 and ours["rtf"] <= package["rtf"] and ours["peak"] < package["peak"]
    return 0 if fine else 1

if __name__ == "__main__": sys.exit(main())
