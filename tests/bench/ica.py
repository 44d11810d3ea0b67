"""Speed of FastICA beside scikit-learn's, and of complex ICA beside one bin after the other; one thread, medians of several runs.

usage: python tests/bench/ica.py [--seconds 30] [--repeats 5]
"""
import argparse, sys, time, warnings
from statistics import median

import numpy as np
import sklearn
import torch
from threadpoolctl import threadpool_limits
from sklearn.decomposition import FastICA

from sepnb.classical.ica import align_orders, complex_ica, fast_ica, images
from sepnb.core import seed_everything
from sepnb.stft import STFT
from sepnb.synth import toy_sources

RATE = 44100

def timed(repeats, *calls): # alternately, so that all see the same machine
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seen in zip(calls, times):
            start = time.process_time(); call(); seen.append(time.process_time() - start)
    return [median(seen) for seen in times]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(); warnings.simplefilter("ignore")
    threadpool_limits(1) # NumPy's BLAS too
    band = toy_sources(seed_everything(0, threads=1), seconds=args.seconds, sample_rate=RATE, stems=["drums", "vocals"], channels=1)[:, 0]
    mix = torch.tensor([[0.3, 0.8], [1.0, 0.7]]) @ band; samples = mix.numpy().T.copy()
    def theirs(**settings): return FastICA(2, whiten="unit-variance", random_state=0, **settings).fit(samples)
    own, model = fast_ica(mix), theirs(tol=1e-7)
    a, b = own @ (mix - mix.mean(1, keepdim=True)), torch.from_numpy(model.transform(samples).T.astype(np.float32))
    match = (a @ b.T / ((a @ a.T).diag()[:, None] * (b @ b.T).diag()).sqrt()).abs()
    print(f"{args.seconds:g} s of stereo at {RATE} Hz; scikit-learn {sklearn.__version__}; correlation of the components {float(match.amax(1).min()):.6f}; CPU seconds")
    slow = []
    for name, settings in (("FastICA, as it comes", {}), ("FastICA, whitened by eigenvectors", dict(whiten_solver="eigh"))):
        own_s, their_s = timed(args.repeats, lambda: fast_ica(mix), lambda: theirs(**settings))
        print(f"{name:40}{own_s:9.3f} s{their_s:9.3f} s{their_s / own_s:8.1f} ×"); slow.append(their_s < own_s)
    spec = STFT(4096, 1024)(mix)
    def each_bin(): return torch.cat([complex_ica(spec[:, f:f + 1]) for f in range(100)])
    own_s, their_s = timed(args.repeats, lambda: complex_ica(spec[:, :100]), each_bin)
    print(f"{'complex ICA, 100 bins: blocks, one by one':40}{own_s:9.3f} s{their_s:9.3f} s{their_s / own_s:8.1f} ×"); slow.append(their_s < own_s)
    parts = images(complex_ica(spec), spec.transpose(0, 1)); power = parts.abs().square().sum(2)
    print(f"{'all bins, and their order':40}" + "".join(f"{t:9.3f} s" for t in timed(args.repeats, lambda: complex_ica(spec), lambda: align_orders(power))))
    return 1 if any(slow) or match.amax(1).min() < 0.999 else 0

if __name__ == "__main__": sys.exit(main())
