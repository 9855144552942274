"""Keys of Secrets that a spec refers to are found with the path of their field."""

from agent_api.references import env_secret_refs, mounted_secret_refs
from agent_api.v1alpha1 import Agent
from tests.unit.agent_api.cases import BASE, EMBEDDING, KEYED, put


def test_the_key_of_the_embedding_model_is_mounted() -> None:
    without = Agent.model_validate(put(BASE, ("spec.memories", {"enabled": True, "embedding": EMBEDDING})))
    assert mounted_secret_refs(without) == []
    with_key = put(BASE, ("spec.memories", {"enabled": True, "embedding": {**EMBEDDING, **KEYED}}))
    ((path, ref),) = mounted_secret_refs(Agent.model_validate(with_key))
    assert (path, ref.name, ref.key) == ("spec.memories.embedding.apiKeySecretRef", "llm", "openai")
    assert env_secret_refs(without) == []
