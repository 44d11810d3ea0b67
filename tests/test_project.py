"""The house: notebooks, package, pipeline and committed results belong together."""
import ast
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
CHAPTERS = [p for p in NOTEBOOKS if "stages" not in p.parts]
STAGES = [p for p in NOTEBOOKS if "stages" in p.parts]


def run(*args, cwd=ROOT):
    return subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True)


def sources(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


def modules():
    "Module name → number of the chapter that exports it."
    found = {}
    for path in CHAPTERS:
        names = [m[1] for s in sources(path) for m in re.finditer(r"^#\|\s*default_exp\s+(\S+)", s, re.M)]
        assert len(names) == 1, f"{path} needs exactly one default_exp"
        found[f"sepnb.{names[0]}"] = int(path.name[:2])
    return found


def imports(code, package=""):
    "Modules of the package that code imports; relative imports are resolved within `package`."
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".")[:len(package.split(".")) - node.level + 1]
            yield ".".join([*base, node.module or ""]).rstrip(".")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sepnb"):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("sepnb"))


def test_fresh_export_changes_nothing(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    shutil.copy(ROOT / "settings.ini", tmp_path)
    done = run(BIN / "nbdev_export", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = lambda base: {p.relative_to(base): p.read_text() for p in (base / "sepnb").rglob("*.py")}
    fresh, committed = files(tmp_path), files(ROOT)
    assert set(fresh) == set(committed)
    assert not [n for n in fresh if fresh[n] != committed[n]]


def test_notebooks_are_clean(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    shutil.copy(ROOT / "settings.ini", tmp_path)
    done = run(BIN / "nbdev_clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not [p for p in NOTEBOOKS if p.read_text() != (tmp_path / p.relative_to(ROOT)).read_text()]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_imports_only_lower_numbers(path):
    numbers = modules()
    own = int(path.name[:2])
    for code in sources(path):
        for name in imports(re.sub(r"^[%!].*$", "", code, flags=re.M)):
            if name in numbers:
                assert numbers[name] < own, f"{path.name} imports {name}, which is chapter {numbers[name]}"


def test_chapters_are_numbered_once():
    numbers = [p.name[:2] for p in CHAPTERS]
    assert sorted(set(numbers)) == sorted(numbers)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_shows_its_outputs(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in cells), f"{path.name} was committed without outputs: run `make chapters`"
    faults = [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert not faults


def test_modules_have_no_undefined_names():
    done = run(sys.executable, "-m", "pyflakes", *sorted((ROOT / "sepnb").rglob("*.py")))
    assert not done.stderr, done.stderr
    faults = [l for l in done.stdout.splitlines() if "imported but unused" not in l or "__init__" not in l]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_defines_nothing(path):
    nb = nbformat.read(path, 4)
    assert sum("parameters" in c.metadata.get("tags", []) for c in nb.cells) == 1
    for code in sources(path):
        kinds = {type(n) for n in ast.walk(ast.parse(code))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef}
        assert not re.search(r"^\s*[!%]|chdir|pip install", code, re.M)


def closure(names):
    "Files of the package that these modules load, themselves included."
    seen, todo = set(), list(names)
    while todo:
        name = todo.pop()
        path = ROOT / (name.replace(".", "/") + ".py")
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        todo += imports(path.read_text(), name.rpartition(".")[0])
    return {name.replace(".", "/") + ".py" for name in seen}


PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def templates():
    "Each stage that runs a notebook, once for each of its items: its name, its body, and the modules that hold the item's system."
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    folder = dict(models="models", variants="models", shipped="models", systems="classical", dictionaries="classical", postnets="models")
    for name, stage in stages.items():
        body = stage.get("do", stage)
        if "nbs/stages/" not in body["cmd"]: continue
        of = re.sub(r"\W", "", stage.get("foreach", ""))
        items = PARAMS[of] | (PARAMS["more_models"] if of == "models" else {}) if of else {}
        for key, item in items.items():
            own = {f"sepnb.{folder[of]}.{item.get('module', item.get('of'))}"} if of in folder else set()
            if of == "postnets": own.add(f"sepnb.models.{item['model'].split('.')[0]}")
            filled = {**body, "deps": [re.sub(r"\$\{item\.(\w+)\}", lambda m: str(item[m[1]]), d) for d in body["deps"]]}
            yield f"{name}@{key}", filled, own
        if not items: yield name, body, set()
    for name, body in yaml.safe_load((ROOT / "ablation" / "dvc.yaml").read_text())["stages"].items():
        own = {"sepnb.models.deep_unet", "sepnb.models.panet"} if name == "cell" else set()
        yield f"ablation/{name}", {**body, "deps": [d.removeprefix("../") for d in body["deps"]]}, own
    for name, body in yaml.safe_load((ROOT / "material" / "dvc.yaml").read_text())["stages"].items():
        own = dict(prepare={"sepnb.models.unet"}, cell={"sepnb.models.mask_rnn"}).get(name, set())
        yield f"material/{name}", {**body, "deps": [d.removeprefix("../") for d in body["deps"]]}, own


def test_every_systems_module_is_there():
    assert len(list(templates())) > 30 and all((ROOT / f"{m.replace('.', '/')}.py").is_file() for _, _, own in templates() for m in own)


@pytest.mark.parametrize("name,body,own", list(templates()), ids=lambda v: v if isinstance(v, str) else "")
def test_a_stage_depends_on_what_it_imports(name, body, own):
    notebook = re.search(r"nbs/stages/\w+\.ipynb", body["cmd"])[0]
    own = own if not name.startswith("postnet@") else {m for m in own if m.endswith("panet")}  # it reads the separator's estimates only
    needed = closure({m for code in sources(ROOT / notebook) for m in imports(code)} | own)
    hashed = {out: stage["deps"] for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
              if "--hashes" in stage.get("cmd", "") for out in stage["outs"]}
    listed = [d for dep in body["deps"] for d in (hashed[dep] if dep in hashed else [dep])]
    assert notebook in listed or "nbs/stages" in listed, f"{name} does not depend on its notebook"
    covered = lambda f: any(f == d or f.startswith(d.rstrip("/") + "/") for d in listed)
    assert not [f for f in sorted(needed) if not covered(f)], f"{name} does not depend on modules that it imports"


def test_no_word_of_machines_or_sessions():
    tracked = run("git", "ls-files").stdout.splitlines()
    assert len(tracked) > 100, "git lists no files"
    texts = [p for p in tracked if p.endswith((".py", ".ipynb", ".md", ".yaml", ".ini", ".html", ".csv", ".json", ".txt", ".sh", "Makefile", "run"))]
    for name in texts:
        text = (ROOT / name).read_text(errors="replace") if (ROOT / name).exists() else ""
        for place in {str(p) for p in (ROOT, Path.home()) if len(p.parts) > 2 or p == Path("/", "root")}:
            assert not re.search(re.escape(place) + r"(?![\w-]|\.\w)", text), f"{name} holds a path of this machine"


def test_lock_matches_sources():
    done = run(BIN / "dvc", "repro", "--dry", "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stdout, "dvc.lock is older than its sources: run `make repro` and commit\n" + done.stdout


@pytest.mark.skipif(not (ROOT / "ablation" / "dvc.lock").is_file(), reason="the ablation was not run")
def test_lock_of_the_ablation_matches_sources():
    done = run(BIN / "dvc", "repro", "--dry", "--allow-missing", "ablation/dvc.yaml")
    assert done.returncode == 0 and "Running stage" not in done.stdout, "ablation/dvc.lock is older than its sources: run `make ablation` and commit\n" + done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / "material" / "dvc.lock").is_file(), reason="material was not tried")
def test_lock_of_the_material_matches_sources():
    done = run(BIN / "dvc", "repro", "--dry", "--allow-missing", "material/dvc.yaml")
    assert done.returncode == 0 and "Running stage" not in done.stdout, "material/dvc.lock is older than its sources: run `make material` and commit\n" + done.stdout + done.stderr


def test_report_names_its_sources():
    from sepnb.report import source_commit

    page = (ROOT / "reports" / "index.html").read_text()
    commit = re.search(r"<td>commit</td>|commit</td>\s*<td[^>]*>([0-9a-f]{7,40}\+?)", page)
    assert commit, "the report names no commit"
    named = re.search(r">commit</td>\s*<td[^>]*>([^<]+)<", page)[1]
    assert not named.endswith("+"), "the committed report was made from uncommitted sources"
    if run("git", "cat-file", "-e", named).returncode == 0 and not source_commit(ROOT).endswith("+"):
        changed = run("git", "diff", "--stat", named, "HEAD", "--", "sepnb", "nbs/stages", "params.yaml", "dvc.yaml", "constraints.txt").stdout
        assert not changed, f"sources changed since the report was made:\n{changed}"


def test_pages_need_no_network():
    for page in (ROOT / "reports").glob("*.html"):
        assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]+\.(?:js|css)', page.read_text()), page.name


def test_results_say_how_each_system_separated():
    with open(ROOT / "reports" / "results.csv", newline="") as f: rows = list(csv.DictReader(f))
    of = {r["system"]: r for r in rows}
    assert {"segment_s", "overlap", "shifts", "post_filter", "seed", "commit"} <= set(rows[0])
    for name, variant in PARAMS["variants"].items():
        assert all(of[name][key] == str(value) != of[variant["of"]][key] for key, value in variant["settings"].items()), name


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "bench").glob("*.py")), ids=lambda p: p.stem)
def test_a_benchmark_imports_what_there_is(path):
    import importlib
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sepnb"):
            module = importlib.import_module(node.module)
            assert not [a.name for a in node.names if not hasattr(module, a.name)], path.name
