"""Speed and memory of sepnb.metrics.bsseval_v4 beside museval's, in one process, on the same signals.

usage: python tests/bench/bsseval.py [--seconds 30] [--repeats 3] [--signal noise|music] [--stems 4] [--threads 2] [--device cpu]

Four stereo stems at 44.1 kHz, single precision. `music`: toy songs with the noise floor of 16 bits. Runs alternate (ours, museval, ours, …) and
medians of clock and processor time are printed: other work on the machine spoils the clock, hardly the second. Peak memory (Linux) is measured in a
process of its own each, above what was in use before the inputs were read: with the inputs (as singles), and what came on top of them.
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from sepnb.bsseval import bsseval_v4, museval_v4
from sepnb.core import seed_everything
from sepnb.synth import toy_sources

RATE = 44100
RUNS = dict(sepnb=bsseval_v4, museval=museval_v4)


def make(args):
    "Estimates and sources, (stems, 2, samples), float32: leakage and noise at -20 dB."
    g = seed_everything(0, threads=args.threads)
    shape = args.stems, 2, round(args.seconds * RATE)
    if args.signal == "noise": sources = torch.randn(shape, generator=g).mul_(0.1)
    else:
        sources = torch.cat([toy_sources(g, seconds=args.seconds, sample_rate=RATE) for _ in range(-(-args.stems // 4))])[:args.stems]
        for stem in sources: stem.add_(torch.rand(stem.shape, generator=g).sub_(0.5), alpha=2**-15).mul_(2**15).round_().div_(2**15)
    estimates = torch.empty_like(sources)
    for j, estimate in enumerate(estimates):
        estimate.copy_(sources[j]).add_(sources[j - 1], alpha=0.1).add_(torch.randn(shape[1:], generator=g), alpha=0.005)
    return estimates.to(args.device), sources.to(args.device)


def status_mb(key): # VmRSS: now; VmHWM: the peak so far (not ru_maxrss, which a child inherits)
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)) / 1024


def memory(args):
    "Print inputs and peak above the start, MB; imports and a first small run are not counted."
    warm = torch.randn(2, 2, 8000)
    RUNS[args.memory](warm, warm + 0.1 * warm.flip(1), sample_rate=4000)
    before = status_mb("VmRSS")
    pair = [torch.from_numpy(np.load(Path(args.folder, f"{name}.npy"))) for name in ("estimates", "sources")]
    RUNS[args.memory](*pair, sample_rate=RATE)
    print(sum(x.nbytes for x in pair) / 2**20, status_mb("VmHWM") - before)


def print_memory(name, folder):
    out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory", name, "--folder", folder], capture_output=True, text=True, check=True).stdout.split()
    inputs, peak = map(float, out[-2:])
    print(f"peak memory of {name}: {peak:.0f} MB with inputs of {inputs:.0f} MB: {peak / inputs:.2f} times; on top of the inputs {peak - inputs:.0f} MB, {peak / inputs - 1:.2f} times")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--signal", choices=("noise", "music"), default="noise")
    parser.add_argument("--stems", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", choices=tuple(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--skip-memory", action="store_true", help="no second run for memory")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.memory: return memory(args)
    pair = make(args); times = {name: [] for name in RUNS}; scores = {}
    for _ in range(args.repeats):
        for name, run in RUNS.items():
            start = time.perf_counter(), time.process_time(); scores[name] = torch.stack(run(*pair, sample_rate=RATE))
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    print(f"{args.seconds:g} s, {args.stems} stereo stems of {args.signal}, {args.threads} threads, median of {args.repeats}:")
    for kind, ours, theirs in zip(("clock", "processor"), zip(*times["sepnb"]), zip(*times["museval"])):
        mine, other = statistics.median(ours), statistics.median(theirs)
        print(f"  {kind:9} sepnb {mine:.2f} s (best {min(ours):.2f}), museval {other:.2f} s (best {min(theirs):.2f}): {other / mine:.1f} times faster")
    off = (scores["sepnb"] - scores["museval"]).abs().nan_to_num(0).amax((1, 2)).tolist()
    print("largest deviation, dB: " + ", ".join(f"{k} {v:.1e}" for k, v in zip(("SDR", "ISR", "SIR", "SAR"), off)))
    if args.skip_memory: return
    with tempfile.TemporaryDirectory() as folder:
        for name, x in zip(("estimates", "sources"), pair): np.save(Path(folder, name), x.cpu().numpy())
        del pair, x
        for name in RUNS: print_memory(name, folder)


if __name__ == "__main__": main()
