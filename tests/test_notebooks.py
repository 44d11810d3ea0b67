"""Every chapter is a test: all its cells run, in order, in a fresh interpreter namespace."""
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).parents[1]
CHAPTERS = [p for p in sorted(nbglob(ROOT / "nbs", as_path=True)) if "stages" not in p.parts]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_chapter_runs(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("IN_TEST", "1")
    passed, _ = run_notebook(path.absolute(), skip_flags=get_config().tst_flags.split())
    assert passed, capsys.readouterr().err
