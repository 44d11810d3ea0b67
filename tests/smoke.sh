#!/usr/bin/env bash
# The whole pipeline at smoke scale (seconds of music and of training) in a temporary clone, which is left clean.
set -euo pipefail
root=$(git rev-parse --show-toplevel)
export PATH="$root/.venv/bin:$PATH"
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git clone -q "$root" "$copy/sepnb"
cd "$copy/sepnb"
sed -i 's/^scale: .*/scale: smoke/; s/^dataset: .*/dataset: generated_smoke/' params.yaml
export PYTHONPATH=$PWD
dvc repro -q
test -s reports/index.html
dvc metrics show > /dev/null
state=$(dvc status dvc.yaml)
grep -q 'up to date' <<< "$state" || { echo "smoke: some stages are not up to date after a run:"; echo "$state"; exit 1; } >&2
echo "smoke: the pipeline ran and is up to date"
