"""The pipeline on a bare machine: what goes there, what it can do with Python, torch, numpy and scipy alone, what comes home."""
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import time
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from sepnb.data.prepare import prepare
from sepnb.train.checkpoint import load_checkpoint
from sepnb.train.loop import read_history

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "gpu" / "carry.py"
TOY = dict(kind="toy", songs=3, seconds=4.0, sample_rate=8000, stems=["backing", "guitar"])


@pytest.fixture(scope="module")
def carry():
    spec = importlib.util.spec_from_file_location("carry", SCRIPT); module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bare(carry, tmp_path_factory):
    "A Python that sees torch, numpy, scipy and what these need, and nothing else."
    folder = tmp_path_factory.mktemp("bare"); venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in set().union(*map(carry.needs, carry.THERE)):
        try: found = distribution(name)
        except PackageNotFoundError: continue
        for top in {f.parts[0] for f in found.files} - {"..", "__pycache__"}:
            if not (site / top).exists(): (site / top).symlink_to(found.locate_file(top))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The pipeline at its smallest, with a longer run of one model."
    folder = tmp_path_factory.mktemp("project"); (folder / "nbs").mkdir()
    for name in ("sepnb", "nbs/stages"): shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*-failed.ipynb"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= dict(scale="smoke", dataset="toy", threads=1, jobs=1, device="cpu", banks="")
    params["datasets"]["toy"] = TOY; params["models"]["dmi"]["smoke"]["recipe"] |= dict(epochs=150, stop_patience=150) # seconds: time to be killed in its midst
    (folder / "params.yaml").write_text(yaml.safe_dump(params)); shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


