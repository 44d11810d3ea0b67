"""Peak memory of every classical separator on a song and on one four times as long, beside the song's spectrogram.

usage: python tests/bench/memory.py [--seconds 15] [--rate 44100]      (Linux only)

The exit code is 1 if the memory of one grows faster than the spectrogram: by one more spectrogram (what blocks of a fixed size cost hides below).
Similarities of all frames would show in longer songs only: see `repetition.py --only-memory`.
"""
import argparse, ctypes, sys

import torch

from sepnb.classical.informed_nmf import Dictionary
from sepnb.core import seed_everything
from sepnb.separator import build, systems
from sepnb.stft import STFT

STEMS = ("vocals", "drums", "bass", "other")

def settings(name, rate): # cheap where the length of the loop does not matter to memory
    if name in ("repet", "repet_sim", "sinusoidal"): return dict(sample_rate=rate)
    if name == "nmf_supervised": return dict(dictionary=Dictionary({stem: torch.rand(2049, 4) for stem in STEMS}, rate), iterations=2)
    return dict(iterations=2) if name in ("nmf", "ntf") else {}

def status(line): return next(int(text.split()[1]) for text in open("/proc/self/status") if text.startswith(line)) * 1024

def taken(separator, mix, rate): # bytes above what there was before, at the peak
    open("/proc/self/clear_refs", "w").write("5") # the peak starts anew
    before = status("VmRSS"); separator(mix, rate)
    return status("VmHWM") - before

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0); parser.add_argument("--rate", type=int, default=44100)
    args = parser.parse_args()
    ctypes.CDLL(None).mallopt(-3, 2**16) # M_MMAP_THRESHOLD: what is freed is given back at once, so that the next one finds nothing
    g, failed = seed_everything(0, threads=1), []
    songs = [0.1 * torch.randn(2, round(k * args.seconds * args.rate), generator=g) for k in (1, 4)]
    spectra = [STFT()(x).nbytes for x in songs]
    print(f"stereo at {args.rate} Hz, {args.seconds:g} s and {4 * args.seconds:g} s: spectrograms of {spectra[0] / 1e6:.1f} and {spectra[1] / 1e6:.1f} MB")
    for name in (s.name for s in systems() if s.kind == "classical"):
        separator = build(name, STEMS, **settings(name, args.rate))
        separator(songs[0], args.rate) # what is loaded or kept once
        short, long = (taken(separator, x, args.rate) for x in songs)
        print(f"{name:16}{short / 1e6:8.1f} MB{long / 1e6:8.1f} MB; {short / spectra[0]:5.1f} and {long / spectra[1]:5.1f} spectrograms", flush=True)
        if long / spectra[1] > short / spectra[0] + 1: failed.append(name)
    if failed: print("grow faster than the spectrogram:", ", ".join(failed))
    return 1 if failed else 0

if __name__ == "__main__": sys.exit(main())
