"""The stage notebooks at smoke scale, really through papermill; the same seed gives the same bytes."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sepnb.core import SepnbError
from sepnb.runner import run_stage
from sepnb.transfer import read_transfer

ROOT = Path(__file__).parents[1]
STAGES = ROOT / "nbs" / "stages"
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
MODELS = PARAMS["models"] | PARAMS["more_models"]
TOY = {"kind": "toy", "songs": 4, "seconds": 4.0, "sample_rate": 8000, "stems": ["vocals", "drums", "bass", "other"]}
TWO = TOY | {"stems": ["backing", "guitar"], "songs": 3}


def pages(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A folder with prepared toy songs and recordings, as the prepare and recordings stages leave them."
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_stage(STAGES / "prepare.ipynb", folder / "reports" / "prepare.ipynb", dict(name="toy", settings=TOY, out="data/tracks", seed=1))
        run_stage(STAGES / "prepare.ipynb", folder / "reports" / "recordings.ipynb", dict(name="two_stems", settings=TWO, out="data/recordings/two_stems", seed=2, needs=["test"]))
    return folder


def train(name, out):
    block = MODELS[name]
    run_stage(STAGES / "train.ipynb", f"{out}/train-{name}.ipynb", dict(
        name=name, model=block["model"], **block["smoke"], tracks="data/tracks", out=f"{out}/{name}", history=f"{out}/{name}.csv", state=f"{out}/state-{name}.safetensors", device="cpu"))


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_trains_and_is_evaluated(name, project, monkeypatch):
    monkeypatch.chdir(project)
    train(name, "runs")
    run_stage(STAGES / "evaluate.ipynb", f"reports/evaluate-{name}.ipynb", dict(
        system=f"runs/{name}", name=name, own_stems=True, frames=f"reports/frames/{name}.csv", scores=f"reports/scores/{name}.json", recorded=f"reports/recordings/{name}.csv",
        excerpt=f"runs/excerpts/{name}", device="cpu"))
    scores = json.loads(Path(f"reports/scores/{name}.json").read_text())["stems"]
    assert set(scores) == set(TOY["stems"]) and all(s["frames"] >= 3 for s in scores.values())
    real = read_transfer(f"reports/recordings/{name}.csv")
    assert {r["stem"] for r in real} == {"backing", "guitar"} and {r["set"] for r in real} == {"two_stems"} and len({r["song"] for r in real}) == 3


@pytest.mark.parametrize("name", list(PARAMS["postnets"]))
def test_a_postnet_learns_from_estimates_and_is_evaluated(name, project, monkeypatch):
    monkeypatch.chdir(project)
    block = PARAMS["postnets"][name]; base = MODELS[block["base"]]
    train(block["base"], "runs")
    shared = dict(name=name, base=f"runs/{block['base']}", sample_rate=4000, tracks="data/tracks", device="cpu")
    run_stage(STAGES / "estimate.ipynb", f"reports/estimate-{name}.ipynb", dict(shared, model=base["model"], **base["smoke"], folds=block["folds"], out=f"runs/estimates/{name}"))
    run_stage(STAGES / "postnet.ipynb", f"reports/postnet-{name}.ipynb", dict(
        shared, model=block["model"], **block["smoke"], estimates=f"runs/estimates/{name}", out=f"runs/{name}", history=f"reports/{name}.csv"))
    run_stage(STAGES / "evaluate.ipynb", f"reports/evaluate-{name}.ipynb", dict(
        system=f"runs/{name}", name=name, own_stems=True, frames=f"reports/frames/{name}.csv", scores=f"reports/scores/{name}.json", recorded=f"reports/recordings/{name}.csv",
        excerpt=f"runs/excerpts/{name}", device="cpu"))
    assert all(s["frames"] >= 3 for s in json.loads(Path(f"reports/scores/{name}.json").read_text())["stems"].values())


@pytest.mark.parametrize("name", list(PARAMS["dictionaries"]))
def test_a_dictionary_is_learnt(name, project, monkeypatch):
    monkeypatch.chdir(project)
    run_stage(STAGES / "dictionary.ipynb", f"reports/dictionary-{name}.ipynb", dict(
        name=name, **PARAMS["dictionaries"][name]["smoke"], tracks="data/tracks", out=f"runs/{name}/dictionary.safetensors"))
    assert Path(f"runs/{name}/dictionary.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("name", ("irm", "hpss")) # one that is told the answer, one that is made anew for each set; the smoke run has all
def test_an_untrained_system_is_evaluated_on_songs_and_recordings(name, project, monkeypatch):
    monkeypatch.chdir(project)
    run_stage(STAGES / "evaluate.ipynb", f"reports/evaluate-{name}.ipynb", dict(
        PARAMS["systems"][name], system=name, name=name, frames=f"reports/frames/{name}.csv", scores=f"reports/scores/{name}.json", recorded=f"reports/recordings/{name}.csv", excerpt=f"runs/excerpts/{name}"))
    assert set(json.loads(Path(f"reports/scores/{name}.json").read_text())["stems"]) == set(TOY["stems"])
    assert len(read_transfer(f"reports/recordings/{name}.csv")) == 6


def test_a_mark_is_measured(project, monkeypatch):
    monkeypatch.chdir(project)
    run_stage(STAGES / "mark.ipynb", "reports/mark.ipynb", dict(recorded="reports/recordings/mark.csv"))
    assert {r["stem"] for r in read_transfer("reports/recordings/mark.csv")} == {"vocals", "accompaniment"}


def test_the_same_seed_gives_the_same_bytes(project, monkeypatch):
    monkeypatch.chdir(project)
    name = next(iter(PARAMS["models"]))
    results = []
    for _ in range(2):
        train(name, "twice")
        results.append(pages(project / "twice"))
    assert results[0].keys() == results[1].keys()
    assert not [n for n in results[0] if results[0][n] != results[1][n]]


def test_a_failing_stage_leaves_its_traceback_and_no_result(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(Exception, match="no song|SepnbError"):
        run_stage(STAGES / "evaluate.ipynb", "failing/evaluate.ipynb", dict(tracks="data/nothing"))
    assert [p.name for p in Path("failing").iterdir()] == ["evaluate-failed.ipynb"]
    assert "SepnbError" in Path("failing/evaluate-failed.ipynb").read_text()


@pytest.mark.parametrize("stage", ["prepare", "train", "estimate", "postnet", "dictionary", "evaluate", "mark", "realism", "report"])
def test_unknown_parameters_are_refused(stage, tmp_path):
    with pytest.raises(SepnbError, match="no parameter colour"):
        run_stage(STAGES / f"{stage}.ipynb", tmp_path / "x.ipynb", dict(colour="red"))
    assert not list(tmp_path.iterdir())


def test_a_stage_starts_without_waiting_for_torch(root):
    done = subprocess.run([sys.executable, "-c", "import sys, sepnb.runner; print([m for m in ('torch', 'numpy') if m in sys.modules])"], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_runner_speaks_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    done = subprocess.run([sys.executable, "-m", "sepnb.runner", str(STAGES / "train.ipynb"), "x.ipynb", "-s", "nothing.here"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nothing.here" in done.stderr
