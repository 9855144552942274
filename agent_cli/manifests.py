"""Manifest files on the command line: read them all, then put in what the cluster would: prompts and Secrets.

Every problem of every file is found before anything is refused.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agent_api.labels import API_VERSION, KIND
from agent_api.manifest import DataDocument, Documents, ManifestError, load_documents
from agent_api.problems import explain
from agent_api.references import env_secret_refs, mounted_secret_refs
from agent_api.v1alpha1 import Agent, KeyRef
from agent_cli.errors import UsageError

STDIN: Final = Path("-")
MANIFEST_SUFFIXES: Final = (".yaml", ".yml", ".json")

Secrets = Mapping[str, Mapping[str, bytes]]
"""Values by name of the Secret, then by key."""


@dataclass(frozen=True, slots=True)
class SecretOption:
    """One `--secret NAME.KEY=SOURCE`, its value read. `name_and_key` is split where an agent's reference fits."""

    name_and_key: str
    value: bytes = field(repr=False)

    def provides(self, ref: KeyRef) -> bool:
        """Whether this is the value the reference asks for; names and keys may both hold dots."""
        return self.name_and_key == f"{ref.name}.{ref.key}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Agents with their prompts filled in, and the values of the Secrets they refer to."""

    agents: list[Agent]
    secrets: Secrets = field(repr=False)


def read_documents(paths: Sequence[Path]) -> Documents:
    """Return what the files hold, in their order. Raises UsageError with every problem of every file."""
    agents: list[Agent] = []
    secrets: list[DataDocument] = []
    config_maps: list[DataDocument] = []
    problems: list[str] = []
    for path in paths:
        try:
            found = load_documents(_read(path), source=source_name(path))
        except ManifestError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror or error}")
        except UnicodeDecodeError:
            problems.append(f"{source_name(path)}: is not UTF-8 text")
        else:
            agents += found.agents
            secrets += found.secrets
            config_maps += found.config_maps
    problems += _repeated("Agent", [(agent.metadata.namespace, agent.metadata.name) for agent in agents])
    for kind, documents in (("Secret", secrets), ("ConfigMap", config_maps)):
        problems += _repeated(kind, [(document.namespace, document.name) for document in documents])
    if not agents and not problems:
        names = ", ".join(str(path) for path in paths)
        problems.append(f"{names}: no Agent here; write a document with apiVersion: {API_VERSION}, kind: {KIND}")
    if problems:
        raise UsageError(problems)
    return Documents(agents=agents, secrets=secrets, config_maps=config_maps)


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the paths with each folder replaced by the manifests right in it, by name, as kubectl does.

    `-` stands for stdin. Raises UsageError for a folder without any, or when stdin is named twice.
    """
    if paths.count(STDIN) > 1:
        raise UsageError("-: stdin can be read once only; name it once")
    expanded: list[Path] = []
    problems = []
    for path in paths:
        if path == STDIN or not path.is_dir():
            expanded.append(path)
            continue
        found = sorted(one for one in path.iterdir() if one.suffix in MANIFEST_SUFFIXES and one.is_file())
        if not found:
            problems.append(f"{path}: no manifests in this folder; their names end with {', '.join(MANIFEST_SUFFIXES)}")
        expanded += found
    if problems:
        raise UsageError(problems)
    return expanded


def source_name(path: Path) -> str:
    """Return how problems name a file."""
    return "stdin" if path == STDIN else str(path)


def _read(path: Path) -> str:
    return sys.stdin.read() if path == STDIN else path.read_text(encoding="utf-8")


def _repeated(kind: str, identities: Sequence[tuple[str, str]]) -> list[str]:
    repeated = sorted({identity for identity in identities if identities.count(identity) > 1})
    return [f"{kind} {namespace}/{name} stands in the files twice; keep one" for namespace, name in repeated]


def parse_secret_options(options: Iterable[str], environ: Mapping[str, str]) -> list[SecretOption]:
    """Read `NAME.KEY=env:VARIABLE` and `NAME.KEY=file:PATH`. Raises UsageError with one line for each bad option."""
    parsed: list[SecretOption] = []
    problems: list[str] = []
    for option in options:
        try:
            parsed.append(_parse_secret_option(option, environ))
        except UsageError as error:
            problems += error.lines
    if problems:
        raise UsageError(problems)
    return parsed


def _parse_secret_option(option: str, environ: Mapping[str, str]) -> SecretOption:
    name_and_key, equals, source = option.partition("=")
    name, dot, key = name_and_key.partition(".")
    kind, colon, where = source.partition(":")
    if not (equals and name and dot and key and colon and where and kind in ("env", "file")):
        # The value may have been written where its source belongs: it is not shown.
        raise UsageError(f"--secret {name_and_key}: write NAME.KEY=env:VARIABLE or NAME.KEY=file:PATH")
    if kind == "env":
        if where not in environ:
            raise UsageError(f"--secret {name_and_key}: the environment has no variable {where}")
        return SecretOption(name_and_key, os.fsencode(environ[where]))
    try:
        return SecretOption(name_and_key, Path(where).expanduser().read_bytes())
    except OSError as error:
        raise UsageError(f"--secret {name_and_key}: {where} cannot be read: {error.strerror}") from error


def resolve(documents: Documents, options: Sequence[SecretOption] = ()) -> Resolved:
    """Fill in prompts from ConfigMaps and collect the values of all Secrets that are referred to.

    An option wins over a Secret in the files. Raises UsageError with one line for everything that is missing.
    """
    problems: list[str] = []
    agents = [_with_prompt(agent, documents.config_maps, problems) for agent in documents.agents]
    secrets: dict[str, dict[str, bytes]] = {}
    used: set[str] = set()
    for agent in agents:
        for path, ref in secret_refs(agent):
            option = next((option for option in options if option.provides(ref)), None)
            value = option.value if option else _find(documents.secrets, agent.metadata.namespace, ref)
            if option:
                used.add(option.name_and_key)
            if value is None:
                problems.append(_missing_secret(agent, path, ref, documents.secrets))
            elif secrets.setdefault(ref.name, {}).setdefault(ref.key, value) != value:
                problems.append(
                    f"{_label(agent)}: {path}: Secret {ref.name} has another value in another namespace; "
                    "serve these agents by two commands"
                )
    problems += [
        f"--secret {option.name_and_key}: no agent in the files refers to it"
        for option in options
        if option.name_and_key not in used
    ]
    if problems:
        raise UsageError(problems)
    return Resolved(agents=agents, secrets=secrets)


def validation_lines(documents: Documents) -> list[str]:
    """Return what to tell about valid files: one line for each Agent, with what it needs beside the files."""
    return [f"{_label(agent)} is valid{_needs(agent, documents)}" for agent in documents.agents]


def _needs(agent: Agent, documents: Documents) -> str:
    namespace, prompt = agent.metadata.namespace, agent.spec.system_prompt_from
    refs = [("Secret", ref, documents.secrets) for _, ref in [*secret_refs(agent), *env_refs(agent)]]
    if prompt is not None:
        refs.append(("ConfigMap", prompt.config_map_key_ref, documents.config_maps))
    missing = [
        f'{kind} {namespace}/{ref.name} with key "{ref.key}"'
        for kind, ref, found in refs
        if _find(found, namespace, ref) is None
    ]
    if keys := agent.spec.state.encryption.keys_secret_ref:
        missing.append(f"Secret {namespace}/{keys.name} with encryption keys")
    missing += [
        f"Secret {namespace}/{secret.name} to pull the image" for secret in agent.spec.runtime.image_pull_secrets
    ]
    return f"; it needs {', '.join(missing)}" if missing else ""


def secret_refs(agent: Agent) -> list[tuple[str, KeyRef]]:
    """Return every key of a Secret the agent refers to, with the path of the field."""
    return mounted_secret_refs(agent)


def env_refs(agent: Agent) -> list[tuple[str, KeyRef]]:
    """Return every key of a Secret that the pod's environment takes, with the path of the field."""
    return env_secret_refs(agent)


