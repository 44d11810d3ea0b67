"""Speed and memory of the multichannel Wiener filter beside norbert's, on the same spectrograms; alternately, medians, each run in a process of its own for memory.

usage: python tests/bench/wiener.py [--seconds 60] [--repeats 3] [--threads 1]
"""
import argparse, importlib, json, os, resource, subprocess, sys, time, types
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / ".refs"))
EPS = 2.0**-52

def inputs(seconds, double):
    "Four stereo stems of music-like statistics: a spectrogram, magnitudes."
    g = torch.Generator().manual_seed(0); frames = -(-round(seconds * 44100) // 1024) + 1
    real = torch.float64 if double else torch.float32
    mag = torch.rand(4, 2, 2049, frames, generator=g, dtype=real).mul_(20)
    return torch.randn(2, 2049, frames, generator=g, dtype=torch.complex128 if double else torch.complex64).mul_(20), mag

def theirs(spec, mag):
    import numpy as np, scipy.ndimage
    if "scipy.ndimage.filters" not in sys.modules: # norbert imports a name that newer scipy has elsewhere
        try: importlib.import_module("scipy.ndimage.filters")
        except ImportError: sys.modules["scipy.ndimage.filters"] = types.SimpleNamespace(gaussian_filter1d=scipy.ndimage.gaussian_filter1d)
    import norbert
    x, v = np.ascontiguousarray(spec.permute(2, 1, 0).numpy()), np.ascontiguousarray(mag.permute(3, 2, 1, 0).numpy()) # its own layout, and a copy: it writes into its input
    norbert.wiener(v[:9, :9].copy(), x[:9, :9].copy(), iterations=1, use_softmask=False, eps=EPS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(); y = norbert.wiener(v, x, iterations=1, use_softmask=False, eps=EPS)
    return time.perf_counter() - start, torch.from_numpy(y).permute(3, 2, 1, 0), before

def ours(spec, mag):
    from sepnb.wiener import wiener
    wiener(spec[:, :9, :9], mag[:, :, :9, :9])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(); y = wiener(spec, mag, conserve=False)
    return time.perf_counter() - start, y, before

def one(name, seconds, double): # in a process of its own: seconds, peak above the inputs in MB, a few numbers of the result
    spec, mag = inputs(seconds, double)
    wall, y, before = dict(norbert=theirs, sepnb=ours)[name](spec, mag)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    some = torch.view_as_real(y[:, :, ::97, ::101].contiguous()).double().flatten().tolist()
    print(json.dumps(dict(wall=wall, peak=peak, some=some)))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0); parser.add_argument("--repeats", type=int, default=3); parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one"); parser.add_argument("--double", action="store_true")
    args = parser.parse_args(); torch.set_num_threads(args.threads)
    if args.one: return one(args.one, args.seconds, args.double)
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    runs = {(name, double): [] for name, double in (("norbert", True), ("sepnb", True), ("norbert", False), ("sepnb", False))}
    for _ in range(args.repeats):
        for (name, double), seen in runs.items():
            command = [sys.executable, __file__, "--one", name, "--seconds", str(args.seconds), "--threads", str(args.threads)] + ["--double"] * double
            seen.append(json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout))
    print(f"4 stereo stems, {args.seconds:g} s, 4096/1024, 1 iteration, {args.threads} thread(s); memory is what is needed above the inputs, result included")
    result = {key: (median(r["wall"] for r in seen), median(r["peak"] for r in seen), torch.tensor(seen[0]["some"], dtype=torch.float64)) for key, seen in runs.items()}
    for key, (wall, peak, _) in result.items(): print(f"{key[0]:8} {'double' if key[1] else 'single':7} {wall:7.2f} s {peak:8.0f} MB")
    reference, low = result["norbert", True], result["sepnb", False]
    worst = float((result["sepnb", True][2] - reference[2]).abs().max() / reference[2].abs().max())
    print(f"largest difference in double precision {worst:.1e}")
    for label, mine in (("single precision in and out", low), ("double", result["sepnb", True])):
        print(f"norbert as recommended (double) / sepnb {label}: {reference[0] / mine[0]:.1f} × faster, {mine[1] / reference[1]:.2f} of its memory")
    print(f"both in single precision: {result['norbert', False][0] / low[0]:.1f} × faster, {low[1] / result['norbert', False][1]:.2f} of its memory")
    return 0 if worst < 1e-6 else 1

if __name__ == "__main__": sys.exit(main())
