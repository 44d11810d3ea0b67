"""Speed of nonnegative matrix factorisation beside scikit-learn's multiplicative updates, from the same start; both on one thread, medians.
The exit code is 1 if one is slower than scikit-learn, or if the costs after as many iterations differ by more than 10⁻⁶ (single precision: 10⁻⁵).

usage: python tests/bench/nmf.py [--seconds 30] [--rank 32] [--iterations 30] [--repeats 3]
"""
import argparse, sys, time, warnings
from statistics import median

import sklearn
import torch
from threadpoolctl import threadpool_limits
from sklearn.decomposition import non_negative_factorization

from sepnb.classical.nmf import DIVERGENCES, divergence, factorise
from sepnb.core import seed_everything
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

RATE = 44100
THEIRS = dict(euclidean="frobenius", kullback_leibler="kullback-leibler", itakura_saito="itakura-saito")

def timed(repeats, *calls): # alternately, so that all see the same machine
    times, results = [[] for _ in calls], [None for _ in calls]
    for _ in range(repeats):
        for k, call in enumerate(calls):
            start = time.process_time(); results[k] = call(); times[k].append(time.process_time() - start) # CPU time: others may compute, too
    return [median(seen) for seen in times], results

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=30); parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    threadpool_limits(1) # NumPy's BLAS too
    g = seed_everything(0, threads=1); warnings.simplefilter("ignore") # it would like to go on
    mix = toy_sources(g, seconds=args.seconds, sample_rate=RATE).sum(0)
    mix += 0.01 * torch.randn(mix.shape, generator=g)
    mag = magnitude(STFT(4096, 1024)(mix)).transpose(0, 1).flatten(1).contiguous()
    w, h = 0.1 + torch.rand(len(mag), args.rank, generator=g), 0.1 + torch.rand(args.rank, mag.shape[1], generator=g)
    print(f"{args.seconds:g} s of stereo at {RATE} Hz: {len(mag)} × {mag.shape[1]}, rank {args.rank}, {args.iterations} iterations; scikit-learn {sklearn.__version__}")
    print(f"{'':26}{'sepnb':>11}{'scikit-learn':>15}{'faster':>9}   costs differ by")
    failed = False
    for dtype in (torch.float32, torch.float64):
        v, w0, h0 = (x.to(dtype) for x in (mag, w, h))
        for kind in DIVERGENCES:
            def theirs(): return non_negative_factorization(v.numpy(), W=w0.numpy().copy(), H=h0.numpy().copy(), n_components=args.rank, init="custom", solver="mu", beta_loss=THEIRS[kind], tol=0, max_iter=args.iterations)[:2]
            (ours_s, theirs_s), (a, b) = timed(args.repeats, lambda: factorise(v, w=w0, h=h0, divergence=kind, iterations=args.iterations), theirs)
            costs = [float(divergence(v.double(), x.double() @ y.double(), kind=kind)) for x, y in (a, map(torch.from_numpy, b))]
            apart = abs(costs[0] / costs[1] - 1); failed |= ours_s > theirs_s or apart > (1e-6 if dtype == torch.float64 else 1e-5)
            print(f"{kind:17}{str(dtype)[6:]:9}{ours_s:9.3f} s{theirs_s:13.3f} s{theirs_s / ours_s:8.1f} ×   {apart:.0e}")
    return 1 if failed else 0

if __name__ == "__main__": sys.exit(main())
