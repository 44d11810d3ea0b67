"""Take stages of the pipeline to a machine that has Python, torch, numpy and scipy, run them there, bring the results home.

    python gpu/carry.py pack train@unet evaluate@unet    here: code, wheels and data, in pieces of a size that travels
    python carry.py run --minutes 9                      there, as often as it says that there is more to do
    python gpu/carry.py bring gpu/results                here: weights, histories and scores, to where `dvc commit` looks for them

There this file needs nothing but the standard library; what it runs is the stage notebooks. README.md beside it says more.
"""
import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from pathlib import Path

MIB = 2**20
MORE = 3 # exit code: time is over, run again
THERE = ("torch", "numpy", "scipy") # what the other machine has
LATER = {"evaluate": "museval", "train": "lightning_fabric"} # what a stage imports while it runs
EMPTY = ("musdb",) # what is imported on the way and not used: an empty module goes in its place, since it wants programs that are not there
FREE = {"jobs", "banks", "threads"} # parameters that may differ between there and here


class Fault(Exception):
    "Something that the user can mend, in one line."


def sha256(path): # of a file, or of all files below a folder
    total, path = hashlib.sha256(), Path(path)
    for p in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not p.is_file() or "__pycache__" in p.parts: continue
        if path.is_dir(): total.update(p.relative_to(path).as_posix().encode())
        with open(p, "rb") as f:
            while block := f.read(MIB): total.update(block)
    return total.hexdigest()


# A stream of files in pieces ------------------------------------------------------------------------------------------------------------

class Split:
    "A file for writing whose bytes go to numbered files of at most `limit` bytes."
    def __init__(self, stem, limit): self.stem, self.limit, self.files, self.left = Path(stem), limit, [], 0

    def write(self, data):
        view = memoryview(data)
        while len(view):
            if not self.left:
                self.close(); self.files.append(self.stem.with_name(f"{self.stem.name}-{len(self.files):03d}")); self.left = self.limit
                self.file = open(self.files[-1], "wb")
            count = min(self.left, len(view)); self.file.write(view[:count]); view = view[count:]; self.left -= count
        return len(data)

    def close(self):
        if self.files and not self.file.closed: self.file.close()


class Joined:
    "Numbered files, read as one."
    def __init__(self, files): self.files = iter(files); self.file = io.BytesIO()

    def read(self, size):
        out = b""
        while len(out) < size:
            block = self.file.read(size - len(out))
            if block: out += block; continue
            path = next(self.files, None)
            if path is None: break
            self.file.close(); self.file = open(path, "rb")
        return out


