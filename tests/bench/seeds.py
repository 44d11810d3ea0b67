"""How much of the distance between trained systems is luck: the same models trained with other seeds, on the same songs.

usage: python tests/bench/seeds.py OUT [--systems openunmix unet_mwf] [--seeds 2 3 4]

Run it after the pipeline, in the project's folder: songs and recipes are the pipeline's, by its own stage notebooks; only the seed differs
(of weights, batches and augmentation). `--systems` are names of `models`, `variants` or `postnets` in params.yaml; each is set beside the
first. Everything is kept in OUT; what is there is not made again (another recipe: another OUT), and a training that was killed goes on. With
two threads a seed of the two default systems takes about seven minutes, and one of `--systems unet panet` five once its U-Net is there.
"""
import argparse, csv, subprocess, sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

import yaml

METRIC = "si_sdr"

def runner(*args):
    subprocess.run([sys.executable, "-m", "sepnb.runner", *map(str, args)], check=True)

def train(name, scale, seed, out):
    runner("--wide", "nbs/stages/train.ipynb", out / f"train-{name}.ipynb", "-p", f"name={name}", "-s", f"models.{name}.model", "-s", f"models.{name}.{scale}",
           "-p", f"seed={seed}", "-s", "threads", "-s", "device", "-s", "banks", "-p", "tracks=data/tracks", "-p", f"out={out / name}",
           "-p", f"history={out / name}.csv", "-p", f"cost={out / name}.cost.json", "-p", f"state={out / name}.state.safetensors")

def mend(name, params, seed, out): # a post-net and the estimates that it learns from
    scale, base = params["scale"], params["postnets"][name]["base"]
    for stage, *more in (("estimate", "-s", f"models.{base}.model", "-s", f"models.{base}.{scale}", "-s", f"postnets.{name}.folds", "-s", f"fold_epochs=postnets.{name}.fold_epochs.{scale}",
                          "-p", f"out={out / name}.estimates", "-p", f"state={out / name}.folds"),
                         ("postnet", "-s", f"postnets.{name}.model", "-s", f"postnets.{name}.{scale}", "-s", f"only=postnets.{name}.only.{scale}",
                          "-p", f"estimates={out / name}.estimates", "-p", f"out={out / name}", "-p", f"history={out / name}.csv", "-p", f"state={out / name}.state")):
        if (out / f"{stage}-{name}.html").exists(): continue # written when all went well
        runner("--wide", f"nbs/stages/{stage}.ipynb", out / f"{stage}-{name}.ipynb", "-p", f"name={name}", "-p", f"base={out / base}", *more,
               "-s", f"postnets.{name}.sample_rate", "-p", f"seed={seed}", "-s", "threads", "-s", "device", "-p", "tracks=data/tracks")

def base_of(name, params): # the separator that must be trained first
    return params["variants"].get(name, {}).get("of") or params["postnets"].get(name, {}).get("base") or name

def evaluate(name, params, seed, out): # `recorded` is written last: it is there if all is done
    folder, settings = (base_of(name, params), ["-s", f"settings=variants.{name}.settings"]) if name in params["variants"] else (name, [])
    runner("nbs/stages/evaluate.ipynb", out / f"evaluate-{name}.ipynb", "-p", f"system={out / folder}", "-p", f"name={name}", "-p", "own_stems=true", *settings,
           "-s", f"evaluate.{params['scale']}", "-p", "recordings_s={four_stems: 1.0}", "-p", f"seed={seed}", "-s", "threads", "-s", "device", "-s", "jobs",
           "-p", "tracks=data/tracks", "-p", "recordings=data/recordings", "-p", f"scores={out / name}.scores.json", "-p", f"recorded={out / name}.recorded.csv",
           "-p", f"excerpt={out / name}.excerpt", "-p", f"partial={out / name}.partial.jsonl", "-p", f"frames={out / name}.frames.csv")

def by_song(path): # stem → song → median over its seconds, dB
    found = defaultdict(lambda: defaultdict(list))
    with open(path, newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row[METRIC] not in ("", "nan"): found[row["stem"]][row["song"]].append(float(row[METRIC]))
    return {stem: {song: median(x) for song, x in songs.items()} for stem, songs in found.items()}

def table(frames, systems): # frames: seed → system → path
    first, scores = systems[0], {seed: {s: by_song(p) for s, p in paths.items()} for seed, paths in frames.items()}
    for other in systems[1:]:
        print(f"{METRIC} on the test songs, dB: {other} − {first}, for each seed {', '.join(map(str, scores))}")
        for stem in next(iter(scores.values()))[first]:
            pairs = [([s[other][stem][song] for song in sorted(s[first][stem])], [s[first][stem][song] for song in sorted(s[first][stem])]) for s in scores.values()]
            means, medians = [mean(a) - mean(b) for a, b in pairs], [median(a) - median(b) for a, b in pairs]
            spread = lambda x: f"{mean(x):+.2f} ± {stdev(x) if len(x) > 1 else float('nan'):.2f} ({', '.join(f'{v:+.2f}' for v in x)})"
            better = ", ".join(f"{sum(p > q for p, q in zip(a, b))} of {len(a)}" for a, b in pairs)
            print(f"  {stem:7}  of means {spread(means)}   of medians {spread(medians)}   songs better {better}")

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path); parser.add_argument("--systems", nargs="+", default=["openunmix", "unet_mwf"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4]); args = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    known = {**params["models"], **params["variants"], **params["postnets"]}
    if wrong := [s for s in args.systems if s not in known]: parser.error(f"no system '{wrong[0]}' in params.yaml; choose from {', '.join(known)}")
    frames = {params["seed"]: {s: Path("reports/frames") / f"{s}.csv" for s in args.systems}} # the pipeline's own
    if gone := [p for p in frames[params["seed"]].values() if not p.exists()]: parser.error(f"{gone[0]} is not there; run the pipeline first")
    for seed in args.seeds:
        out = args.out.resolve() / str(seed); out.mkdir(parents=True, exist_ok=True)
        frames[seed] = {s: out / f"{s}.frames.csv" for s in args.systems}
        for base in dict.fromkeys(base_of(s, params) for s in args.systems):
            if not (out / base / "model.json").exists(): train(base, params["scale"], seed, out)
        for s in args.systems:
            if s in params["postnets"] and not (out / s / "postnet.json").exists(): mend(s, params, seed, out)
        for s in args.systems:
            if not (out / f"{s}.recorded.csv").exists(): evaluate(s, params, seed, out)
    table(frames, args.systems)

if __name__ == "__main__": main()
