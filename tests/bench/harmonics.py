"""Cost of the harmonic maps beside the network that they feed: CPU time on one thread, medians of alternate runs.

usage: python tests/bench/harmonics.py [--frames 128] [--repeats 5] [--tables 30M 9M 3M]
"""
import argparse, sys, time
from statistics import median

import torch

from sepnb.core import seed_everything
from sepnb.models.deep_unet import TABLES, TableUNet
from sepnb.models.harmonics import HarmonicMaps

def timed(repeats, *calls): # CPU time, alternately: other programs hardly matter
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seen in zip(calls, times):
            start = time.process_time(); call(); seen.append(time.process_time() - start)
    return [median(seen) for seen in times]

@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=128); parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bins", type=int, default=1024); parser.add_argument("--tables", nargs="+", default=["30M", "9M", "3M"])
    args = parser.parse_args(); seed_everything(0, threads=1)
    mag, layer, worst = torch.rand(1, 2, args.bins, args.frames), HarmonicMaps("5h+3d", args.bins), 0.0
    maps = layer(mag)
    print(f"2 channels, {args.bins} bins, {args.frames} frames, 14 maps a channel")
    for name in args.tables:
        net = TableUNet(28, 2, args.bins, TABLES[name]).eval(); net(maps)
        ours, whole = timed(args.repeats, lambda: layer(mag), lambda: net(maps))
        share = ours / (ours + whole); worst = max(worst, share)
        print(f"{name:12} maps {1e3 * ours:8.1f} ms, network {1e3 * whole:9.1f} ms, share of the maps {100 * share:.2f} %")
    print(f"largest share {100 * worst:.2f} % (goal: 3 %)")
    return 0 if worst <= 0.03 else 1

if __name__ == "__main__": sys.exit(main())
