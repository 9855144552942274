"""The Deployment of an agent's runtime, and the revision that names what shapes its pods."""

from typing import Any, Final

from agent_api import labels
from agent_operator.resources.configmap import render_manifest
from agent_operator.resources.inputs import (
    API_KEYS_DIR,
    CONTAINER,
    MANIFEST_DIR,
    MANIFEST_FILE,
    PORT,
    PORT_NAME,
    SECRETS_DIR,
    AgentInputs,
    build_metadata,
    common_labels,
    digest,
    secret_keys,
    selector_labels,
    stamp,
    url_fingerprint,
)
from agent_operator.resources.secrets import POSTGRES_KEY

USER_ID: Final = 65532
GRACE_SECONDS: Final = 40
REVISION_LENGTH: Final = 10
REVISION_HISTORY: Final = 5
_READ_ONLY: Final = 0o440
_SCRATCH_SIZE: Final = "64Mi"


def build_revision(inputs: AgentInputs) -> str:
    """Return the name of the revision: ten hex digits over what shapes the pod and what the runtime reads.

    `replicas` and `suspend` have no part in it.
    """
    shape = {
        "template": _build_template(inputs, revision=""),
        # The text itself: a release that writes it otherwise must not try to change an immutable ConfigMap.
        "manifest": render_manifest(inputs),
        # A running process does not see a changed environment: another Postgres needs other pods.
        "postgres": url_fingerprint(inputs.postgres_url),
    }
    return digest(shape)[:REVISION_LENGTH]


def build_deployment(inputs: AgentInputs, revision: str) -> dict[str, Any]:
    """Build the Deployment. The operator alone decides its replicas."""
    return stamp(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": build_metadata(inputs, labels.child_name(inputs.name)),
            "spec": {
                "replicas": inputs.replicas,
                "revisionHistoryLimit": REVISION_HISTORY,
                "selector": {"matchLabels": selector_labels(inputs.name)},
                # The last good pod serves until the new one is ready.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": _build_template(inputs, revision),
            },
        }
    )


def _build_template(inputs: AgentInputs, revision: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {**common_labels(inputs.name), labels.LABEL_REVISION: revision}},
        "spec": {
            "serviceAccountName": labels.child_name(inputs.name),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                # Mounted Secrets belong to this group: the runtime reads them, nobody else in the pod's node does.
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_build_container(inputs, revision)],
            "volumes": _build_volumes(inputs, revision),
        },
    }


def _build_container(inputs: AgentInputs, revision: str) -> dict[str, Any]:
    resources = inputs.agent.spec.runtime.resources
    return {
        "name": CONTAINER,
        "image": inputs.image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        "env": _build_environment(inputs, revision),
        "resources": {
            "requests": resources.requests.model_dump(exclude_none=True),
            "limits": resources.limits.model_dump(exclude_none=True),
        },
        "volumeMounts": _build_mounts(inputs),
        # Up to two minutes to start on a crowded node; asked each second so that a quick start shows at once.
        "startupProbe": _build_probe("/livez", period=1, failures=120),
        "livenessProbe": _build_probe("/livez", period=10, failures=3),
        # Status must tell within 5 s that a message cannot be taken: two probes and the way to the API server.
        "readinessProbe": _build_probe("/readyz", period=2, failures=2),
        # Where the process left no last words the kubelet takes the end of its log, which status then quotes.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _build_probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _build_environment(inputs: AgentInputs, revision: str) -> list[dict[str, Any]]:
    postgres = {"secretKeyRef": {"name": labels.postgres_secret_name(inputs.name), "key": POSTGRES_KEY}}
    return [
        {"name": "ABIDE_MANIFEST", "value": f"{MANIFEST_DIR}/{MANIFEST_FILE}"},
        {"name": "ABIDE_AGENT_ID", "value": inputs.uid},
        {"name": "ABIDE_REVISION", "value": revision},
        {"name": "ABIDE_API_KEYS_DIR", "value": API_KEYS_DIR},
        {"name": "ABIDE_SECRETS_DIR", "value": SECRETS_DIR},
        {"name": "ABIDE_LOG_FORMAT", "value": "json"},
        {"name": "ABIDE_INSTANCE", "valueFrom": _field("metadata.uid")},
        {"name": "ABIDE_POD_NAME", "valueFrom": _field("metadata.name")},
        {"name": "ABIDE_POSTGRES_URL", "valueFrom": postgres},
    ]


def _field(path: str) -> dict[str, Any]:
    return {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}


def _build_mounts(inputs: AgentInputs) -> list[dict[str, Any]]:
    return [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own, an emptyDir
        {"name": "manifest", "mountPath": MANIFEST_DIR, "readOnly": True},
        {"name": "api-keys", "mountPath": API_KEYS_DIR, "readOnly": True},
        *(
            {"name": _volume_name(secret), "mountPath": f"{SECRETS_DIR}/{secret}", "readOnly": True}
            for secret in secret_keys(inputs.agent)
        ),
    ]


def _build_volumes(inputs: AgentInputs, revision: str) -> list[dict[str, Any]]:
    config_map = labels.revision_name(inputs.name, revision)
    return [
        {"name": "tmp", "emptyDir": {"sizeLimit": _SCRATCH_SIZE}},
        {"name": "manifest", "configMap": {"name": config_map, "defaultMode": _READ_ONLY}},
        {
            "name": "api-keys",
            "secret": {"secretName": labels.api_secret_name(inputs.name), "defaultMode": _READ_ONLY},
        },
        *(
            {
                "name": _volume_name(secret),
                "secret": {
                    "secretName": secret,
                    "defaultMode": _READ_ONLY,
                    "optional": False,
                    "items": [{"key": key, "path": key} for key in keys],
                },
            }
            for secret, keys in secret_keys(inputs.agent).items()
        ),
    ]


def _volume_name(secret: str) -> str:
    """Return a volume's name for a Secret: names of Secrets may be longer than a label and hold dots."""
    return f"secret-{digest(secret)[:16]}"
