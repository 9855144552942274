"""The keys of Secrets that an Agent's spec refers to, each with the path of its field."""

from collections.abc import Iterator

from agent_api.v1alpha1 import Agent, AgentSpec, KeyRef, find_tool_secrets

SecretRef = tuple[str, KeyRef]


def mounted_secret_refs(agent: Agent) -> list[SecretRef]:
    """Return what the runtime reads from files `$ABIDE_SECRETS_DIR/<secret>/<key>`, in the order of the spec."""
    return [*_models(agent.spec), *find_tool_secrets(agent.spec.tools), *_memories(agent.spec), *_access(agent.spec)]


def env_secret_refs(agent: Agent) -> list[SecretRef]:
    """Return what the pod's environment takes from Secrets."""
    return [
        (f"spec.runtime.env[{index}].valueFrom.secretKeyRef", variable.value_from.secret_key_ref)
        for index, variable in enumerate(agent.spec.runtime.env)
        if variable.value_from is not None
    ]


def _models(spec: AgentSpec) -> Iterator[SecretRef]:
    for index, model in enumerate(spec.models):
        if model.api_key_secret_ref is not None:
            yield f"spec.models[{index}].apiKeySecretRef", model.api_key_secret_ref


def _memories(spec: AgentSpec) -> Iterator[SecretRef]:
    embedding = spec.memories.embedding
    if embedding is not None and embedding.api_key_secret_ref is not None:
        yield "spec.memories.embedding.apiKeySecretRef", embedding.api_key_secret_ref


def _access(spec: AgentSpec) -> Iterator[SecretRef]:
    for index, key in enumerate(spec.access.keys):
        yield f"spec.access.keys[{index}].secretKeyRef", key.secret_key_ref
