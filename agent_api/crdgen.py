"""Resource models → CustomResourceDefinition and its reference page; `make generate` runs this.

`python -m agent_api.crdgen [--output DIR] [--reference FILE]` writes DIR/abide.dev_agents.yaml and, if asked, FILE. The
output depends on the models alone, so that a check can compare it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from agent_api.labels import GROUP, KIND, PLURAL, VERSION
from agent_api.schema import Schema, build_schema, walk_fields

CRD_NAME: Final = f"{PLURAL}.{GROUP}"
FILE_NAME: Final = f"{GROUP}_{PLURAL}.yaml"
CRD_HEADER: Final = "# Generated from agent_api/v1alpha1.py by `make generate`; edit that file instead.\n"

COLUMNS: Final[tuple[tuple[str, str, str, int, str], ...]] = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0, "Whether a message sent now is answered."),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0, "Why; see docs/reasons."),
    ("Model", "string", ".status.model.configured", 0, "Primary model."),
    ("Desired", "integer", ".status.desiredReplicas", 0, "Pods that should run."),
    ("Up", "integer", ".status.readyReplicas", 0, "Pods that are ready."),
    ("Sessions", "integer", ".status.sessions.total", 0, "Sessions kept in Postgres."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the Agent was created."),
    ("Answering", "string", ".status.model.answering", 1, "Model of the latest reply."),
    ("Revision", "string", ".status.revision.current", 1, "Revision of the present spec."),
    ("Endpoint", "string", ".status.endpoint", 1, "Where the agent answers inside the cluster."),
    ("Last Error", "string", ".status.lastError.message", 1, "The newest error."),
)

SELECTABLE_FIELDS: Final = (".spec.suspend", ".spec.runtime.image", ".status.runtimeVersion")


def build_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition as a plain object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ag"],
                "categories": ["abide"],
            },
            "scope": "Namespaced",
            "versions": [_build_version()],
        },
    }


def _build_version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": description}
            | ({"priority": priority} if priority else {})
            for name, kind, path, priority, description in COLUMNS
        ],
        "selectableFields": [{"jsonPath": path} for path in SELECTABLE_FIELDS],
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.readyReplicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "schema": {"openAPIV3Schema": build_schema()},
    }


class _Dumper(yaml.SafeDumper):
    """Writes everything out: aliases would save space and cost every reader a search."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_crd() -> str:
    """Return the CRD as YAML."""
    return CRD_HEADER + yaml.dump(build_crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


REFERENCE_HEADER: Final = """\
# Reference: the Agent resource

Generated from `agent_api/v1alpha1.py` by `make generate`; edit that file instead. The same text is in
`kubectl explain agents.abide.dev --recursive`.

`apiVersion: abide.dev/v1alpha1`, `kind: Agent`, namespaced, short name `ag`, category `abide`. A field that is not
listed here is refused. Durations are whole numbers with their unit in the name.
"""


def render_reference() -> str:
    """Return the reference page of every field as Markdown."""
    schema = build_schema()
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    parts = [
        REFERENCE_HEADER,
        "## spec\n",
        _render_table(spec, "spec"),
        "## Rules over several fields\n",
        "Broken ones are refused by `kubectl apply`, `abide validate` and `abide dev` with the same words.\n",
        _render_rules(schema),
        "## status\n",
        "Written by the operator only.\n",
        _render_table(status, "status"),
        "## Columns of `kubectl get agents.abide.dev`\n",
        _render_columns(),
    ]
    return "\n".join(parts)


def _render_table(schema: Schema, path: str) -> str:
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = {f"{path}.{name}" for name in schema.get("required", ())}
    for field, item in walk_fields(schema, path):
        required |= {f"{field}.{name}" for name in item.get("required", ())}
        required |= {f"{field}[].{name}" for name in item.get("items", {}).get("required", ())}
        default = "**required**" if field in required else _render_default(item)
        rows.append(f"| `{field}` | {_render_type(item)} | {default} | {_escape(item.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _render_type(item: Schema) -> str:
    kind = item.get("type", "text or object")
    if kind == "array":
        kind = f"list of {_render_type(item['items']).split(',')[0]}"
    if "enum" in item:
        kind = " \\| ".join(f"`{value}`" for value in item["enum"])
    bounds = [
        f"{word} {item[key]}"
        for key, word in (("minimum", "≥"), ("maximum", "≤"), ("minLength", "length ≥"), ("maxLength", "length ≤"))
        if key in item
    ]
    bounds += [f"entries {sign} {item[key]}" for key, sign in (("minItems", "≥"), ("maxItems", "≤")) if key in item]
    return ", ".join([kind, *bounds])


def _render_default(item: Schema) -> str:
    default = item.get("default")
    if default is None or default == {}:
        return ""
    return f"`{yaml.safe_dump(default, default_flow_style=True, width=1000).strip().removesuffix('...').strip()}`"


def _render_rules(schema: Schema) -> str:
    rows = [f"- `metadata.name`: {rule['message']}." for rule in schema["x-kubernetes-validations"]]
    spec = schema["properties"]["spec"]
    for field, item in [("spec", spec), *walk_fields(spec, "spec")]:
        for suffix, holder in (("", item), ("[]", item.get("items", {}))):
            rows += [
                f"- `{field}{suffix}{rule.get('fieldPath', '')}`: {rule['message']}."
                for rule in holder.get("x-kubernetes-validations", ())
            ]
    return "\n".join(rows) + "\n"


def _render_columns() -> str:
    rows = ["| column | from | meaning |", "| --- | --- | --- |"]
    for name, _, path, priority, description in COLUMNS:
        title = f"{name.upper()}{' (`-o wide`)' if priority else ''}"
        rows.append(f"| {title} | `{path}` | {description} |")
    return "\n".join(rows) + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> None:
    """Write the generated files."""
    parser = argparse.ArgumentParser(prog="python -m agent_api.crdgen", description="Write the CRD from the models.")
    parser.add_argument("--output", type=Path, default=Path("crds"), help="folder of the CRD (default: crds)")
    parser.add_argument("--reference", type=Path, help="file of the reference page (default: not written)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / FILE_NAME).write_text(render_crd(), encoding="utf-8")
    if options.reference:
        options.reference.parent.mkdir(parents=True, exist_ok=True)
        options.reference.write_text(render_reference(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
