"""Speed of the block similarity (thesis equation 3.2) by diagonal sums beside the equation itself, on one thread.

The direct route cuts the blocks out and multiplies them: one matrix product for a row, norms and cut blocks shared by several rows.
It is timed on a few rows and scaled to all of them; ours computes all rows. Both alternately, medians.

usage: python tests/bench/similarity.py [--seconds 180] [--rows 4] [--repeats 3]
"""
import argparse, sys, time
from statistics import median

import torch

from sepnb.core import seed_everything
from sepnb.similarity import find_phrases, similarity_rows
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

def direct_rows(mag, rows, block=64, chunk=256): # (r, m): equation 3.2 with the blocks cut out
    count = mag.shape[-1] - block + 1; out = torch.zeros(len(rows), count, dtype=mag.dtype)
    for s in mag:
        cut = s.T.unfold(0, block, 1) # (m, f, block), a view
        mine = torch.stack([cut[m].flatten() for m in rows]); norm = mine.norm(dim=1)
        for a in range(0, count, chunk):
            blocks = cut[a:a + chunk].flatten(1)
            out[:, a:a + chunk] += mine @ blocks.T / (norm[:, None] * blocks.norm(dim=1))
    return out

def timed(repeats, *calls): # alternately, so that both see the same machine
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seen in zip(calls, times):
            start = time.perf_counter(); call(); seen.append(time.perf_counter() - start)
    return [median(seen) for seen in times]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0); parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4, help="rows that the direct route is timed on")
    args = parser.parse_args()
    song = toy_sources(seed_everything(0, threads=1), seconds=args.seconds).sum(0)
    mag = magnitude(STFT(2048, 512)(song)); count = mag.shape[-1] - 63
    rows = torch.linspace(0, count - 1, args.rows).long().tolist()
    def ours(): # all rows, none kept: what find_phrases holds in memory
        for a in range(0, count, 512): similarity_rows(mag, a, min(a + 512, count))
    worst = max(float((similarity_rows(mag, m, m + 1)[0] - want).abs().max()) for m, want in zip(rows, direct_rows(mag.double(), rows)))
    ours_s, direct_s, one_s, phrases_s = timed(args.repeats, ours, lambda: direct_rows(mag, rows), lambda: direct_rows(mag, rows[:1]), lambda: find_phrases(mag))
    print(f"{args.seconds:g} s of stereo at 16 kHz, STFT 2048/512: {count} blocks of 64 frames, {mag.shape[1]} bins")
    print(f"largest difference from the equation in float64 on {args.rows} rows: {worst:.1e}")
    print(f"{'all rows by diagonal sums':46}{ours_s:9.2f} s")
    print(f"{'with peak picking, K = 7':46}{phrases_s:9.2f} s")
    for name, seconds, r in (("directly, a row at a time (scaled)", one_s, 1), (f"directly, {args.rows} rows sharing the cut blocks (scaled)", direct_s, args.rows)):
        print(f"{name:46}{seconds / r * count:9.0f} s{seconds / r * count / ours_s:9.0f} × slower")
    return 0 if worst < 1e-5 and direct_s / args.rows * count > 50 * ours_s else 1

if __name__ == "__main__": sys.exit(main())
