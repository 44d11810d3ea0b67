"""Speed of YIN and of the salience beside librosa's yin, pyin and salience; one thread, medians of several runs.

usage: python tests/bench/sinusoidal.py [--seconds 30] [--repeats 3]      (pyin on a tenth of that)
"""
import argparse, sys, time
from statistics import median

import librosa
import numpy as np
from scipy.interpolate import interp1d
from threadpoolctl import threadpool_limits

from sepnb.classical.sinusoidal import best_path, pitch_grid, salience, yin
from sepnb.core import seed_everything
from sepnb.stft import STFT, magnitude
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
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    threadpool_limits(1) # NumPy's BLAS too
    x = toy_sources(seed_everything(0, threads=1), seconds=args.seconds, sample_rate=RATE, stems=["vocals"])[0]
    wave = x[0].numpy(); how = dict(fmin=80, fmax=1000, sr=RATE, frame_length=2048, hop_length=512)
    def own(): return yin(x[0], sample_rate=RATE)
    def theirs(): return librosa.yin(wave, **how)
    ours, depth = own(); n = min(len(ours), len(theirs())); clear = depth[:n].numpy() < 0.02
    agree = float(np.mean(np.abs(1200 * np.log2(ours[:n].numpy() / theirs()[:n]))[clear] < 20))
    print(f"{args.seconds:g} s of a voice at {RATE} Hz, {n} frames; librosa {librosa.__version__}; of the {clear.mean():.0%} clear frames {agree:.1%} agree within 20 cents; CPU seconds")
    slow = []
    a, b = timed(args.repeats, own, theirs); print(f"{'yin':40}{a:9.3f} s{b:9.3f} s{b / a:8.1f} ×"); slow.append(b < a)
    short = x[0, :round(args.seconds * RATE / 10)]
    librosa.pyin(short[:RATE].numpy(), **how) # compiles
    a, b = timed(1, lambda: yin(short, sample_rate=RATE), lambda: librosa.pyin(short.numpy(), **how)); print(f"{'yin beside pyin, a tenth of it':40}{a:9.3f} s{b:9.3f} s{b / a:8.1f} ×"); slow.append(b < a)
    mag = magnitude(STFT(4096, 1024)(x)); grid = pitch_grid(100, 1000); flat = mag.square().sum(0).sqrt().numpy()
    freqs = librosa.fft_frequencies(sr=RATE, n_fft=4096)
    def summed(): # the same pitches, the same twenty multiples
        rows = interp1d(freqs, flat, axis=0, bounds_error=False, fill_value=0)(np.outer(np.arange(1, 21), grid.numpy()))
        return np.einsum("h,hpn->pn", 0.8 ** np.arange(20), rows)
    a, b = timed(args.repeats, lambda: salience(mag, grid, sample_rate=RATE), summed); print(f"{'salience of 200 pitches, interpolated':40}{a:9.3f} s{b:9.3f} s{b / a:8.1f} ×"); slow.append(b < a)
    score = salience(mag, grid, sample_rate=RATE)
    def viterbi():
        move = librosa.sequence.transition_local(len(grid), 17, window="triangle", wrap=False)
        return librosa.sequence.viterbi((score / score.sum(0)).numpy(), move)
    a, b = timed(args.repeats, lambda: best_path(score), viterbi); print(f"{'best path, librosa.sequence.viterbi':40}{a:9.3f} s{b:9.3f} s{b / a:8.1f} ×"); slow.append(b < a)
    return 1 if any(slow) or agree < 0.99 else 0

if __name__ == "__main__": sys.exit(main())
