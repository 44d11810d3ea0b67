"""Shared by all tests: the project's root, its own environment on the PATH, quiet and deterministic libraries."""
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.append(str(ROOT / ".refs")) # reference packages that tests compare with, see tests/references.txt


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
