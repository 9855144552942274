"""Reads manifests as `kubectl apply` would: YAML or JSON, several documents, the same checks, no API server needed.

A file may hold Agents and the Secrets and ConfigMaps they refer to. Every problem is one line,
`file:document: spec.models[0].provider: … what to write instead`, and all problems of a file are found at once. Nothing
here reads files or looks up references; `abide validate`, `abide dev` and the runtime do.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, ValidationError

from agent_api.labels import API_VERSION, KIND
from agent_api.parsing import TEXT_MAX_LENGTH, DocumentError, refuse, split_documents
from agent_api.problems import Problem, explain, explain_document, suggest
from agent_api.schema import Schema, build_schema
from agent_api.v1alpha1 import DNS_LABEL, DNS_SUBDOMAIN, Agent

OBJECT_META_FIELDS: Final = frozenset(
    (
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "managedFields",
        "name",
        "namespace",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    )
)


class ManifestError(Exception):
    """A manifest that cannot be used; `problems` has one complete line for each thing to change."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class DataDocument:
    """A Secret or ConfigMap of a manifest: its values by key, decoded. Its repr shows no value."""

    name: str
    namespace: str
    values: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Documents:
    """What a manifest holds, each kind in the order of the file."""

    agents: list[Agent] = field(default_factory=list)
    secrets: list[DataDocument] = field(default_factory=list)
    config_maps: list[DataDocument] = field(default_factory=list)


def load_manifests(text: str, *, source: str) -> list[Agent]:
    """Return the Agents of a manifest, at least one.

    `source` names the text in messages. Raises: ManifestError with every problem.
    """
    agents = load_documents(text, source=source).agents
    if not agents:
        raise ManifestError([f"{source}: no Agent here; write a document with apiVersion: {API_VERSION}, kind: {KIND}"])
    return agents


def load_documents(text: str, *, source: str) -> Documents:
    """Return the Agents, Secrets and ConfigMaps of a manifest; empty documents are skipped.

    `source` names the text in messages. Raises: ManifestError with every problem.
    """
    if len(text) > TEXT_MAX_LENGTH:
        raise ManifestError([f"{source}: longer than 3 MiB, which the API server refuses too; split it"])
    documents = Documents()
    problems: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for number, parse in split_documents(text):
        try:
            document = parse()
            if document is None:
                continue
            kind, namespace, name = identity = _load_one(document, documents)
            if identity in seen:
                refuse("metadata.name", f"a second {kind} {namespace}/{name}; give it another name or remove it")
            seen.add(identity)
        except DocumentError as refused:
            problems += [f"{source}:{number}: {problem}" for problem in refused.problems]
    if problems:
        raise ManifestError(problems)
    return documents


def _load_one(document: Any, documents: Documents) -> tuple[str, str, str]:
    """Check one document, add it to `documents` and return its kind, namespace and name."""
    if not isinstance(document, dict):
        refuse("", "a document must be a mapping with apiVersion, kind, metadata and spec")
    kind = document.get("kind")
    if kind == KIND:
        agent = _load_agent(document)
        documents.agents.append(agent)
        return KIND, agent.metadata.namespace, agent.metadata.name
    if isinstance(kind, str) and kind in _DATA_KINDS and document.get("apiVersion") == "v1":
        loaded = _load_data(document, _DATA_KINDS[kind])
        (documents.secrets if kind == "Secret" else documents.config_maps).append(loaded)
        return kind, loaded.namespace, loaded.name
    if kind is None:
        refuse("kind", f"required but missing; write kind: {KIND} and apiVersion: {API_VERSION}")
    message = (
        f"{_described_kind(document)} is not read here, only {API_VERSION} {KIND} and v1 Secret and ConfigMap; "
        "give other objects to kubectl in a file of their own"
    )
    raise DocumentError([Problem("kind", message)])


def _described_kind(document: dict[str, Any]) -> str:
    return " ".join(str(document[name]) for name in ("apiVersion", "kind") if name in document)


def _load_agent(document: dict[str, Any]) -> Agent:
    document = {name: value for name, value in document.items() if name != "status"}
    plain = _without_nulls(document, build_schema())
    problems = _unknown_metadata(plain.get("metadata"))
    if "apiVersion" not in plain:
        problems.append(Problem("apiVersion", f"required but missing; write apiVersion: {API_VERSION}"))
    try:
        # Strict, as the API server is: "5" is no number. By alias only: snake_case is no wire name.
        agent = Agent.model_validate_json(json.dumps(plain), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise DocumentError(problems + explain_document(Agent, plain, error)) from None
    if problems:
        raise DocumentError(problems)
    return agent


def _unknown_metadata(metadata: Any) -> list[Problem]:
    if not isinstance(metadata, dict):
        return []
    return [
        Problem(f"metadata.{name}", f"unknown field; {suggest(name, OBJECT_META_FIELDS)}")
        for name in metadata
        if name not in OBJECT_META_FIELDS
    ]


def _without_nulls(value: Any, schema: Schema) -> Any:
    """Return the value without the nulls of known fields, which the API server drops as well."""
    properties = schema.get("properties", {})
    if isinstance(value, dict):
        return {
            name: _without_nulls(item, properties.get(name, {}))
            for name, item in value.items()
            if not (item is None and name in properties)
        }
    if isinstance(value, list):
        return [_without_nulls(item, schema.get("items", {})) for item in value]
    return value


@dataclass(frozen=True)
class _DataKind:
    """Which fields of a kind hold texts and which hold base64; a later field wins over an earlier one."""

    fields: tuple[tuple[str, Callable[[str], bytes]], ...]
    others: frozenset[str]


class _DataMetadata(BaseModel):
    """Metadata of Secrets and ConfigMaps; their names may hold dots."""

    name: Annotated[str, Field(max_length=253), DNS_SUBDOMAIN]
    namespace: Annotated[str, Field(max_length=63), DNS_LABEL] = "default"


def _decode_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


_COMMON_FIELDS: Final = frozenset(("apiVersion", "kind", "metadata", "immutable"))
_DATA_KINDS: Final[Mapping[str, _DataKind]] = {
    "Secret": _DataKind((("data", _decode_base64), ("stringData", str.encode)), _COMMON_FIELDS | {"type"}),
    "ConfigMap": _DataKind((("binaryData", _decode_base64), ("data", str.encode)), _COMMON_FIELDS),
}


def _load_data(document: dict[str, Any], kind: _DataKind) -> DataDocument:
    known = kind.others | {name for name, _ in kind.fields}
    problems = [Problem(name, f"unknown field; {suggest(name, known)}") for name in document if name not in known]
    values: dict[str, bytes] = {}
    for name, decode in kind.fields:
        entries = document.get(name) or {}
        if not isinstance(entries, dict):
            problems.append(Problem(name, "must be a mapping of keys to texts"))
            continue
        for key, text in entries.items():
            try:
                values[key] = decode(text)
            except (TypeError, AttributeError):
                problems.append(Problem(f"{name}.{key}", "must be a text; put it in quotes"))
            except (binascii.Error, ValueError):
                problems.append(Problem(f"{name}.{key}", "is not base64; write plain text under stringData instead"))
    try:
        metadata = _DataMetadata.model_validate(document.get("metadata", {}))
    except ValidationError as error:
        problems += [Problem(f"metadata.{problem.field}".rstrip("."), problem.message) for problem in explain(error)]
    if problems:
        raise DocumentError(problems)
    return DataDocument(metadata.name, metadata.namespace, values)
