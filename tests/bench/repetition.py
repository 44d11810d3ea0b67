"""Speed of REPET-SIM beside a direct implementation and librosa's nn_filter, and its memory on a long song; one thread, medians of several runs.

usage: python tests/bench/repetition.py [--seconds 30] [--repeats 3] [--memory-seconds 600] [--only-memory] [--limit 2e9]      (0 seconds: no such run)

The exit code is 1 if a result differs, is slower, or if ten minutes (less in proportion) take more bytes than the limit, the libraries
included. Memory does not depend on how many frames are asked for, so `--only-memory` asks for 4 instead of 100 and takes a third of the time.
"""
import argparse, subprocess, sys, time
from statistics import median

import librosa
import numpy as np
import scipy.sparse
import torch
from threadpoolctl import threadpool_limits

from sepnb.classical.repet import beat_spectrum, find_period, periodic_model, similar_frames, similarity_model
from sepnb.core import seed_everything
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

RATE, COUNT, DISTANCE = 44100, 100, 43 # 43 frames: a second

def direct(mag, count, distance): # the papers' steps, a frame at a time; `(c, f, n)` → `(c, f, n)`
    frames = mag.shape[-1]; rows = mag.reshape(-1, frames)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    like, model = unit.T @ unit, np.empty_like(mag)
    for n in range(frames):
        row, peaks = like[n], []
        for m in range(frames):
            low, high = max(0, m - distance + 1), m + distance
            if row[m] > 0 and row[m] >= row[low:high].max(): peaks.append(m)
        best = sorted(peaks, key=lambda m: -row[m])[:count]
        model[..., n] = np.median(mag[..., best], axis=-1)
    return model

def direct_vectors(mag, count, distance): # the same with whole-matrix calls where NumPy and SciPy have them
    frames = mag.shape[-1]; rows = mag.reshape(-1, frames)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
    like, model = unit.T @ unit, np.empty_like(mag)
    top = scipy.ndimage.maximum_filter1d(like, 2 * distance - 1, axis=1, mode="constant", cval=-1)
    for n in range(frames):
        at = np.flatnonzero((like[n] == top[n]) & (like[n] > 0))
        model[..., n] = np.median(mag[..., at[np.argsort(-like[n, at])[:count]]], axis=-1)
    return model

def ours(mag): return similarity_model(mag, similar_frames(mag, count=COUNT, distance=DISTANCE))

def nn_filter(mag): # as many neighbours as we find; outside ± a second
    frames = mag.shape[-1]; rows = mag.reshape(-1, frames)
    return librosa.decompose.nn_filter(rows, aggregate=np.median, metric="cosine", k=min(COUNT, frames // DISTANCE), width=DISTANCE).reshape(mag.shape)

def timed(repeats, *calls): # alternately, so that all see the same machine
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seen in zip(calls, times):
            start = time.process_time(); call(); seen.append(time.process_time() - start)
    return [median(seen) for seen in times]

def memory(name, seconds, settings): # in a process of its own, bytes
    code = ("import sys, torch; from sepnb.separator import build; torch.set_num_threads(1); "
            "peak = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')); "
            f"system = build('{name}', **{settings!r}); base = peak(); "
            f"x = 0.1 * torch.randn(2, {round(seconds * RATE)}, generator=torch.Generator().manual_seed(0)); out = system(x, {RATE}); "
            "print(base, peak())")
    base, peak = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    return base * 1024, peak * 1024

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-seconds", type=float, default=600.0); parser.add_argument("--limit", type=float, default=2e9)
    parser.add_argument("--only-memory", action="store_true")
    args = parser.parse_args()
    threadpool_limits(1) # NumPy's BLAS too
    fine = args.only_memory or speed(args)
    return 0 if within(args) and fine else 1

def speed(args): # whether all is equal and nothing slower
    mix = toy_sources(seed_everything(0, threads=1), seconds=args.seconds, sample_rate=RATE).sum(0)
    mix += 0.01 * torch.randn(mix.shape, generator=torch.Generator().manual_seed(1)) # no two frames alike to the last digit
    mag = magnitude(STFT(2048, 1024)(mix)); flat = mag.numpy()
    print(f"{args.seconds:g} s of stereo at {RATE} Hz, {mag.shape[-1]} frames; librosa {librosa.__version__}, numpy {np.__version__}; CPU seconds")
    repeats = similar_frames(mag, count=COUNT, distance=DISTANCE)
    pointers = np.cumsum([0] + [len(at) for at in repeats])
    links = scipy.sparse.csc_matrix((np.ones(pointers[-1]), np.concatenate(repeats), pointers), shape=(mag.shape[-1],) * 2)
    def same_frames(): return librosa.decompose.nn_filter(flat.reshape(-1, mag.shape[-1]), rec=links, aggregate=np.median)
    worst = float(np.abs(similarity_model(mag, repeats).numpy().reshape(-1, mag.shape[-1]) - same_frames()).max())
    wrong = float(np.abs(direct_vectors(flat, COUNT, DISTANCE) - ours(mag).numpy()).mean() / flat.mean())
    print(f"largest difference from nn_filter with the same frames {worst:.1e}; mean difference from the direct implementation {wrong:.1e}")
    slow = []
    for name, own, theirs in (("model, direct, in loops", lambda: ours(mag), lambda: direct(flat, COUNT, DISTANCE)),
                              ("model, direct but whole-matrix calls", lambda: ours(mag), lambda: direct_vectors(flat, COUNT, DISTANCE)),
                              ("model, librosa nn_filter", lambda: ours(mag), lambda: nn_filter(flat)),
                              ("medians alone, librosa nn_filter", lambda: similarity_model(mag, repeats), same_frames)):
        a, b = timed(args.repeats, own, theirs)
        print(f"{name:40}{a:9.3f} s{b:9.3f} s{b / a:8.1f} ×")
        slow.append(b < (3 if "in loops" in name else 1) * a)
    period = find_period(beat_spectrum(mag), shortest=35, longest=345)
    print(f"{'REPET: beat spectrum and period, model':40}" + "".join(f"{t:9.3f} s" for t in timed(args.repeats, lambda: beat_spectrum(mag), lambda: periodic_model(mag, period))))
    return worst <= 1e-5 and not any(slow)

def within(args): # whether memory stays below the limit
    over = []
    for name, settings in (("repet_sim", dict(count=4) if args.only_memory else {}), ("repet", {})) if args.memory_seconds else ():
        for seconds in (args.memory_seconds / 4, args.memory_seconds):
            base, peak = memory(name, seconds, settings)
            print(f"{name:10} {seconds:6g} s of stereo: peak {peak / 1e6:6.0f} MB (10⁶ bytes), of which {base / 1e6:.0f} MB are the libraries; {(peak - base) / 1e6 / seconds:.2f} MB for a second", flush=True)
            over.append(peak > args.limit * max(1, seconds / 600))
    return not any(over)

if __name__ == "__main__": sys.exit(main())
