"""What users install: the wheel alone, in an empty environment, away from the project."""
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

ROOT = Path(__file__).parents[1]


def run(*args, cwd):
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run("git", "clone", "-q", ROOT, folder / "clone", cwd=folder)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "clone", cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "sepnb"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {n for n in tracked if n.endswith(".py")} <= names


def test_it_works_in_an_empty_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    listed = run(python, "-m", "pip", "list", "--format=freeze", cwd=tmp_path).lower()
    assert not re.search(r"^(nbdev|papermill|dvc|jupyterlab|museval|ipykernel|pandas)=", listed, re.M)
    x = 0.1 * np.random.default_rng(0).standard_normal((44100, 2))
    sf.write(tmp_path / "song.wav", x, 44100)
    run(tmp_path / "env" / "bin" / "sepnb", "separate", "song.wav", "-o", "out", cwd=tmp_path)
    parts = sum(sf.read(p)[0] for p in (tmp_path / "out" / "song").glob("*.wav"))
    assert np.abs(parts - sf.read(tmp_path / "song.wav")[0]).max() < 2e-4
    assert "hpss" in run(tmp_path / "env" / "bin" / "sepnb", "systems", cwd=tmp_path)
    for module in sorted((ROOT / "sepnb").rglob("*.py")):
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "sepnb._modidx":
            run(python, "-c", f"import {name}", cwd=tmp_path)
