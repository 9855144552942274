"""The Secret with an agent's encryption keys, how pods get it, and what status says of wrong ones."""

import base64
from pathlib import Path

import pytest

from agent_api.conditions import Reason
from agent_api.v1alpha1 import AgentStatus
from agent_operator.kube.port import SECRET
from agent_operator.reconcile.observe import find_references, judge_references
from agent_operator.reconcile.references import Reference, Referent
from agent_operator.reconcile.rootkeys import RootKeys
from agent_operator.reconcile.rotation import secrets_version
from agent_operator.resources.children import build_desired
from agent_operator.resources.deployment import build_deployment, build_revision
from agent_operator.resources.secrets import build_encryption_secret
from agent_operator.status.conditions import build_conditions
from agent_store.codec_aes import new_key
from agent_store.codec_keys import KeysUnusable, derive_wrapping_key, format_key, parse_wrapping_keys
from tests.unit.agent_operator.makers import UID, at, health, make_agent, make_inputs, make_pod, observe, ready_pod

KEYS = {"1": format_key(new_key()), "current": "1"}
OWN = {"state": {"encryption": {"keysSecretRef": {"name": "my.keys"}}}}


def put_root(folder: Path, name: str) -> bytes:
    key = new_key()
    (folder / name).write_text(format_key(key))
    return key


def test_every_agent_gets_keys_derived_from_all_root_keys(tmp_path: Path) -> None:
    first = put_root(tmp_path, "1")
    roots = RootKeys(tmp_path)
    assert roots.wrapping_keys(UID) == {"1": format_key(derive_wrapping_key(first, UID)), "current": "1"}
    second = put_root(tmp_path, "2")
    assert roots.wrapping_keys(UID) == {
        "1": format_key(derive_wrapping_key(first, UID)),
        "2": format_key(derive_wrapping_key(second, UID)),
        "current": "2",
    }
    assert roots.wrapping_keys("another") != roots.wrapping_keys(UID)


def test_root_keys_that_cannot_be_read_any_more_change_nothing(tmp_path: Path) -> None:
    put_root(tmp_path, "1")
    roots = RootKeys(tmp_path)
    before = roots.wrapping_keys(UID)
    (tmp_path / "1").write_text("no key")
    assert roots.wrapping_keys(UID) == before
    with pytest.raises(KeysUnusable, match='key "1" of the Secret of the root keys'):
        RootKeys(tmp_path)
    assert RootKeys(None).wrapping_keys(UID) == {}


def test_the_secret_is_what_the_runtime_reads() -> None:
    secret = build_encryption_secret(make_inputs(wrapping_keys=KEYS))
    assert secret["metadata"]["name"] == "agent-support-encryption"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == UID
    values = {name: base64.b64decode(value) for name, value in secret["data"].items()}
    assert format_key(parse_wrapping_keys(values, "s").newest) == KEYS["1"]
    assert KEYS["1"] not in repr(make_inputs(wrapping_keys=KEYS))


def mounted(inputs_changes: dict[str, object], **spec: object) -> tuple[str | None, dict[str, str]]:
    """Return the Secret that is mounted for encryption, and the variables about it."""
    pod = build_deployment(make_inputs(make_agent(**spec), **inputs_changes), "0123456789")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    environ = {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("ABIDE_ENCRYPTION")}
    mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    volume = mounts.get(environ.get("ABIDE_ENCRYPTION_KEYS_DIR", ""))
    secrets = {one["name"]: one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
    return (secrets[volume] if volume else None), environ


def test_pods_mount_the_keys_and_can_name_the_secret() -> None:
    secret, environ = mounted({"wrapping_keys": KEYS})
    assert secret == "agent-support-encryption"
    assert environ["ABIDE_ENCRYPTION_SOURCE"] == "Secret shop/agent-support-encryption"
    assert mounted({"wrapping_keys": KEYS}, **OWN)[0] == "my.keys"
    assert mounted({}, **OWN)[0] == "my.keys"
    assert mounted({}) == (None, {})
    off = {"state": {"encryption": {"enabled": False}}}
    assert mounted({"wrapping_keys": KEYS}, **off)[0] == "agent-support-encryption", "old content is still read"


def test_the_secret_is_made_before_the_pods_and_only_with_root_keys() -> None:
    names = [child.name for child in build_desired(make_inputs(wrapping_keys=KEYS)).children]
    assert names.index("agent-support-encryption") < len(names) - 1
    assert "agent-support-encryption" not in [child.name for child in build_desired(make_inputs()).children]


def test_another_key_is_no_new_revision_but_another_secret_is() -> None:
    more = {**KEYS, "2": format_key(new_key()), "current": "2"}
    assert build_revision(make_inputs(wrapping_keys=KEYS)) == build_revision(make_inputs(wrapping_keys=more))
    own = make_agent(**OWN)
    assert build_revision(make_inputs(own, wrapping_keys=KEYS)) != build_revision(make_inputs(wrapping_keys=KEYS))


def test_a_secret_of_ones_own_must_exist_and_its_changes_are_told_to_pods() -> None:
    agent = make_agent(**OWN)
    reference = Reference(SECRET, "shop", "my.keys")
    assert find_references(agent) == {reference: frozenset()}
    verdict = judge_references(agent, {reference: Referent(exists=False)})
    assert (verdict.reason, verdict.message) == (
        Reason.SECRET_MISSING,
        "spec.state.encryption.keysSecretRef: Secret shop/my.keys does not exist.",
    )
    assert judge_references(agent, {reference: Referent(True, frozenset({"1"}))}).accepted
    versions = {secrets_version(agent, {reference: Referent(True, version=version)}) for version in ("1", "2")}
    assert len(versions) == 2
    assert "" not in versions


WRONG = (
    "store",
    "EncryptionKeyMismatch",
    (
        'key "1" of Secret shop/agent-support-encryption is not the one that the state was encrypted with; '
        "put that one back (since 2026-11-20T14:02:01Z)."
    ),
)


def test_a_wrong_key_is_said_with_secret_and_key() -> None:
    pod = make_pod(running_since=at(-30))
    found = {one.type: one for one in build_conditions(observe(pod, probes={pod.uid: health(WRONG)}), AgentStatus())}
    ready = found["Ready"]
    assert (ready.status, ready.reason) == ("False", "EncryptionKeyMismatch")
    assert ready.message == (
        'The state cannot be decrypted since 2026-11-20T14:02:01Z: key "1" of Secret shop/agent-support-encryption is '
        "not the one that the state was encrypted with. New messages are refused and nothing is written; what is kept "
        "stays as it is. Put that one back; the agent goes on by itself. docs/reasons/EncryptionKeyMismatch.md"
    )
    assert (found["StateStoreReady"].status, found["StateStoreReady"].reason) == ("False", "EncryptionKeyMismatch")


def test_a_wrong_key_of_a_new_revision_leaves_the_old_one_serving() -> None:
    old, new = ready_pod(revision="old"), make_pod("agent-support-2", running_since=at(-30))
    observation = observe(old, new, probes={new.uid: health(WRONG)})
    found = {one.type: one for one in build_conditions(observation, AgentStatus())}
    assert (found["Ready"].status, found["Ready"].reason) == ("True", "RolloutFailed")
    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "EncryptionKeyMismatch")
    assert "Secret shop/agent-support-encryption" in found["Degraded"].message
