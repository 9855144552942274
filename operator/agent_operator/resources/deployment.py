"""The Deployment of an agent's runtime, and the revision that names what shapes its pods."""

from typing import Any, Final

from agent_api import labels
from agent_api.v1alpha1 import EnvVar, Runtime
from agent_operator.resources.configmap import render_manifest
from agent_operator.resources.inputs import (
    API_KEYS_DIR,
    CONTAINER,
    ENCRYPTION_KEYS_DIR,
    KUBERNETES_DIR,
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
from agent_operator.resources.secrets import POSTGRES_KEY, TOKEN_KEY

USER_ID: Final = 65532
GRACE_SECONDS: Final = 45
LINGER_SECONDS: Final = 3
"""A pod that is to go serves on for so long, until nobody sends it new connections any more."""
REVISION_LENGTH: Final = 10
REPLICA_SETS_KEPT: Final = 2
"""The ConfigMaps are the history; old ReplicaSets are only kept so that going back at once finds its own again."""
_READ_ONLY: Final = 0o440
ROOT_AUTHORITY: Final = "kube-root-ca.crt"
"""ConfigMap with the API server's authority, which Kubernetes keeps in every namespace."""
_SCRATCH_SIZE: Final = "64Mi"


def build_revision(inputs: AgentInputs) -> str:
    """Return the name of the revision: ten hex digits over what shapes the pod and what the runtime reads.

    `replicas`, `suspend`, `revisionHistoryLimit` and `state.deletionPolicy` have no part in it.
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
                "revisionHistoryLimit": min(inputs.agent.spec.revision_history_limit, REPLICA_SETS_KEPT),
                "selector": {"matchLabels": selector_labels(inputs.name)},
                # The last good pods serve until new ones are ready; at least one new one at a time (it is rounded up).
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
                "template": _build_template(inputs, revision),
            },
        }
    )


def _build_template(inputs: AgentInputs, revision: str) -> dict[str, Any]:
    runtime = inputs.agent.spec.runtime
    return {
        "metadata": {
            # Ours win: they are what the Service and status find the pods by.
            "labels": {**runtime.pod_labels, **common_labels(inputs.name), labels.LABEL_REVISION: revision},
            **({"annotations": dict(runtime.pod_annotations)} if runtime.pod_annotations else {}),
        },
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
            # Always there, since `replicas` must not change the pods; it means something with the second pod.
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {**selector_labels(inputs.name), labels.LABEL_REVISION: revision}},
                }
            ],
            **_build_placement(runtime),
        },
    }


def _build_placement(runtime: Runtime) -> dict[str, Any]:
    """Build what the user set about where pods run; what is not set is left out, as the API server does."""
    tolerations = [
        {name: value for name, value in one.model_dump(by_alias=True, exclude_none=True).items() if value != ""}
        for one in runtime.tolerations
    ]
    settings = {
        "nodeSelector": dict(runtime.node_selector),
        "tolerations": tolerations,
        "priorityClassName": runtime.priority_class_name,
        "imagePullSecrets": [{"name": one.name} for one in runtime.image_pull_secrets],
    }
    return {name: value for name, value in settings.items() if value}


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
        # Refusing at once would meet connections that were on their way when the pod's end became known.
        "lifecycle": {"preStop": {"sleep": {"seconds": LINGER_SECONDS}}},
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
        *(_build_variable(variable) for variable in inputs.agent.spec.runtime.env),
        {"name": "ABIDE_MANIFEST", "value": f"{MANIFEST_DIR}/{MANIFEST_FILE}"},
        {"name": "ABIDE_AGENT_ID", "value": inputs.state_id},
        {"name": "ABIDE_REVISION", "value": revision},
        {"name": "ABIDE_API_KEYS_DIR", "value": API_KEYS_DIR},
        {"name": "ABIDE_SECRETS_DIR", "value": SECRETS_DIR},
        *_build_encryption(inputs),
        {"name": "ABIDE_LOG_FORMAT", "value": "json"},
        {"name": "ABIDE_INSTANCE", "valueFrom": _field("metadata.uid")},
        {"name": "ABIDE_POD_NAME", "valueFrom": _field("metadata.name")},
        {"name": "ABIDE_POSTGRES_URL", "valueFrom": postgres},
    ]


def _build_encryption(inputs: AgentInputs) -> list[dict[str, Any]]:
    if not inputs.encryption_secret:
        return []
    return [
        {"name": "ABIDE_ENCRYPTION_KEYS_DIR", "value": ENCRYPTION_KEYS_DIR},
        {"name": "ABIDE_ENCRYPTION_SOURCE", "value": f"Secret {inputs.namespace}/{inputs.encryption_secret}"},
    ]


def _build_reviews(inputs: AgentInputs) -> list[dict[str, Any]]:
    """Build the folder with which the runtime asks the API server who holds a token."""
    if not inputs.agent.spec.access.kubernetes.enabled:
        return []
    token = {"name": labels.reviewer_secret_name(inputs.name), "items": [{"key": TOKEN_KEY, "path": "token"}]}
    authority = {"name": ROOT_AUTHORITY, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [{"secret": token}, {"configMap": authority}]
    return [{"name": "kubernetes", "projected": {"sources": sources, "defaultMode": _READ_ONLY}}]


def _build_variable(variable: EnvVar) -> dict[str, Any]:
    if source := variable.value_from:
        ref = source.secret_key_ref
        return {"name": variable.name, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
    # The API server leaves an empty value out.
    return {"name": variable.name, **({"value": variable.value} if variable.value else {})}


def _field(path: str) -> dict[str, Any]:
    return {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}


def _build_mounts(inputs: AgentInputs) -> list[dict[str, Any]]:
    return [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own, an emptyDir
        {"name": "manifest", "mountPath": MANIFEST_DIR, "readOnly": True},
        {"name": "api-keys", "mountPath": API_KEYS_DIR, "readOnly": True},
        *({"name": one["name"], "mountPath": KUBERNETES_DIR, "readOnly": True} for one in _build_reviews(inputs)),
        *(
            [{"name": "encryption-keys", "mountPath": ENCRYPTION_KEYS_DIR, "readOnly": True}]
            if inputs.encryption_secret
            else []
        ),
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
        *_build_reviews(inputs),
        *(
            [
                {
                    "name": "encryption-keys",
                    "secret": {"secretName": inputs.encryption_secret, "defaultMode": _READ_ONLY},
                }
            ]
            if inputs.encryption_secret
            else []
        ),
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
