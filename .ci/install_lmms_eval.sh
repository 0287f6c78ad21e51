#!/usr/bin/env bash
# lmms-eval in a venv of its own (TARGET) on top of another one (MAIN), whose torch, transformers and numpy it uses: 400 MB instead of 3 GB.
#   .ci/install_lmms_eval.sh MAIN TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
main=$(cd "$1" && pwd)
target=$2
python3 -m venv "$target"
folder() { "$1/bin/python" -c 'import site; print(site.getsitepackages()[0])'; }
folder "$main" > "$(folder "$target")/main.pth"
# nothing of MAIN is replaced by another version
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
"$main/bin/python" -m pip freeze --all --exclude-editable | grep -Ev ' @ |^filelock' > "$constraint"
pip() { "$target/bin/python" -m pip --disable-pip-version-check -q "$@"; }
pip install -c "$constraint" "datasets>=4" evaluate jinja2 loguru pydantic pytablewriter pytz pyyaml sacrebleu tenacity tqdm
pip install --no-deps --ignore-installed "filelock<4"  # lmms-eval imports filelock._api
pip install --no-deps lmms-eval==0.7.3 pycocoevalcap pycocotools
# the entry point by which lmms-eval's own command finds the project
pip install --no-deps --no-build-isolation -e .
"$target/bin/python" -c 'from importlib.metadata import version
import lmms_eval.tasks, pycocoevalcap, torch
print("lmms-eval", version("lmms_eval"), "on torch", torch.__version__, flush=True)'
touch "$target/ready"  # tests/evaluation/test_paper_tables.py waits for it
