"""Peak memory and speed of separating a short and a long song, file to files, each in a process of its own.

usage: python tests/bench/long_song.py [--minutes 6 60] [--system tiny|pass] [--shifts 0] [--threads 1] [--limit 1.3]

`tiny` is an Open-Unmix with random weights (hidden 32, one layer, two stems) at 44.1 kHz, `pass` hands the mixture through.
The exit code is 1 if the longest song takes more than `limit` times the memory of the shortest, or if two runs differ by a byte.
"""
import argparse, hashlib, json, resource, subprocess, sys, tempfile, time
from pathlib import Path

RATE = 44100

def song_blocks(minutes): # a minute of toy music again and again, each time at another level
    from sepnb.core import seed_everything
    from sepnb.synth import toy_sources
    minute = toy_sources(seed_everything(0), seconds=60, sample_rate=RATE).sum(0); minute = 0.5 * minute / minute.abs().max()
    for k in range(minutes): yield minute * (1 - 0.3 * ((k * 7) % 10) / 10)

def separator(system):
    import torch
    from sepnb.core import seed_everything
    from sepnb.separator import Separator
    if system == "tiny":
        from sepnb.models.openunmix import OpenUnmix
        from sepnb.train.checkpoint import ModelSeparator
        seed_everything(0)
        model = OpenUnmix(stems=2, channels=2, hidden=32, layers=1, sample_rate=RATE)
        return ModelSeparator(model, stems=["other", "vocals"], sample_rate=RATE, channels=2, segment_s=10.0)
    class Pass(Separator):
        sample_rate, segment_s = RATE, 10.0
        def estimate(self, mix, sources=None): return torch.stack([0.5 * mix, 0.5 * mix])
    return Pass(["other", "vocals"])

def peak_kb(): # of this program; getrusage would also count the parent, whose memory a new process shares at first
    try: return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def child(args): # separate one file, tell what it took
    import torch
    from sepnb.separator import configure
    from sepnb.streaming import separate_file
    torch.set_num_threads(args.threads)
    system = configure(separator(args.system), shifts=args.shifts)
    idle = peak_kb()
    start = time.perf_counter()
    done = separate_file(system, args.child, {k: Path(args.out) / f"{k}.wav" for k in system.stems}, force=True)
    seconds = time.perf_counter() - start
    digest = hashlib.sha256()
    for file in done.files:
        with open(file, "rb") as f:
            while data := f.read(2**20): digest.update(data)
    print(json.dumps(dict(peak_mb=peak_kb() / 1024, idle_mb=idle / 1024, seconds=seconds, sha256=digest.hexdigest())))

def measured(args, song, folder):
    command = [sys.executable, __file__, "--child", str(song), "--out", str(folder), "--system", args.system, "--shifts", str(args.shifts), "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[6, 60]); parser.add_argument("--system", default="tiny", choices=["tiny", "pass"])
    parser.add_argument("--shifts", type=int, default=0); parser.add_argument("--threads", type=int, default=1); parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("--child", help=argparse.SUPPRESS); parser.add_argument("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: child(args); return 0
    from sepnb.blocks import save_blocks
    rows = []
    with tempfile.TemporaryDirectory(prefix="sepnb-bench-") as folder:
        for minutes in sorted(args.minutes):
            song = Path(folder) / f"{minutes}.flac"; save_blocks(song, song_blocks(minutes), RATE)
            row = measured(args, song, Path(folder) / "out"); rows.append(row)
            print(f"{args.system}, {minutes:3} min, {args.shifts} shifts, {args.threads} threads: peak {row['peak_mb']:.0f} MB (before the song {row['idle_mb']:.0f}), "
                  f"{row['seconds']:.1f} s, real-time factor {row['seconds'] / (60 * minutes):.4f}", flush=True)
            if len(rows) == 1: same = measured(args, song, Path(folder) / "out")["sha256"] == row["sha256"]
    ratio = rows[-1]["peak_mb"] / rows[0]["peak_mb"]
    print(f"peak memory, longest to shortest: {ratio:.3f}; two runs of the shortest: {'the same bytes' if same else 'DIFFERENT BYTES'}")
    return 0 if ratio <= args.limit and same else 1

if __name__ == "__main__": sys.exit(main())
