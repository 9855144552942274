#!/usr/bin/env bash
# Rewrites every generated file; with --check fails when the tree would change.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.
[ "${1:-}" = --check ] && { out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; }
.venv/bin/python -m agent_api.crdgen --output "$out/crds" --reference "$out/docs/crd.md"
if [ "$out" != . ]; then
  { diff -ru crds "$out/crds" && diff -u docs/crd.md "$out/docs/crd.md"; } || {
    echo "generated files are stale; run: make generate" >&2
    exit 1
  }
fi
