#!/usr/bin/env bash
# Every test, in one pytest run so that its summary is the last word. The long set-up (cluster binaries, images) starts
# first and in the background, so that the fast tests run while it works.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
say() { printf '%s  %s\n' "$(date -u +%H:%M:%SZ)" "$*"; }

say "building the cluster's binaries (5-10 minutes the first time, cached afterwards)"
log=$(mktemp)
.venv/bin/python -m tests.cluster binaries </dev/null >"$log" 2>&1 &
binaries=$!
say "fast tests meanwhile"
.venv/bin/pytest -q tests/unit
if ! wait "$binaries"; then
  cat "$log" >&2
  exit 1
fi
cat "$log"
rm -f "$log"

say "the cluster, images and an agent that answers: make up"
.venv/bin/python tools/up.py up
say "all tests, then the cluster is taken down"
set +e
.venv/bin/pytest tests --durations=25 2>&1 | tee build/pytest.log |
  grep --line-buffered -vE '^=+ .* in [0-9.]+s.*=+$' # its last line is shown at the very end
status=${PIPESTATUS[0]}
set -e
.venv/bin/python tools/up.py down >build/down.log 2>&1 || { status=$?; cat build/down.log; }
tail -n 1 build/pytest.log # pytest's own summary is the last word
exit "$status"
