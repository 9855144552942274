#!/usr/bin/env bash
# Rewrites every generated file; with --check fails when the tree would change.
set -euo pipefail
cd "$(dirname "$0")/.."
out=.
[ "${1:-}" = --check ] && { out=$(mktemp -d); trap 'rm -rf "$out"' EXIT; }
generated=(crds docs/crd.md docs/cli-reference.md schemas helm/abide/files/crds docs/values.md docs/rest-reference.md docs/environment.md docs/metrics.md helm/abide/dashboards)

.venv/bin/python -m agent_api.crdgen --output "$out/crds" --reference "$out/docs/crd.md"
# A chart can only read files below itself.
mkdir -p "$out/helm/abide/files"
rm -rf "$out/helm/abide/files/crds"
cp -r "$out/crds" "$out/helm/abide/files/crds"
.venv/bin/python -m tools.cli_reference --output "$out/docs/cli-reference.md"
.venv/bin/python -m agent_cli.editor_schema "$out/schemas/agent.schema.json"
.venv/bin/python -m tools.values_reference --output "$out/docs/values.md"
.venv/bin/python -m tools.rest_reference --output "$out/docs/rest-reference.md"
.venv/bin/python -m tools.environment_reference --output "$out/docs/environment.md"
.venv/bin/python -m tools.metrics_reference --output "$out/docs/metrics.md"
.venv/bin/python -m tools.dashboards --output "$out/helm/abide/dashboards"

if [ "$out" != . ]; then
  for path in "${generated[@]}"; do
    diff -ru "$path" "$out/$path" || { echo "generated files are stale; run: make generate" >&2; exit 1; }
  done
fi
