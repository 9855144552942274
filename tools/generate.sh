#!/usr/bin/env bash
# Rewrites every generated file; with --check fails when the tree would change.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.
[ "${1:-}" = --check ] && { out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; }
generated=(crds docs/crd.md helm/abide/files/crds)

.venv/bin/python -m agent_api.crdgen --output "$out/crds" --reference "$out/docs/crd.md"
# A chart can only read files below itself.
mkdir -p "$out/helm/abide/files"
rm -rf "$out/helm/abide/files/crds"
cp -r "$out/crds" "$out/helm/abide/files/crds"

if [ "$out" != . ]; then
  for path in "${generated[@]}"; do
    diff -ru "$path" "$out/$path" || { echo "generated files are stale; run: make generate" >&2; exit 1; }
  done
fi
