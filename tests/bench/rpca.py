"""Speed of robust principal components beside the direct algorithm (a whole singular value decomposition in each step); one thread.

usage: python tests/bench/rpca.py [--seconds 30] [--tolerance 1e-3] [--repeats 1]
"""
import argparse, math, sys, time
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sepnb.classical.rpca import rpca
from sepnb.core import seed_everything
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

RATE = 44100

def direct(x, tolerance, svd): # Lin, Chen and Ma (2010), algorithm 5, as it stands
    weight, two, norm = 1 / math.sqrt(max(x.shape)), np.linalg.norm(x, 2), np.linalg.norm(x)
    y, mu, s = x / max(two, np.abs(x).max() / weight), 1.25 / two, np.zeros_like(x)
    for step in range(100):
        u, sigma, vh = svd(x - s + y / mu)
        keep = sigma > 1 / mu
        low = (u[:, keep] * (sigma[keep] - 1 / mu)) @ vh[keep]
        s = x - low + y / mu; s = np.sign(s) * np.maximum(np.abs(s) - weight / mu, 0)
        rest = x - low - s; y, mu = y + mu * rest, 1.5 * mu
        if np.linalg.norm(rest) < tolerance * norm: return low, s

def numpy_svd(a): return np.linalg.svd(a, full_matrices=False)
def torch_svd(a): return [v.numpy() for v in torch.linalg.svd(torch.from_numpy(a), full_matrices=False)]

def planted(rows, columns, rank, share):
    g = torch.Generator().manual_seed(0)
    low = torch.randn(rows, rank, generator=g, dtype=torch.float64) @ torch.randn(rank, columns, generator=g, dtype=torch.float64)
    return low, torch.where(torch.rand(rows, columns, generator=g) < share, 10 * torch.randn(rows, columns, generator=g, dtype=torch.float64), 0)

def timed(repeats, *calls): # alternately, so that all see the same machine
    times, results = [[] for _ in calls], [None for _ in calls]
    for _ in range(repeats):
        for k, call in enumerate(calls):
            start = time.process_time(); results[k] = call(); times[k].append(time.process_time() - start)
    return [median(seen) for seen in times], results

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--tolerance", type=float, default=1e-3); parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    threadpool_limits(1) # NumPy's BLAS too
    seed_everything(0, threads=1)
    low, sparse = planted(1000, 800, 20, 0.05)
    mix = toy_sources(torch.Generator().manual_seed(0), seconds=args.seconds, sample_rate=RATE).sum(0)
    mix += 0.01 * torch.randn(mix.shape, generator=torch.Generator().manual_seed(1))
    mag = magnitude(STFT(2048, 1024)(mix)).flatten(0, 1)
    failed = False
    for title, x, tolerance in (("planted, rank 20 of 800, float64", low + sparse, 1e-7), (f"{args.seconds:g} s of stereo, {len(mag)} × {mag.shape[1]}, float32", mag, args.tolerance)):
        (own, whole, plain), (ours, theirs, _) = timed(args.repeats, lambda: rpca(x, tolerance=tolerance), lambda: direct(x.numpy(), tolerance, torch_svd), lambda: direct(x.numpy(), tolerance, numpy_svd))
        apart = float((ours[0] - torch.from_numpy(theirs[0])).norm() / ours[0].norm())
        rank = int(torch.linalg.matrix_rank(ours[0], rtol=1e-4))
        print(f"{title}, to {tolerance:g}: {own:.1f} s; direct with torch's decomposition {whole:.1f} s ({whole / own:.1f} ×), with NumPy's {plain:.1f} s ({plain / own:.1f} ×); "
              f"rank {rank}, low ranks differ by {apart:.0e}")
        failed |= min(whole, plain) < (3 if "planted" in title else 1) * own or apart > 0.03
    error = float((rpca(low + sparse)[0] - low).norm() / low.norm())
    print(f"planted low rank recovered to {error:.0e}")
    return 1 if failed or error > 1e-6 else 0

if __name__ == "__main__": sys.exit(main())
