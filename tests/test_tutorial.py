"""The tutorial, followed to the letter in a copy of the project: one notebook and one block, and the report lists a new method. And the desk for a song of one's own."""
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
import yaml

from sepnb.audio import save_audio
from sepnb.contract import faults_of
from sepnb.your_song import Desk, controls, shares

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PAGE = "\n\n".join(c.source for c in nbformat.read(ROOT / "nbs" / "96_add_a_method.ipynb", 4).cells if c.cell_type == "markdown")
NOTEBOOKS = {"systems": "nbs/classical/48_crossover.ipynb", "models": "nbs/models/79_band_gains.ipynb"}
NAMES = {"systems": "crossover", "models": "band_gains"}


def text_after(mark, language):
    "The first block of code of that language after a mark on the page."
    return re.search(rf"```{language}\n(.*?)```", PAGE[PAGE.index(mark):], re.S)[1]


def run(*args, cwd):
    return together([args], cwd=cwd)[0]


def together(commands, *, cwd):
    "What several commands say, run side by side."
    environment = {**os.environ, "PYTHONPATH": str(cwd), "OMP_NUM_THREADS": "2", "SEPNB_WEIGHTS": str(cwd / "none"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    started = [subprocess.Popen([str(a) for a in args], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for args in commands]
    with ThreadPoolExecutor(len(started)) as pool: said = list(pool.map(subprocess.Popen.communicate, started)) # none may wait for a full pipe
    for process, (out, err) in zip(started, said): assert process.returncode == 0, out[-1500:] + err[-3000:]
    return [out for out, _ in said]


def reduced(text):
    "params.yaml with two bounds, no other model, toy songs of four stems, one set of recordings and seconds of training: the tutorial does not ask for it, this test's time does."
    params = yaml.safe_load(text)
    params |= dict(scale="smoke", dataset="toy", device="cpu", models={}, variants={}, postnets={}, dictionaries={},
                   systems={n: params["systems"][n] for n in ("mixture", "irm")})
    params |= {k: {} for k in ("marks",) if k in params}
    params["datasets"]["toy"] = dict(kind="toy", songs=4, seconds=4.0, sample_rate=8000, stems=["bass", "drums", "other", "vocals"])
    params["recordings"] = {n: r for n, r in params["recordings"].items() if r["smoke"]["settings"]["kind"] == "toy"} # nothing is downloaded here
    return yaml.safe_dump(params, sort_keys=False).replace("\nmodels: {}\n", "\nmodels:\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The working tree as a repository of its own."
    folder = tmp_path_factory.mktemp("tutorial") / "sepnb"
    for name in subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / name, folder / name)
    params = folder / "params.yaml"; params.write_text(reduced(params.read_text()))
    run("git", "init", "-q", cwd=folder); run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-qm", "copy", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def followed(copy):
    "Both notebooks from the page's text, both blocks under their headings, exported by the page's own command."
    for section, path in NOTEBOOKS.items():
        cells = re.sub(r"^# (?=%% \[markdown\]|%%)", "# ", text_after(path, "python"), flags=re.M)
        nb = jupytext.reads(cells, fmt="py:percent"); nb.metadata = dict(kernelspec=dict(name="python3", display_name="python3", language="python"), language_info=dict(name="python"))
        nbformat.write(nb, copy / path)
        params = (copy / "params.yaml").read_text()
        assert params.count(f"\n{section}:\n") == 1
        (copy / "params.yaml").write_text(params.replace(f"\n{section}:\n", f"\n{section}:\n{text_after(f'under `{section}:`', 'yaml')}"))
        assert text_after(f"under `{section}:`", "sh").split()[0] == "nbdev_export"
    run("nbdev_export", cwd=copy)
    return copy


def test_what_the_page_says(followed):
    "The modules are there, the page's own commands find no fault, and the lessons of the notebooks hold."
    commands = []
    for section, path in NOTEBOOKS.items():
        block = yaml.safe_load((followed / "params.yaml").read_text())[section][NAMES[section]]
        assert (followed / "sepnb" / ("classical" if section == "systems" else section) / f"{block['module']}.py").is_file()
        command = text_after(f"under `{section}:`", "sh").splitlines()[1].partition("#")[0].split()
        commands += [(sys.executable, *command[1:]), ("jupyter", "nbconvert", "--log-level=ERROR", "--to", "notebook", "--execute", "--stdout", followed / path)]
    said = [out for k in (0, 2) for out in together(commands[k:k + 2], cwd=followed)]
    assert "keeps the contract" in said[0] and "keeps the contract" in said[2]


def test_the_pipeline_finds_both_and_the_report_lists_them(followed):
    "The report asks for both by itself; what it needs is then made stage by stage, without those that neither of them changes."
    needed = set(re.findall(r'^"([^"]+)";', run("dvc", "dag", "--dot", "report", cwd=followed), re.M))
    assert {"baseline@crossover", "train@band_gains", "evaluate@band_gains"} <= needed
    recordings = yaml.safe_load((followed / "params.yaml").read_text())["recordings"]
    chosen = ["prepare", "scoring", *(f"recordings@{n}" for n in recordings), *(f"baseline@{n}" for n in ("mixture", "irm", "crossover")), "train@band_gains", "evaluate@band_gains", "report"]
    assert needed - set(chosen) <= {"export", "realism"} # as they lie in the copy
    run("dvc", "repro", "-q", "--single-item", *chosen, cwd=followed)
    page, table = (followed / "reports" / "index.html").read_text(), (followed / "reports" / "results.csv").read_text()
    assert NAMES["models"] in (followed / "reports" / "player.html").read_text() # which plays what was trained
    seconds = 3 * len(list((followed / "data" / "tracks" / "test").iterdir())) # `evaluate.smoke.duration_s` of each song
    for name in NAMES.values():
        assert f'href="evaluate-{name}.html"' in page and f"\n{name}," in table
        assert all(s["frames"] == seconds for s in json.loads((followed / "reports" / "scores" / f"{name}.json").read_text())["stems"].values())


def test_one_notebook_and_the_parameters_are_all_that_changed(followed):
    changed = {line[3:] for line in run("git", "status", "--porcelain", "-uall", cwd=followed).splitlines()}
    made = re.compile(r"(sepnb|reports)/.*|dvc\.lock|(\.dvc|data|runs)/.*|.*\.gitignore") # by nbdev_export and dvc
    assert {c for c in changed if not made.fullmatch(c)} == {*NOTEBOOKS.values(), "params.yaml"}


def test_the_house_takes_them_in(followed):
    "What `make test` asks of every chapter, asked of these."
    asked = "lower_numbers or numbered_once or undefined_names or depends_on"
    assert re.search(r"\b[1-9]\d* passed", run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_project.py", "-k", asked, cwd=followed))


@pytest.mark.parametrize("name,settings", [("hpr", {}), ("irm", {}), ("repet_sim", {}), ("openunmix.OpenUnmix", dict(n_fft=512, hop_length=256, hidden=8)),
                                           ("demucs.Demucs", dict(width=4, depth=2, lstm=1, resample=1)), ("tasnet.ConvTasNet", dict(filters=16, kernel=64, bottleneck=8, hidden=16, blocks=2, repeats=1))])
def test_what_is_there_keeps_the_contract(name, settings):
    assert faults_of(name, settings) == []


# -- your own song -----------------------------------------------------------------------------------------------


@pytest.fixture
def song(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("SEPNB_WEIGHTS", str(tmp_path / "none"))
    x = 0.1 * torch.randn(2, 30000, generator=torch.Generator().manual_seed(0)); save_audio(tmp_path / "my song.wav", x, 8000)
    return tmp_path / "my song.wav"


def test_a_dropped_song_is_taken_apart_and_leaves_nothing(song, tmp_path):
    pytest.importorskip("ipywidgets")
    desk = Desk(); box = controls(desk, chosen=("hpss",))
    box.file.value = (dict(name="../my song.wav", type="audio/wav", size=song.stat().st_size, content=memoryview(song.read_bytes()), last_modified=datetime.now(timezone.utc)),)
    box.start.value, box.length.value = 0.5, 1.5
    box.button.click()
    assert box.status.value == "my song.wav, 1.5 s" and desk.mix.shape == (2, 12000) and not box.button.disabled
    assert torch.allclose(sum(desk.heard["hpss"].values()), desk.mix, atol=1e-5)
    place = Path(desk.folder.name); assert (place / "song" / "my song.wav").exists()
    desk.close()
    assert not place.exists() and [p.name for p in tmp_path.iterdir()] == ["my song.wav"]


def test_a_mistake_at_the_desk_is_one_line(song):
    pytest.importorskip("ipywidgets")
    desk = Desk(); box = controls(desk, chosen=("hpss",))
    for path, systems, said in (("none.wav", ("hpss",), "does not exist"), (str(song), (), "choose"), (str(song.parent), ("hpss",), "folder")):
        box.path.value, box.systems.value = path, systems; box.button.click()
        assert said in box.status.value and "\n" not in box.status.value and not box.button.disabled
    desk.close()


def test_masks_are_shares(song):
    desk = Desk(song); desk.heard = {"x": {"a": 0.25 * desk.mix, "b": 0.75 * desk.mix}}
    found = shares(desk.take("x"))
    assert found["a"].nanmean() == pytest.approx(0.25, abs=1e-4) and found["b"].nanmean() == pytest.approx(0.75, abs=1e-4)
    assert desk.look(["x"]).shape == (1, 2) and desk.listen(["x"]).startswith("<iframe")
    silent = shares({"a": torch.zeros(1, 9000), "b": torch.zeros(1, 9000)})
    assert silent["a"].isnan().all()
    desk.close()