def write_secrets(secrets: Secrets, folder: Path) -> None:
    """Write `<folder>/<Secret>/<key>` as the cluster mounts them, readable by this user alone; each file at once."""
    for name, values in secrets.items():
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        for key, value in values.items():
            _replace_file(folder / name / key, value)


def _replace_file(path: Path, value: bytes) -> None:
    written = path.with_name(f"..{path.name}")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(value)
    written.replace(path)


def _with_prompt(agent: Agent, config_maps: Sequence[DataDocument], problems: list[str]) -> Agent:
    source = agent.spec.system_prompt_from
    if source is None:
        return agent
    ref = source.config_map_key_ref
    path = "spec.systemPromptFrom.configMapKeyRef"
    value = _find(config_maps, agent.metadata.namespace, ref)
    if value is None:
        missing = _what_is_missing("ConfigMap", agent, ref, config_maps)
        problems.append(f"{_label(agent)}: {path}: {missing}")
        return agent
    try:
        return _replace_prompt(agent, value.decode("utf-8"))
    except UnicodeDecodeError:
        problems.append(f"{_label(agent)}: {path}: key {ref.key!r} is not UTF-8 text")
    except ValidationError as error:
        problems += [f"{_label(agent)}: {path}: key {ref.key!r}: {problem.message}" for problem in explain(error)]
    return agent


def _replace_prompt(agent: Agent, prompt: str) -> Agent:
    document = agent.model_dump(by_alias=True, exclude_unset=True)
    del document["spec"]["systemPromptFrom"]
    document["spec"]["systemPrompt"] = prompt
    return Agent.model_validate(document)


def _missing_secret(agent: Agent, path: str, ref: KeyRef, secrets: Sequence[DataDocument]) -> str:
    missing = _what_is_missing("Secret", agent, ref, secrets)
    return f"{_label(agent)}: {path}: {missing}, or give --secret {ref.name}.{ref.key}=env:VARIABLE"


def _what_is_missing(kind: str, agent: Agent, ref: KeyRef, documents: Sequence[DataDocument]) -> str:
    namespace = agent.metadata.namespace
    if any((document.namespace, document.name) == (namespace, ref.name) for document in documents):
        return f'{kind} {namespace}/{ref.name} has no key "{ref.key}"; add it to the file'
    return f"{kind} {namespace}/{ref.name} is missing; add it to the file"


def _find(documents: Sequence[DataDocument], namespace: str, ref: KeyRef) -> bytes | None:
    for document in documents:
        if (document.namespace, document.name) == (namespace, ref.name):
            return document.values.get(ref.key)
    return None


def _label(agent: Agent) -> str:
    return f"Agent {agent.metadata.namespace}/{agent.metadata.name}"