def call(*args, cwd, python):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([python, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True)


def test_stages_are_read_as_dvc_reads_them(carry, monkeypatch):
    dvc = pytest.importorskip("dvc.repo")
    monkeypatch.chdir(ROOT)
    with dvc.Repo(str(ROOT)) as repo: theirs = {s.addressing: s for s in repo.index.stages if "sepnb.runner" in (s.cmd or "") and "--hashes" not in s.cmd and ":" not in s.addressing}
    ours = carry.resolve(list(theirs), *carry.project())
    assert len(ours) > 20
    for job in ours:
        stage = theirs[job["name"]]
        assert job["command"] == carry.shlex.split(stage.cmd)
        assert set(job["outs"]) == {o.def_path for o in stage.outs}
        assert set(job["deps"]) - {"params.yaml"} == {d.def_path for d in stage.deps} - {"params.yaml"}


def test_a_stage_that_is_not_there_is_named(carry, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, word in (("trane@dmi", "no stage"), ("train@nobody", "no item"), ("export", "runs no notebook"), ("scoring", "runs no notebook")):
        with pytest.raises(carry.Fault, match=word): carry.resolve([name], *carry.project())
    with pytest.raises(carry.Fault, match="has no"): carry.project(["scales=gpu"])
    assert carry.project(["scale=gpu"])[0]["scale"] == "gpu"


@pytest.mark.parametrize("limit", [1000, 4096, 10**6])
def test_pieces_join_again(carry, tmp_path, limit):
    rng = random.Random(0); blobs = {f"a/{i}": rng.randbytes(rng.randrange(5000)) for i in range(9)} | {"empty": b""}
    facts = carry.write_pieces(list(blobs.items()), tmp_path / "piece", limit)
    assert all(f["bytes"] <= limit for f in facts) and (len(facts) > 1) == (limit < 10**6)
    carry.read_pieces(tmp_path, facts, tmp_path / "out")
    assert {k: (tmp_path / "out" / k).read_bytes() for k in blobs} == blobs
    (tmp_path / facts[0]["file"]).write_bytes(b"x")
    with pytest.raises(carry.Fault, match="damaged"): carry.read_pieces(tmp_path, facts, tmp_path / "out")
    (tmp_path / facts[0]["file"]).unlink()
    with pytest.raises(carry.Fault, match="missing"): carry.read_pieces(tmp_path, facts, tmp_path / "out")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_weights_come_back_byte_for_byte(carry, tmp_path, kind):
    g = torch.Generator().manual_seed(0); half = torch.float16 if kind == "float32" else getattr(torch, kind)
    tensors = dict(large=torch.randn(300, 400, generator=g).to(half).float(), exact=torch.randn(5, 5, generator=g), wide=torch.full((3, 3), 1e30), none=torch.zeros(0, 4),
                   one=torch.tensor(3.0), count=torch.tensor(7), double=torch.randn(4, dtype=torch.float64, generator=g), flags=torch.tensor([True, False]))
    (tmp_path / "runs").mkdir(); save_file(tensors, tmp_path / "runs" / "m.safetensors")
    index, files = carry.shards([("runs/m.safetensors", tmp_path / "runs" / "m.safetensors")], tmp_path / "weights", 200_000, kind)
    sizes = [(tmp_path / f["file"]).stat().st_size for f in files]
    assert max(sizes) <= 200_000 and sum(sizes) < (300_000 if kind != "float32" else 600_000) and len(files) > 1
    carry.restore(tmp_path, dict(weights=index, shards=files), tmp_path / "home")
    assert (tmp_path / "home/runs/m.safetensors").read_bytes() == (tmp_path / "runs/m.safetensors").read_bytes()
    index[0]["name"] = "../elsewhere"
    with pytest.raises(carry.Fault, match="outside"): carry.restore(tmp_path, dict(weights=index, shards=files), tmp_path / "home")


def test_cells_give_what_jupyter_shows(carry, capsys):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    names, out = {}, []
    carry.run_cell("import pandas as pd\nprint('a'); x = 2\npd.DataFrame(dict(x=[x]))", names, out)
    assert [o["output_type"] for o in out] == ["stream", "execute_result"] and "<table" in out[1]["data"]["text/html"] and out[0]["text"] == "a\n"
    shown = plt.show; out = []
    try: carry.run_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()\nprint('b')\nplt.figure();", names, out)
    finally: plt.show = shown
    assert [o["output_type"] for o in out] == ["display_data", "stream", "display_data"] and not plt.get_fignums()
    out = []
    with pytest.raises(ZeroDivisionError): carry.run_cell("print('c')\n1 / 0", names, out)
    assert [o["output_type"] for o in out] == ["stream", "error"]


def test_there_and_back(carry, project, bare, monkeypatch, capsys):
    monkeypatch.chdir(project); prepare(TOY, project / "data" / "recordings" / "two_stems", seed=1, progress=False)
    assert carry.main(["pack", "prepare", "train@dmi", "evaluate@dmi", "--limit", "8"]) == 0, capsys.readouterr().err
    pieces = project / "gpu" / "pieces"; assert max(p.stat().st_size for p in pieces.iterdir()) <= 8 * 2**20
    assert subprocess.run([bare, "-c", "import pandas"], capture_output=True).returncode and subprocess.run([bare, "-c", "import soundfile"], capture_output=True).returncode
    there = project.parent / "there"; shutil.copytree(pieces, there / "pieces"); run = [there / "pieces" / "carry.py", "run"]

    early = call(*run, "--minutes", 0, cwd=there, python=bare) # only unpacks
    assert early.returncode == 3 and "0 of 3 stages are done" in early.stdout and "run the same command again" in early.stdout, early.stderr
    wrong = call(*run, "--only", "train@nobody", cwd=there, python=bare)
    assert wrong.returncode == 2 and "no stage train@nobody; they have prepare, train@dmi, evaluate@dmi" in wrong.stderr
    state = there / "work" / json.loads((pieces / "pieces.json").read_text())["jobs"][1]["values"]["state"]
    process = subprocess.Popen([bare, *map(str, run)], cwd=there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state.is_file() and process.poll() is None: time.sleep(0.01)
    process.send_signal(signal.SIGKILL); process.wait() # in the midst of training
    time.sleep(1.0) # what it had started ends by itself
    assert state.is_file() and (there / "work" / "done-00.json").is_file() and not (there / "work" / "done-01.json").is_file()
    done = call(*run, cwd=there, python=bare)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "== prepare" not in done.stdout and "3 of 3" in done.stdout and max(p.stat().st_size for p in (there / "results").iterdir()) <= 15 * 2**20

    home = ["bring", str(there / "results")]; capsys.readouterr()
    assert carry.main(home) == 2 and "data/tracks/manifest.csv is not here" in capsys.readouterr().err and not (project / "runs").exists()
    prepare(TOY, project / "data" / "tracks", seed=1, progress=False)
    assert carry.main(home) == 0 and "dvc commit -f prepare train@dmi evaluate@dmi" in capsys.readouterr().out
    net, card = load_checkpoint(project / "runs/dmi", device="cpu")
    assert card["rounded_to"] == "float16" and all(torch.equal(p, p.half().float()) for p in net.parameters() if p.ndim > 1)
    assert [r["epoch"] for r in read_history(project / "reports/history/dmi.csv")] == list(range(1, len(card["history"]) + 1))
    assert json.loads((project / "reports/scores/dmi.json").read_text()) and (project / "reports/evaluate-dmi.html").read_text().count("<img")
    cells = json.loads((project / "reports/train-dmi.ipynb").read_text())["cells"]
    assert any(c.get("id") == "injected-parameters" for c in cells) and str(there) not in json.dumps(cells)

    text = (project / "params.yaml").read_text(); (project / "params.yaml").write_text(text.replace("seed: 1", "seed: 2"))
    assert carry.main(home) == 2 and "ran with another seed" in capsys.readouterr().err
    assert carry.main([*home, "--anyway"]) == 0
