"""Cost of generated songs: processor seconds a second of audio, programs that they call included, with the recorded instruments and voices.

usage: python tests/bench/songs.py [--songs 8] [--seconds 25] [--split train] [--assets full|smoke] [--cache DIR] [--seed 0] [--profile]

One process, one thread. The first song, which opens fonts and kits, is told apart; the mean of the others is the cost of a long run. The target is
0.35 or less. --profile prints where the time goes.
"""
import argparse
import cProfile
import os
import pstats
import statistics
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))
import torch

from sepnb.music.song import gather, make_song


def spent(): # s of this process and of the programs it waited for
    t = os.times(); return t.user + t.system + t.children_user + t.children_system


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--songs", type=int, default=8); p.add_argument("--seconds", type=float, default=25.0); p.add_argument("--split", default="train")
    p.add_argument("--assets", default="full"); p.add_argument("--cache"); p.add_argument("--seed", type=int, default=0); p.add_argument("--profile", action="store_true")
    args = p.parse_args(); torch.set_num_threads(1)
    materials = gather(args.assets, cache_dir=args.cache); profile, costs = cProfile.Profile(), []
    for i in range(args.songs):
        if args.profile and i == 1: profile.enable()
        before = spent(); _, facts = make_song(args.split, i, seed=args.seed, seconds=args.seconds, materials=materials); costs.append((spent() - before) / args.seconds)
        print(f"{args.split} {i}: {costs[-1]:.3f} CPU-s/s  {facts['style']}, {facts['voice']}, {facts['instruments']}, {facts['drums']}, {facts['attempt'] + 1} attempt(s)", flush=True)
    profile.disable()
    print(f"first {costs[0]:.3f}; others: mean {statistics.mean(costs[1:] or costs):.3f}, worst {max(costs[1:] or costs):.3f} CPU-seconds a second of audio")
    if args.profile: pstats.Stats(profile).sort_stats("cumtime").print_stats(25)
    return int(statistics.mean(costs[1:] or costs) > 0.35)


if __name__ == "__main__":
    sys.exit(main())