def write_pieces(entries, stem, limit): # [(name in the archive, file or bytes)] → facts of the pieces
    split = Split(stem, limit)
    with tarfile.open(fileobj=split, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, content in sorted(entries, key=lambda x: x[0]):
            info = tarfile.TarInfo(name); blob = content if isinstance(content, bytes) else None
            info.size, info.mode = len(blob) if blob is not None else Path(content).stat().st_size, 0o644
            with io.BytesIO(blob) if blob is not None else open(content, "rb") as f: tar.addfile(info, f)
    split.close()
    return [dict(file=p.name, bytes=p.stat().st_size, sha256=sha256(p)) for p in split.files]


def read_pieces(folder, facts, target):
    for fact in facts:
        path = Path(folder) / fact["file"]
        if not path.is_file(): raise Fault(f"{path} is missing: copy it beside the others")
        if sha256(path) != fact["sha256"]: raise Fault(f"{path} is damaged (SHA-256 differs): copy it again")
    with tarfile.open(fileobj=Joined(Path(folder) / f["file"] for f in facts), mode="r|") as tar: tar.extractall(target, filter="data")


def below(path, name=None): # [(name in the archive, file)] of a file or folder
    path, name = Path(path), name or str(path)
    if path.is_file(): return [(name, path)]
    return [(f"{name}/{p.relative_to(path).as_posix()}", p) for p in sorted(path.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]


# What the stages are --------------------------------------------------------------------------------------------------------------------

def fill(value, context): # `${a.b}` in text, lists and the keys of mappings, as DVC fills them
    if isinstance(value, list): return [fill(next(iter(v)) if isinstance(v, dict) else v, context) for v in value]
    def one(match):
        found = context
        for key in match[1].split("."):
            if not isinstance(found, dict) or key not in found: raise Fault(f"dvc.yaml asks for ${{{match[1]}}}, which params.yaml does not have")
            found = found[key]
        return {True: "true", False: "false"}.get(found, str(found)) if isinstance(found, bool) else str(found)
    before = None
    while value != before: before, value = value, re.sub(r"\$\{([\w.-]+)\}", one, value)
    return value


def resolve(names, params, stages): # [stage or stage@item] → what each runs, reads and writes
    from sepnb.runner import CODE_PATH, WIDE, gather
    import yaml
    parser = argparse.ArgumentParser(); parser.add_argument("notebook"); parser.add_argument("target")
    parser.add_argument("-s", action="append", default=[]); parser.add_argument("-p", action="append", default=[]); parser.add_argument("--wide", action="store_true")
    jobs = []
    for name in names:
        stage, _, key = name.partition("@"); body = stages.get(stage)
        if body is None: raise Fault(f"dvc.yaml has no stage '{stage}'; it has {', '.join(stages)}")
        context = dict(params)
        if "foreach" in body:
            items = params.get(re.sub(r"\W", "", body["foreach"]), {}); body = body["do"]
            if key not in items: raise Fault(f"the stage '{stage}' has no item '{key}'; write one of {', '.join(f'{stage}@{k}' for k in items)}")
            context |= dict(key=key, item=items[key])
        words = shlex.split(fill(body["cmd"], context))
        if words[:3] != ["python", "-m", "sepnb.runner"] or "--hashes" in words: raise Fault(f"the stage '{name}' runs no notebook")
        args = parser.parse_args(words[3:]); values = gather(params, args.s)
        values.update((k, yaml.safe_load(v)) for k, _, v in (pair.partition("=") for pair in args.p))
        jobs.append(dict(name=name, command=words, notebook=args.notebook, target=args.target, values=values, environment=WIDE if args.wide else CODE_PATH, deps=fill(body["deps"], context),
                         outs=fill(body.get("outs", []) + body.get("metrics", []), context)))
    return jobs


def project(changes=()): # params.yaml with changes, and the stages of dvc.yaml
    import yaml
    params, stages = (yaml.safe_load(Path(f).read_text(encoding="utf-8")) for f in ("params.yaml", "dvc.yaml"))
    for change in changes:
        path, _, value = change.partition("="); *folders, last = path.split("."); place = params
        for folder in folders: place = place.get(folder) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place: raise Fault(f"params.yaml has no '{path}'")
        place[last] = yaml.safe_load(value)
    return params, stages["stages"]


def hashed(stages): # files of hashes of the code, which nobody needs to carry, and the stages that make them
    return {out: name for name, body in stages.items() if "--hashes" in body.get("cmd", "") for out in body["outs"]}


def facts_of(jobs): # what decides a result, to be compared before and after the journey
    wanted = sorted({job["notebook"] for job in jobs})
    return dict(code=sha256("sepnb"), notebooks={n: sha256(n) for n in wanted})


# Packages that travel -------------------------------------------------------------------------------------------------------------------

TRACE = """
import importlib, json, pkgutil, sys, types
sys.modules |= {name: types.ModuleType(name) for name in EMPTY}
from importlib.metadata import packages_distributions
exec(sys.stdin.read())
import sepnb.models
for found in pkgutil.iter_modules(sepnb.models.__path__): importlib.import_module(f"sepnb.models.{found.name}")
owners = packages_distributions()
print(json.dumps(sorted({d for m in list(sys.modules) for d in owners.get(m.split(".")[0], [])} - set(EMPTY))))
"""


def plain(name): return re.sub(r"[-_.]+", "-", name).lower()


def needs(distribution, seen=None): # it, and what it needs, by their metadata
    from importlib.metadata import PackageNotFoundError, requires
    seen = set() if seen is None else seen
    if plain(distribution) in seen: return seen
    seen.add(plain(distribution))
    try: wanted = requires(distribution) or []
    except PackageNotFoundError: return seen
    for line in wanted:
        if "extra ==" not in line: needs(re.match(r"[\w.-]+", line)[0], seen)
    return seen


def imported(notebooks): # distributions that are loaded when these notebooks and the models are imported
    code = ["".join(c["source"]) for n in notebooks for c in json.loads(Path(n).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    code = [s for s in code if all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in ast.parse(s).body)]
    code += [f"try: import {module}\nexcept ImportError: pass" for stage, module in LATER.items() if any(Path(n).stem == stage for n in notebooks)]
    done = subprocess.run([sys.executable, "-c", f"EMPTY = {EMPTY}{TRACE}"], input="\n".join(code), capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "Agg"})
    if done.returncode: raise Fault(f"the stages cannot be imported here: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def installed(names, site): # copies packages as they stand here
    from importlib.metadata import distribution
    for name in names:
        for file in distribution(name).files or []:
            if file.parts[0] == ".." or "__pycache__" in file.parts or "tests" in file.parts or file.name == "direct_url.json": continue
            source = file.locate()
            if Path(source).is_file(): (site / file).parent.mkdir(parents=True, exist_ok=True); shutil.copy(source, site / file)


def downloaded(names, site, python, machine): # gets wheels for another Python, and unpacks them
    from importlib.metadata import version
    platforms = [f"manylinux_2_{n}_{machine}" for n in range(5, 40)] + [f"manylinux{n}_{machine}" for n in ("1", "2010", "2014")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        command += [x for p in platforms for x in ("--platform", p)] + ["-d", folder, *(f"{n}=={version(n)}" for n in names)]
        if subprocess.run(command).returncode: raise Fault(f"pip could not get the wheels for Python {python}; its message stands above")
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as z: z.extractall(site, [n for n in z.namelist() if "/tests/" not in n])


def fill_site(site, names, python, machine): # the folder of packages that goes along
    names = sorted(names); site.mkdir()
    here = (f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())
    if (python, machine) == here: installed(names, site)
    else: downloaded(names, site, python, machine)
    for name in EMPTY: (site / f"{name}.py").write_text('"Stands in for a package that nothing here uses."\n')


def pack(args):
    params, stages = project(args.set); jobs = resolve(args.stages, params, stages)
    made = [out for job in jobs for out in job["outs"]] + [*hashed(stages)]
    carried = {d for job in jobs for d in job["deps"] if not re.match(r"(sepnb|nbs)(/|$)", d) and d not in made}
    missing = sorted(d for d in carried if not Path(d).exists() and not any(o.startswith(f"{d}/") for o in made))
    if missing: raise Fault(f"{missing[0]} is not here, and no stage that is packed makes it; run `dvc pull` or `dvc repro`, or pack that stage too")
    names = {plain(n): n for n in (*imported({job["notebook"] for job in jobs}), *args.also)}
    have = set().union(*(needs(n) for n in (*THERE, *args.there)), {"sepnb"})
    names = [n for key, n in names.items() if key not in have]
    out = Path(args.out); shutil.rmtree(out, ignore_errors=True); out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site"); fill_site(site, names, args.python, args.machine)
        entries = [e for p in ("sepnb", *sorted({j["notebook"] for j in jobs}), *sorted(carried)) for e in below(p) if not any(e[0].startswith(f"{o}/") for o in made)]
        with zipfile.ZipFile(site.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=3) as z:
            for name, path in sorted(below(site, "site")): z.write(path, name)
        entries.append(("site.zip", site.with_suffix(".zip")))
        facts = write_pieces(entries, out / "piece", int(args.limit * MIB))
    environment = dict(PYTHONHASHSEED="0", SOURCE_DATE_EPOCH="0", MPLBACKEND="Agg", PYTHONWARNINGS="ignore")
    text = json.dumps(dict(python=args.python, changes=args.set, jobs=jobs, facts=facts_of(jobs), environment=environment, packages=names, pieces=facts), indent=1)
    (out / "pieces.json").write_text(text + "\n", encoding="utf-8"); shutil.copy(__file__, out / "carry.py")
    size = sum(f["bytes"] for f in facts) / MIB
    print(f"{len(jobs)} stages, {len(names)} packages for Python {args.python}, {size:.1f} MiB in {len(facts)} pieces: {out}")
    print(f"take that folder to the other machine, then there: python carry.py run --minutes {args.minutes:g}")


# Notebooks without Jupyter --------------------------------------------------------------------------------------------------------------

class Node(dict):
    "A part of a notebook, with its keys as attributes too."
    __getattr__ = dict.__getitem__


class Tee(io.StringIO):
    "Text that is kept and shown."
    def write(self, text): sys.__stdout__.write(text); sys.__stdout__.flush(); return super().write(text)


def shown(value): # the output that a cell's last value makes
    data = {"text/plain": repr(value)}
    for kind, method in (("text/html", "_repr_html_"), ("text/markdown", "_repr_markdown_")):
        found = None if isinstance(value, type) else getattr(value, method, None)
        if callable(found): data[kind] = found()
    return dict(output_type="execute_result", execution_count=None, metadata={}, data={k: v for k, v in data.items() if v is not None})


def figures(): # outputs of all open figures, which are closed
    plt, out = sys.modules.get("matplotlib.pyplot"), []
    for number in plt.get_fignums() if plt else []:
        buffer = io.BytesIO(); plt.figure(number).savefig(buffer, format="png", bbox_inches="tight")
        data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<Figure>"}
        out.append(dict(output_type="display_data", metadata={}, data=data))
    if out: plt.close("all")
    return out


def run_cell(source, names, outputs): # outputs grow as the cell runs
    kept = Tee()
    def flush():
        if kept.getvalue(): outputs.append(dict(output_type="stream", name="stdout", text=kept.getvalue()))
        kept.seek(0); kept.truncate()
    def show(*_, **__): flush(); outputs.extend(figures())
    body = ast.parse(source).body; last = body.pop() if body and isinstance(body[-1], ast.Expr) and not source.rstrip().endswith(";") else None
    if (plt := sys.modules.get("matplotlib.pyplot")): plt.show = show
    try:
        with contextlib.redirect_stdout(kept):
            exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
        flush()
        if value is not None: outputs.append(shown(value))
        outputs.extend(figures())
    except BaseException as e:
        flush(); lines = traceback.format_exc().splitlines()
        outputs.append(dict(output_type="error", ename=type(e).__name__, evalue=str(e), traceback=lines)); raise


def execute(notebook, target, values): # a stage notebook, from its first cell to its last; what ran is written as a notebook
    from sepnb.runner import check_parameters, stage_parameters
    nb = json.loads(Path(notebook).read_text(encoding="utf-8"), object_hook=Node)
    for cell in nb.cells: cell["source"] = "".join(cell.source)
    values = check_parameters(values, stage_parameters(nb, name=notebook), name=notebook)
    at = next(i for i, c in enumerate(nb.cells) if "parameters" in c.metadata.get("tags", []))
    text = "# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in values.items())
    nb.cells.insert(at + 1, Node(cell_type="code", id="injected-parameters", metadata={"tags": ["injected-parameters"]}, source=text, outputs=[], execution_count=None))
    names, code = {"__name__": "__main__"}, [c for c in nb.cells if c.cell_type == "code"]; failed = True
    try:
        for number, cell in enumerate(code, 1):
            cell["outputs"], cell["execution_count"] = [], number
            run_cell(cell.source, names, cell.outputs)
        failed = False
    finally:
        path = Path(target); path = path.with_name(f"{path.stem}-failed.ipynb") if failed else path; path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(nb, indent=1).replace(str(Path.cwd()), "."), encoding="utf-8")


# There ----------------------------------------------------------------------------------------------------------------------------------

def round_weights(folder, kind): # a checkpoint's matrices to half precision, kept as float32, so that what is scored is what travels
    from safetensors.torch import load, save
    import torch
    weights, card = Path(folder, "model.safetensors"), Path(folder, "model.json")
    if kind == "float32" or not (weights.is_file() and card.is_file()): return
    def rounded(x):
        y = x.to(getattr(torch, kind)).float() if x.dtype == torch.float32 and x.ndim > 1 else x
        return y if y.isfinite().all() else x
    blob = save({k: rounded(v) for k, v in load(weights.read_bytes()).items()})
    facts = json.loads(card.read_text(encoding="utf-8")) | dict(sha256=hashlib.sha256(blob).hexdigest(), rounded_to=kind)
    weights.write_bytes(blob); card.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def guard(parent): # a job ends with the process that started it
    def watch():
        while os.getppid() == parent: time.sleep(0.5)
        os.killpg(0, signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()


def job(args): # one stage, in a process of its own, in the work folder
    guard(os.getppid()); start = time.perf_counter()
    task = json.loads(Path("pieces.json").read_text(encoding="utf-8"))["jobs"][args.number]
    import torch
    execute(task["notebook"], task["target"], task["values"])
    for out in task["outs"]: round_weights(out, args.weights)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    facts = dict(device=device, devices=max(1, torch.cuda.device_count()), torch=torch.__version__, python=platform.python_version(), last_seconds=round(time.perf_counter() - start, 1))
    done_file(Path("."), args.number).write_text(json.dumps(facts), encoding="utf-8")


def done_file(work, number): return work / f"done-{number:02d}.json"


def unpack(folder, work): # the pieces, once
    path = folder / "pieces.json"
    if not path.is_file(): raise Fault(f"no pieces.json in {folder}; name the folder that `pack` wrote with --pieces")
    text = path.read_text(encoding="utf-8"); plan = json.loads(text); kept = work / "pieces.json"
    if kept.is_file():
        if kept.read_text(encoding="utf-8") != text: raise Fault(f"{work} is work on other pieces; delete it, or name another folder with --work")
        return plan
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if plan["python"] != here: raise Fault(f"the pieces are for Python {plan['python']}, this is {here}; pack again with --python {here}")
    shutil.rmtree(work, ignore_errors=True); work.mkdir(parents=True)
    read_pieces(folder, plan["pieces"], work)
    with zipfile.ZipFile(work / "site.zip") as z: z.extractall(work)
    (work / "site.zip").unlink(); kept.write_text(text, encoding="utf-8")
    return plan


def stop(process):
    for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired): process.wait(patience); return


def run(args):
    begin, work, folder = time.monotonic(), Path(args.work).absolute(), Path(args.pieces).absolute()
    plan = unpack(folder, work); jobs = plan["jobs"]; known = [task["name"] for task in jobs]
    wrong = sorted(set(args.only) - set(known))
    if wrong: raise Fault(f"the pieces have no stage {', '.join(wrong)}; they have {', '.join(known)}")
    wanted = len(set(args.only) or known); end = begin + 60 * args.minutes; failed = None
    path = os.pathsep.join([str(work), str(work / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**plan["environment"], "TQDM_MININTERVAL": "20", **os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
    for number, task in enumerate(jobs):
        if done_file(work, number).is_file() or args.only and task["name"] not in args.only: continue
        if time.monotonic() >= end: break
        print(f"== {task['name']}", flush=True)
        process = subprocess.Popen([sys.executable, __file__, "job", str(number), "--weights", args.weights], cwd=work, env=task["environment"] | environment, start_new_session=True)
        try: process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired: break
        finally: stop(process)
        if process.returncode: failed = task["name"]; break
    done = [n for n in range(len(jobs)) if done_file(work, n).is_file()]
    pack_results(plan, work, Path(args.out).absolute(), done, int(args.limit * MIB), args.weights)
    print(f"{len(done)} of {wanted} stages are done; results: {args.out}")
    if failed: raise Fault(f"the stage {failed} failed; its message stands above, and {work / 'reports'} holds its notebook")
    if len(done) < wanted: print("there is more to do: run the same command again"); return MORE


# Results --------------------------------------------------------------------------------------------------------------------------------

def shards(files, stem, limit, kind): # safetensors files → a few shards of at most `limit` bytes, and how to put them together, byte for byte
    from safetensors.torch import load_file, save_file
    import torch
    index, shard, size, written = [], {}, 0, []
    def flush():
        nonlocal shard, size
        if shard: written.append(f"{stem.name}-{len(written):03d}.safetensors"); save_file(shard, stem.with_name(written[-1]))
        shard, size = {}, 0
    for name, path in files:
        with open(path, "rb") as f: header = f.read(int.from_bytes(f.read(8), "little")).decode()
        tensors = []
        for key, x in load_file(path).items():
            half = x.to(getattr(torch, kind)) if kind != "float32" and x.dtype == torch.float32 else x
            x = half if torch.equal(half.to(x.dtype), x) else x # only where nothing is lost
            flat, count = x.flatten(), max(1, (limit - 65536) // x.element_size())
            pieces = list(flat.split(count)) if flat.numel() else [flat]
            for i, piece in enumerate(pieces):
                if size + piece.nbytes > limit - 65536 or len(shard) > 400: flush()
                shard[f"{len(index)}/{key}/{i}"] = piece.clone(); size += piece.nbytes
            tensors.append(dict(key=key, pieces=len(pieces)))
        index.append(dict(name=name, header=header, sha256=sha256(path), tensors=tensors))
    flush()
    return index, [dict(file=n, sha256=sha256(stem.with_name(n))) for n in written]


def pack_results(plan, work, out, done, limit, kind):
    sys.path[:0] = [str(work), str(work / "site")]
    shutil.rmtree(out, ignore_errors=True); out.mkdir(parents=True)
    outs = sorted({o for n in done for o in plan["jobs"][n]["outs"] if not o.endswith(".html") and not o.startswith("data/")})
    entries = [e for o in outs for e in below(work / o, o)]
    weights = sorted(e for e in entries if e[0].endswith(".safetensors"))
    index, files = shards(weights, out / "weights", limit, kind) if weights else ([], [])
    pieces = write_pieces([e for e in entries if e not in weights], out / "files", limit) if entries else []
    ran = [plan["jobs"][n] | dict(machine=json.loads(done_file(work, n).read_text(encoding="utf-8"))) for n in done]
    manifests = sorted({p.relative_to(work).as_posix() for job in ran for d in job["deps"] + job["outs"] if d.startswith("data/") for p in (work / d).rglob("manifest.csv")})
    facts = dict(jobs=ran, facts=plan["facts"] | dict(data={m: sha256(work / m) for m in manifests}), changes=plan["changes"], pieces=pieces, weights=index, shards=files)
    (out / "results.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def restore(folder, facts, target): # weights from their shards
    from safetensors.torch import load_file
    import torch
    kinds = dict(F64=torch.float64, F32=torch.float32, F16=torch.float16, BF16=torch.bfloat16, I64=torch.int64, I32=torch.int32, I16=torch.int16, I8=torch.int8,
                 U8=torch.uint8, BOOL=torch.bool)
    for fact in facts["shards"]:
        path = Path(folder) / fact["file"]
        if not path.is_file() or sha256(path) != fact["sha256"]: raise Fault(f"{path} is missing or damaged: fetch it again")
    found = {k: v for fact in facts["shards"] for k, v in load_file(Path(folder) / fact["file"]).items()}
    for number, entry in enumerate(facts["weights"]):
        header = json.loads(entry["header"]); counts = {t["key"]: t["pieces"] for t in entry["tensors"]}; blobs = {}
        for key, count in counts.items():
            x = torch.cat([found[f"{number}/{key}/{i}"] for i in range(count)]).to(kinds[header[key]["dtype"]])
            blobs[header[key]["data_offsets"][0], key] = x.view(torch.uint8).numpy().tobytes() if x.numel() else b""
        if ".." in Path(entry["name"]).parts or Path(entry["name"]).is_absolute(): raise Fault(f"the results name a file outside of the project: {entry['name']}")
        path = Path(target) / entry["name"]; path.parent.mkdir(parents=True, exist_ok=True); text = entry["header"].encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs[k] for k in sorted(blobs)))
        if sha256(path) != entry["sha256"]: raise Fault(f"{entry['name']} did not come back as it was; fetch the shards again")


def differences(facts, now): # between what ran there and what would run here
    keep = lambda values: {k: v for k, v in values.items() if k not in FREE}
    for ran in facts["jobs"]:
        old, new = keep(ran["values"]), keep(now[ran["name"]]["values"])
        wrong = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        if wrong:
            hint = f"; there it was packed with {', '.join(facts['changes'])}" if facts["changes"] else ""
            yield f"{ran['name']} ran with another {', '.join(wrong)} than params.yaml gives{hint}"
    here = facts_of(list(now.values()))
    if here["code"] != facts["facts"]["code"]: yield "the package sepnb is another one"
    yield from (f"{n} is another notebook" for n, x in here["notebooks"].items() if facts["facts"]["notebooks"].get(n, x) != x)
    for name, was in facts["facts"]["data"].items():
        if not Path(name).is_file(): yield f"{name} is not here; prepare that set here too, with `dvc repro`"
        elif sha256(name) != was: yield f"{name} lists other songs"


def bring(args):
    import nbformat
    from sepnb.runner import normalise, render
    for folder in map(Path, args.results):
        if not (folder / "results.json").is_file(): raise Fault(f"{folder} holds no results.json; name the folder that `run` wrote")
        facts = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        params, stages = project(); now = {j["name"]: j for j in resolve([j["name"] for j in facts["jobs"]], params, stages)}; wrong = list(differences(facts, now))
        for line in wrong: print(f"carry: {line}", file=sys.stderr)
        if wrong and not args.anyway: raise Fault("`dvc commit` would record results of other sources: restore them, or say --anyway")
        with tempfile.TemporaryDirectory(dir=".", prefix=".carry-") as part:
            if facts["pieces"]: read_pieces(folder, facts["pieces"], part)
            restore(folder, facts, part)
            for task in now.values():
                path = Path(part, task["target"]); nb = normalise(nbformat.read(path, 4))
                nbformat.write(nb, path); path.with_suffix(".html").write_text(render(nb, title=path.stem), encoding="utf-8")
                for out in task["outs"]: place(Path(part, out), Path(out))
        for task in facts["jobs"]:
            print(f"{task['name']}: {task['machine']['device']}, torch {task['machine']['torch']}")
        first = sorted({stage for out, stage in hashed(stages).items() if any(out in task["deps"] for task in now.values())})
        print("record them: " + "".join(f"dvc repro -s {stage} && " for stage in first) + "dvc commit -f " + " ".join(t["name"] for t in facts["jobs"]))


def place(source, target): # moves, in place of what is there; DVC may have linked that, so nothing is written through it
    if not source.exists(): return
    shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True); shutil.move(source, target)


# From the shell -------------------------------------------------------------------------------------------------------------------------

def main(argv=None):
    parser = argparse.ArgumentParser(prog="carry.py", description=__doc__.split("\n")[0]); sub = parser.add_subparsers(dest="command", required=True)
    here, half = Path(__file__).resolve().parent, ("float16", "bfloat16", "float32")
    p = sub.add_parser("pack", help="collect code, packages and data"); p.set_defaults(call=pack)
    p.add_argument("stages", nargs="+", help="in this order, for example prepare train@unet evaluate@unet"); p.add_argument("--out", default="gpu/pieces")
    p.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="version there; another than here: wheels come by pip download")
    p.add_argument("--machine", default=platform.machine(), help="processor there"); p.add_argument("--limit", type=float, default=64, help="MiB a piece")
    p.add_argument("--there", nargs="*", default=[], help=f"packages that are there besides {', '.join(THERE)}"); p.add_argument("--also", nargs="*", default=[], help="packages to take along besides what is imported")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="instead of what params.yaml says"); p.add_argument("--minutes", type=float, default=9, help=argparse.SUPPRESS)
    p = sub.add_parser("run", help="run what is not done yet"); p.set_defaults(call=run)
    p.add_argument("--pieces", default=str(here)); p.add_argument("--work", default=str(here.parent / "work")); p.add_argument("--out", default=str(here.parent / "results"))
    p.add_argument("--only", nargs="+", default=[], help="of the packed stages"); p.add_argument("--minutes", type=float, default=1e6, help="stop after so long; the next call continues"); p.add_argument("--limit", type=float, default=15, help="MiB a file of the results")
    p.add_argument("--weights", choices=half, default="float16", help="precision of matrices in the results")
    p = sub.add_parser("job"); p.set_defaults(call=job); p.add_argument("number", type=int); p.add_argument("--weights", choices=half, default="float16")
    p = sub.add_parser("bring", help="put results where the pipeline keeps them"); p.set_defaults(call=bring)
    p.add_argument("results", nargs="+"); p.add_argument("--anyway", action="store_true", help="even if sources or parameters are others here")
    args = parser.parse_args(argv)
    try: return args.call(args) or 0
    except Fault as e: print(f"carry: {e}", file=sys.stderr); return 2


if __name__ == "__main__": raise SystemExit(main())
