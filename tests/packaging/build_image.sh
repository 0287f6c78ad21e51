#!/usr/bin/env bash
# build_image.sh FOLDER: build the image's CPU variant with buildah, which needs root but no daemon, and keep all of it in FOLDER.
# The base is a stand-in, because no registry of images may be in reach: Debian bookworm with its Python 3.11, and this machine's
# certificates. Whoever comes second waits for the first, and finds it built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
cd "$1"
exec 9>lock
flock 9
[ ! -e built ] || exit 0

export TMPDIR=$PWD/tmp
mkdir -p tmp wheels
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > policy.json
store() { buildah --root "$PWD/store" --runroot "$PWD/run" --storage-driver overlay "$@"; }

began=$SECONDS
mmdebstrap --quiet --variant=minbase --include=python3-venv,ca-certificates bookworm base.tar
base=$(store from scratch)
store add --quiet "$base" base.tar / > /dev/null
store add --quiet "$base" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt > /dev/null
# uv and pip have certificates of their own unless told
store config --env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt --env PIP_CERT=/etc/ssl/certs/ca-certificates.crt "$base"
store commit --quiet --rm --signature-policy policy.json "$base" avl-stand-in > /dev/null
rm base.tar
echo "stand-in for the base: $((SECONDS - began)) s"

# torch without CUDA is not on PyPI: the wheel that pip finds on this machine, else its own index, which is what the Dockerfile takes
local=()
torch=$(grep -o '^torch==[^ ]*' "$root/.docker/lock-cpu.txt")
if python3 -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 --dest wheels "$torch"; then
  local=(--volume "$PWD/wheels:/wheels:ro" --build-arg TORCH_CPU=/wheels)
fi
store bud --pull-never --isolation chroot --format docker --signature-policy policy.json \
  --build-arg PYTHON=localhost/avl-stand-in --build-arg VARIANT=cpu "${local[@]}" --tag avl:cpu "$root"
rm -r wheels
touch built
echo "image: $((SECONDS - began)) s"
