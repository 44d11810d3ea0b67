"""What each system of params.yaml costs: seconds of compute per second of stereo music, peak memory, parameters.

usage: python tests/bench/systems.py [--seconds 30] [--threads 2] [--repeats 3] [--out reports/cost.csv]

Run it after the pipeline, in the project's folder: trained systems are taken from runs/. Each system separates the middle of the first test
song in a process of its own; the median of the repeats counts, the first of which is not timed. The report shows the table.
"""
import argparse, csv, json, statistics, subprocess, sys, time
from pathlib import Path

FIELDS = ("system", "seconds_per_second", "peak_mb", "parameters")

def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

def parameters(separator):
    from torch import nn
    found = [x for x in vars(separator).values() if isinstance(x, nn.Module)] + list(getattr(separator, "nets", {}).values())
    own = sum(p.numel() for net in found for p in net.parameters())
    return own + (parameters(separator.base) if hasattr(separator, "base") else 0)

def child(args):
    from sepnb.core import seed_everything
    from sepnb.data.tracks import find_tracks, load_track
    from sepnb.evaluate import middle, separate_song
    from sepnb.train.checkpoint import open_system
    seed_everything(1, threads=args.threads)
    track = find_tracks("data/tracks", split="test")[0]; sources = load_track(track, **middle(track, args.seconds))
    separator = open_system(args.child, stems=track.stems, settings=json.loads(args.settings), device="cpu")
    seconds = []
    for _ in range(args.repeats + 1):
        start = time.perf_counter(); separate_song(separator, sources, sample_rate=track.sample_rate, stems=track.stems); seconds.append(time.perf_counter() - start)
    print(json.dumps(dict(seconds_per_second=round(statistics.median(seconds[1:]) * track.sample_rate / sources.shape[-1], 3),
                          peak_mb=round(peak_mb()), parameters=parameters(separator) or "")))

def main():
    import yaml
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0); parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3); parser.add_argument("--out", default="reports/cost.csv")
    parser.add_argument("--child", help=argparse.SUPPRESS); parser.add_argument("--settings", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: return child(args)
    params = yaml.safe_load(Path("params.yaml").read_text())
    jobs = {n: (n, block["settings"]) for n, block in params["systems"].items()} | {n: (f"runs/{n}", {}) for n in (*params["models"], *params["postnets"])}
    jobs |= {n: (f"runs/{block['of']}", block["settings"]) for n, block in params["variants"].items()}
    jobs |= {n: (n, block["settings"]) for n, block in params["dictionaries"].items()}
    rows = []
    for name, (system, settings) in jobs.items():
        command = [sys.executable, __file__, "--child", system, "--settings", json.dumps(settings), "--seconds", str(args.seconds), "--threads", str(args.threads), "--repeats", str(args.repeats)]
        rows.append(dict(system=name, **json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])))
        print(rows[-1], flush=True)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "w", newline="") as f: w = csv.DictWriter(f, FIELDS, lineterminator="\n"); w.writeheader(); w.writerows(rows)

if __name__ == "__main__": main()
