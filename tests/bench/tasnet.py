"""Speed and memory of Conv-TasNet beside asteroid's and demucs 2's, with the same weights on the same music.

usage: python tests/bench/tasnet.py [--seconds 2] [--repeats 3] [--only asteroid]
Both networks run alternately in one process for the times (medians); each runs once in a fresh process for the peak memory.
"""
import argparse, gc, importlib, os, subprocess, sys, time, types
from pathlib import Path
from statistics import median

import torch

from sepnb.core import seed_everything
from sepnb.models.tasnet import ConvTasNet, from_asteroid_state, from_demucs_state
from sepnb.synth import toy_sources

REFS = Path(__file__).parents[2] / ".refs"
WIDE = dict(filters=256, kernel=20, bottleneck=256, hidden=512, blocks=8, repeats=4)

def package(name, path, **modules): # a package without its own __init__, which would import a dozen others
    bare = types.ModuleType(name); bare.__path__ = [str(path)]; sys.modules[name] = bare
    for module, content in modules.items(): sys.modules[f"{name}.{module}"] = content

class Parts(torch.nn.Module):
    "asteroid's ConvTasNet from its filterbanks and its separator."
    def __init__(self, stems, *, filters, kernel, bottleneck, hidden, blocks, repeats, skip, mask):
        super().__init__()
        sys.path.append(str(REFS)); package("asteroid", REFS / "asteroid")
        make = importlib.import_module("asteroid_filterbanks").make_enc_dec
        separator = importlib.import_module("asteroid.masknn.convolutional").TDConvNet
        self.encoder, self.decoder = make("free", kernel_size=kernel, n_filters=filters, stride=kernel // 2)
        self.masker = separator(filters, stems, n_blocks=blocks, n_repeats=repeats, bn_chan=bottleneck, hid_chan=hidden, skip_chan=skip, mask_act=mask)

    def forward(self, x):
        w = self.encoder(x)
        return self.decoder(self.masker(w) * w[:, None])[:, :, None]

def asteroid(rate, **sizes):
    theirs = Parts(**sizes); ours = ConvTasNet.preset("speech", sample_rate=rate, **sizes)
    ours.load_state_dict(from_asteroid_state(theirs.state_dict()))
    return ours, theirs, 1, rate

def demucs(rate):
    tools = types.ModuleType("demucs2.utils"); tools.capture_init = lambda f: f; package("demucs2", REFS / "demucs2/demucs", utils=tools)
    theirs = importlib.import_module("demucs2.tasnet").ConvTasNet(["drums", "bass", "other", "vocals"])
    ours = ConvTasNet.preset("music", stems=4, normalise=False); ours.load_state_dict(from_demucs_state(theirs.state_dict()))
    return ours, theirs, 2, rate

CASES = {"asteroid, its default size, 8 kHz mono": lambda: asteroid(8000, stems=2, filters=512, kernel=16, bottleneck=128, hidden=512, blocks=8, repeats=3,
                                                                   skip=128, mask="sigmoid"),
         "asteroid, widths for music, 44.1 kHz mono": lambda: asteroid(44100, stems=4, skip=0, mask="relu", **WIDE),
         "demucs 2, 44.1 kHz stereo": lambda: demucs(44100)}

def music(seconds, rate, channels): return toy_sources(seed_everything(0), seconds=seconds, sample_rate=rate, channels=channels).sum(0)[None]

def memory(field): # of this process, MiB: VmRSS now, VmHWM at most
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(field))

def peak(case, which, seconds): # MiB of one run above what the process holds before it (Linux)
    *nets, channels, rate = CASES[case]()
    net, x = nets[which].eval(), music(seconds, rate, channels); del nets
    torch.set_num_threads(1); gc.collect()
    Path("/proc/self/clear_refs").write_text("5"); before = memory("VmRSS") # forget the peak so far
    with torch.inference_mode(): net(x)
    return memory("VmHWM") - before

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0); parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WHICH"), help=argparse.SUPPRESS)
    args = parser.parse_args(); torch.manual_seed(0); slower = False
    if args.peak: print(peak(args.peak[0], int(args.peak[1]), args.seconds)); return 0
    print(f"{args.seconds:g} s of music (four times as much at 8 kHz); times in seconds a second of music, median of {args.repeats}")
    print(f"{'':44}{'threads':>8}{'sepnb':>9}{'package':>9}{'faster':>9}{'difference':>12}")
    for case, make in CASES.items():
        if args.only not in case: continue
        try: ours, theirs, channels, rate = make()
        except (ImportError, FileNotFoundError) as e: print(f"{case:44} left out: {e}"); continue
        seconds = args.seconds * (4 if rate < 10000 else 1)
        x = music(seconds, rate, channels)
        for threads in (1, 2):
            torch.set_num_threads(threads); times = [[], []]; out = [None, None]
            with torch.inference_mode():
                for _ in range(args.repeats):
                    for i, net in enumerate((ours.eval(), theirs.eval())):
                        start = time.perf_counter(); out[i] = net(x); times[i].append((time.perf_counter() - start) / seconds)
            a, b = map(median, times); slower |= a > b; length = min(y.shape[-1] for y in out) - 40
            worst = (out[0][..., :length] - out[1][..., :length]).abs().max() if ours.valid_length(x.shape[-1]) == x.shape[-1] else float("nan")
            print(f"{case:44}{threads:8}{a:9.3f}{b:9.3f}{b / a:8.2f} ×{worst:12.1e}")
        del ours, theirs, out
        held = [float(subprocess.run([sys.executable, __file__, "--seconds", str(seconds), "--peak", case, str(i)], check=True, capture_output=True, text=True,
                                     env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}).stdout) for i in (0, 1)] # freed memory goes back at once
        slower |= held[0] > held[1]
        print(f"{'    peak memory of one run':44}{'':8}{held[0]:5.0f} MiB{held[1]:5.0f} MiB{held[1] / held[0]:5.2f} ×")
    return int(slower)

if __name__ == "__main__": sys.exit(main())
