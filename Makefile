# make repro  set up .venv, get the data, run the whole pipeline
# make test   set up .venv, run every test          make lab  open JupyterLab
# make wheels  both wheels in dist/                make costs  time every system, for the report
# make readme  the README's table and picture, the start page          make oldest  try the oldest versions that are supported
# make ablation  the thesis' tables again, with seeds
# make material  what real material in training does to real songs
# make docs   the book and the reference as a site: _docs/index.html
# make smoke  the pipeline on toy music in a temporary copy, in five minutes
# CUDA:       make setup TORCH_INDEX=https://download.pytorch.org/whl/cu126
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
REFS := .refs
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export PYTHONWARNINGS := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME

repro: setup
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html"

test: setup $(REFS)/.ok
	python -m pytest

# the start page; songs of up to 200 MB may be dropped on it, and nothing is saved unless you save it
lab: setup
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@echo '{"@jupyterlab/docmanager-extension:plugin": {"autosave": false}}' > $(VENV)/share/jupyter/lab/settings/overrides.json
	jupyter lab --ServerApp.tornado_settings='{"websocket_max_message_size": 209715200}' start.ipynb

smoke: setup
	./tests/smoke.sh

# execute every chapter again, keep the outputs that teach, export the package
chapters: setup
	nbdev_export
	for n in $$(find nbs -name '*.ipynb' -not -path '*/stages/*' -not -path '*/.*' | sort); do jupyter nbconvert --log-level=ERROR --execute --inplace --ExecutePreprocessor.coalesce_streams=True $$n || exit 1; done
	nbdev_clean

setup: $(VENV)/.ok

# torch's CPU build, unless the index of another build is named: several GB less to download; a pip that has wheels of its own keeps them
TORCH_INDEX ?= $(if $(PIP_FIND_LINKS),,https://download.pytorch.org/whl/cpu)
$(VENV)/.ok: requirements.txt constraints.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"sepnb needs Python 3.11 or newer, this is {sys.version.split()[0]}; say make PYTHON=python3.11")'
	@command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null \
	  || { [ $$(id -u) = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ffmpeg >/dev/null; } \
	  || { echo "ffmpeg and ffprobe are missing (museval needs them): install your system's ffmpeg package, then run make again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	python -m pip install -q --upgrade -c constraints.txt pip setuptools wheel
	$(if $(TORCH_INDEX),python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch || echo "no torch from $(TORCH_INDEX): taking the default build")
	python -m pip install -q -c constraints.txt -r requirements.txt
	python -m pip install -q -c constraints.txt --no-deps tinysoundfont # the library for sound cards that it names is not needed
	python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

# reference packages that tests compare with, apart from the environment because their own requirements do not fit in
$(REFS)/.ok: tests/references.txt constraints.txt | $(VENV)/.ok
	python -m pip install -q --no-deps --upgrade --target $(REFS) -r tests/references.txt
	python -m pip install -q --no-deps --upgrade --target $(REFS)/demucs2 demucs==2.0.3 # the last with Conv-TasNet
	touch $@

# the site: the book and the reference, from the notebooks as they are and the reports as they are
docs: setup $(VENV)/.docs
	python -m sepnb.docs

$(VENV)/.docs: requirements-docs.txt constraints.txt | $(VENV)/.ok
	python -m pip install -q -c constraints.txt -r requirements-docs.txt
	touch $@

# axe-core, for the tests in a browser; without npm they are skipped
BROWSER := tests/browser/node_modules/.ok
$(BROWSER): tests/browser/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm >/dev/null && npm ci --silent --no-audit --no-fund --ignore-scripts --prefix tests/browser; then touch $@; else echo "npm could not fetch axe-core: accessibility tests will be skipped" >&2; fi

test: $(VENV)/.docs $(BROWSER)
chapters: $(VENV)/.docs

# both wheels in dist/: the package, and the weights (MIT) that make it work offline
wheels: setup
	python -m pip wheel -q --no-deps --no-build-isolation -w dist .
	sepnb weights install spleeter-2stems -o weights/sepnb_weights/spleeter-2stems
	python -m pip wheel -q --no-deps --no-build-isolation -w dist ./weights

# what each system costs, on this machine: the report shows it; after make repro
costs: setup
	python tests/bench/systems.py

# the thesis' tables again, at the scale that ablation/params.yaml chooses; after make repro
ablation: setup
	dvc repro ablation/dvc.yaml
	dvc repro --force --single-item report
	@echo "The page: $(CURDIR)/reports/ablation.html"

# real guitars and a teacher's voices in training (recorded drums at scale gpu), at the scale that material/params.yaml chooses; after make repro
material: setup
	dvc repro material/dvc.yaml
	dvc repro --force --single-item report
	@echo "The page: $(CURDIR)/reports/material.html"

# table and picture of the README, list of chapters of the start page; after make repro
readme: setup $(VENV)/.docs
	python -m sepnb.readme

# the wheel with the oldest versions of what it requires, in build/oldest
oldest: setup
	PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) ./tests/oldest.sh

clean:
	rm -rf $(VENV) $(REFS) build *.egg-info .pytest_cache .hypothesis

.PHONY: repro test lab smoke chapters docs wheels costs readme oldest ablation material setup clean
