"""Speed of the harmonic-percussive masks beside librosa's, on the same magnitudes; both on one thread, medians of several runs.

usage: python tests/bench/hpss.py [--seconds 30] [--repeats 5]
"""
import argparse, sys, time
from statistics import median

import librosa
import numpy as np
import scipy
from scipy.ndimage import median_filter

from sepnb.classical.hpss import hpss_masks, median_along
from sepnb.core import seed_everything
from sepnb.separator import build
from sepnb.stft import STFT, magnitude
from sepnb.synth import toy_sources

def timed(repeats, *calls): # alternately, so that both see the same machine
    times = [[] for _ in calls]
    for _ in range(repeats):
        for call, seen in zip(calls, times):
            start = time.perf_counter(); call(); seen.append(time.perf_counter() - start)
    return [median(seen) for seen in times]

def row(name, ours_s, theirs_s): print(f"{name:46}{ours_s:9.3f} s{theirs_s:9.3f} s{theirs_s / ours_s:8.1f} ×")

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rate = 44100
    mix = toy_sources(seed_everything(0, threads=1), seconds=args.seconds, sample_rate=rate).sum(0)
    stft = STFT(4096, 1024); spec = stft(mix); mag = magnitude(spec); flat = mag.numpy()
    ours, theirs = hpss_masks(mag), np.stack(librosa.decompose.hpss(flat, mask=True))
    worst = float(np.abs(ours.numpy() - theirs).max())
    print(f"{args.seconds:g} s of stereo at {rate} Hz, {mag.numel():,} bins; librosa {librosa.__version__}, scipy {scipy.__version__}")
    print(f"largest difference of the masks {worst:.1e}")
    print(f"{'':46}{'sepnb':>11}{'reference':>11}{'faster':>10}")
    for axis, dim, size in (("time", -1, (1, 1, 31)), ("frequency", -2, (1, 31, 1))):
        row(f"median along {axis}, scipy's image filter",
            *timed(args.repeats, lambda: median_along(mag, 31, dim=dim), lambda: median_filter(flat, size=size)))
    row("masks, librosa.decompose.hpss",
        *timed(args.repeats, lambda: hpss_masks(mag), lambda: librosa.decompose.hpss(flat, mask=True)))
    worst = max(worst, float(np.abs(hpss_masks(mag, margin=2.0)[:2].numpy() - np.stack(librosa.decompose.hpss(flat, mask=True, margin=2.0))).max()))
    row("masks and residual with a margin of 2",
        *timed(args.repeats, lambda: hpss_masks(mag, margin=2.0), lambda: librosa.decompose.hpss(flat, mask=True, margin=2.0)))
    hpss, wave = build("hpss", ["drums", "rest"]), mix.numpy()
    row("song to stems, librosa.effects.hpss",
        *timed(args.repeats, lambda: hpss(mix, rate), lambda: librosa.effects.hpss(wave, n_fft=4096, hop_length=1024)))
    return 0 if worst < 1e-5 else 1

if __name__ == "__main__": sys.exit(main())
