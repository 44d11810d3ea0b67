#!/usr/bin/env bash
# The wheel in an environment with the oldest versions of what it requires (constraints-oldest.txt), away from the project: it is imported, and a short set of tests runs.
# It stays in build/oldest: a second time takes as long as the tests. TORCH_INDEX names an index of smaller builds of torch.
set -euo pipefail
root=$(git rev-parse --show-toplevel)
python=${PYTHON:-$(command -v python3.11)}
place=$root/build/oldest
mkdir -p "$place"
if ! cmp -s "$root/constraints-oldest.txt" "$place/installed.txt"; then
  rm -rf "$place/venv"; "$python" -m venv "$place/venv"
  pip=("$place/venv/bin/pip" install -q -c "$root/constraints-oldest.txt")
  if [ -n "${TORCH_INDEX:-}" ]; then "${pip[@]}" --index-url "$TORCH_INDEX" torch || echo "no torch from $TORCH_INDEX: taking the default build"; fi
  "${pip[@]}" $(sed 's/#.*//; s/==.*//' "$root/constraints-oldest.txt") pytest hypothesis pyyaml av
  cp "$root/constraints-oldest.txt" "$place/installed.txt"
fi
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
cd "$root"
cp -r sepnb settings.ini setup.py MANIFEST.in LICENSE README.md CHANGELOG.md CITATION.cff "$tree"
"$root/.venv/bin/python" -m pip wheel -q --no-deps --no-build-isolation --no-index -w "$tree/wheel" "$tree"
"$place/venv/bin/pip" install -q --no-deps --force-reinstall "$tree"/wheel/*.whl
"$place/venv/bin/pip" check
mkdir "$tree/away"
cp -r tests pytest.ini "$tree/away"
cd "$tree/away"
export OMP_NUM_THREADS=1
"$place/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_separator.py tests/test_checkpoint.py tests/test_cli.py tests/test_resume.py tests/test_masks.py tests/test_plots.py
echo "oldest: $(sed 's/#.*//' "$root/constraints-oldest.txt" | tr '\n' ' ') will do"
