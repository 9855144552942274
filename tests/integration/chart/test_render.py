"""What the chart makes of values, and which values it refuses."""

import base64
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agent_operator.kube.port import (
    AGENT,
    CHILD_KINDS,
    CONFIG_MAP,
    DISRUPTION_BUDGET,
    EVENT,
    POD,
    REPLICA_SET,
    WATCHED_KINDS,
    Kind,
)
from agent_operator.resources.inputs import PORT_NAME, common_labels
from agent_store.codec_keys import read_wrapping_keys
from tests.integration.chart.conftest import CHART, Helm, Object

EXTERNAL = {"postgres": {"embedded": {"enabled": False}, "external": {"secretRef": {"name": "pg"}}}}
NAMESPACED = {
    "watchNamespaces": ["shop", "desk"],
    "crds": {"install": False},
    "rbac": {"aggregateToDefaultRoles": False},
    "kubernetesTokens": {"enabled": False},
}
FULL = {
    "image": {"registry": "registry.example.com/mirror", "tag": "1.2.3", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "installId": "one",
    "operator": {
        "logLevel": "DEBUG",
        "podAnnotations": {"a": "b"},
        "podLabels": {"team": "x"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
        "image": {"digest": "sha256:" + "a" * 64},
    },
    "runtime": {"image": {"tag": "9"}},
    "postgres": {
        "embedded": {
            "storage": {"size": "20Gi", "className": "fast"},
            "parameters": {"shared_buffers": "512MB"},
            "podLabels": {"team": "y"},
            "nodeSelector": {"disk": "ssd"},
        }
    },
}
OPTIONS: dict[str, Object] = {
    "default": {},
    "external": EXTERNAL,
    "external with pooler": {
        "postgres": {**EXTERNAL["postgres"], "external": {"secretRef": {"name": "pg", "key": "u"}, "directKey": "d"}}
    },
    "own secret": {"postgres": {"embedded": {"existingSecret": "mine"}}},
    "no encryption": {"encryption": {"enabled": False}},
    "own root keys": {"encryption": {"existingSecret": "roots"}},
    "namespaced": NAMESPACED,
    "full": FULL,
}


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, [(o["kind"], o["metadata"]["name"]) for o in objects]
    return found[0]


def pods(objects: list[Object]) -> list[Object]:
    return [o["spec"]["template"] for o in objects if o["kind"] in ("Deployment", "StatefulSet")]


def environment(objects: list[Object]) -> dict[str, Any]:
    container = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {e["name"]: e.get("value", e.get("valueFrom", {}).get("secretKeyRef")) for e in container["env"]}


@pytest.mark.parametrize("option", OPTIONS)
def test_lint_is_clean(helm: Helm, option: str) -> None:
    done = helm.run("lint", "--strict", str(CHART), values=OPTIONS[option])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


@pytest.mark.parametrize(
    "version", sorted(kubernetes_validate.utils.all_versions(), key=lambda v: int(v.split(".")[1]))[-3:]
)
@pytest.mark.parametrize("option", OPTIONS)
def test_objects_are_valid_in_the_three_newest_minors(helm: Helm, option: str, version: str) -> None:
    rendered = helm.render(OPTIONS[option])
    assert rendered
    for found in rendered:
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_pod_meets_the_restricted_level_and_has_a_read_only_root(helm: Helm, option: str) -> None:
    found = pods(helm.render(OPTIONS[option]))
    assert len(found) == (1 if option.startswith("external") else 2)
    for pod in found:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        allowed = {"emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim"}
        assert all((volume.keys() - {"name"}) <= allowed for volume in spec.get("volumes", []))
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container["ports"])
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert container.keys() >= {"readinessProbe", "livenessProbe"}


def test_by_default_there_is_an_operator_for_all_namespaces_and_a_postgres(helm: Helm) -> None:
    objects = helm.render()
    assert sorted((o["kind"], o["metadata"]["name"]) for o in objects) == [
        ("ClusterRole", "abide-agents-chat"),
        ("ClusterRole", "abide-agents-edit"),
        ("ClusterRole", "abide-agents-view"),
        ("ClusterRole", "abide-operator"),
        ("ClusterRole", "abide-token-reviewer"),
        ("ClusterRoleBinding", "abide-operator"),
        ("ClusterRoleBinding", "abide-token-reviewer"),
        ("ConfigMap", "abide-dashboards"),
        ("ConfigMap", "abide-rules"),
        ("CustomResourceDefinition", "agents.abide.dev"),
        ("Deployment", "abide-operator"),
        ("Role", "abide-operator-own"),
        ("RoleBinding", "abide-operator-own"),
        ("Secret", "abide-encryption"),
        ("Secret", "abide-postgres"),
        ("Service", "abide-postgres"),
        ("ServiceAccount", "abide-operator"),
        ("ServiceAccount", "abide-token-reviewer"),
        ("StatefulSet", "abide-postgres"),
    ]
    told = environment(objects)
    assert told["ABIDE_POSTGRES_URL"] == {"name": "abide-postgres", "key": "url"}
    assert told["ABIDE_WATCH_NAMESPACES"] == ""
    assert told["ABIDE_NAMESPACE"] == "abide-system"
    assert "ABIDE_POSTGRES_DIRECT_URL" not in told
    images = [pod["spec"]["containers"][0]["image"] for pod in pods(objects)]
    version = one(objects, "Deployment")["metadata"]["labels"]["app.kubernetes.io/version"]
    assert sorted(images) == [f"abide/operator:{version}", f"abide/postgres:{version}"]
    assert told["ABIDE_RUNTIME_IMAGE"] == f"abide/runtime:{version}"


def test_what_an_uninstall_must_not_lose_is_kept(helm: Helm) -> None:
    objects = helm.render()
    kept = [o["kind"] for o in objects if o["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"]
    assert sorted(kept) == ["CustomResourceDefinition", "Secret", "Secret"]
    policy = one(objects, "StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert policy == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_the_generated_password_is_long_and_the_url_carries_it(helm: Helm) -> None:
    data = [one(helm.render(), "Secret", "abide-postgres")["data"] for _ in range(2)]
    passwords = [base64.b64decode(d["password"]).decode() for d in data]
    assert len(set(passwords)) == 2
    assert all(len(password) >= 32 for password in passwords)
    url = base64.b64decode(data[0]["url"]).decode()
    assert url == f"postgresql://abide:{passwords[0]}@abide-postgres.abide-system.svc:5432/abide"


def root_key_mount(objects: list[Object]) -> str | None:
    """Return the Secret whose files are where the operator looks for root keys."""
    folder = environment(objects).get("ABIDE_ENCRYPTION_ROOT_DIR")
    spec = one(objects, "Deployment")["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])}
    volumes = {volume["name"]: volume["secret"]["secretName"] for volume in spec.get("volumes", [])}
    return None if folder is None else str(volumes[mounts[str(folder)]])


def test_a_root_key_is_generated_that_the_operator_can_read(helm: Helm, tmp_path: Path) -> None:
    rendered = [helm.render() for _ in range(2)]
    found = [one(objects, "Secret", "abide-encryption")["data"] for objects in rendered]
    assert [list(data) for data in found] == [["1"], ["1"]]
    (tmp_path / "1").write_bytes(base64.b64decode(found[0]["1"]))
    assert len(read_wrapping_keys(tmp_path).newest) == 32
    assert found[0] != found[1]
    assert root_key_mount(rendered[0]) == "abide-encryption"
    pod = one(rendered[0], "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["fsGroup"] == 65532
    assert [volume["secret"]["defaultMode"] for volume in pod["volumes"]] == [0o440]


def test_a_root_key_of_ones_own_is_used_and_none_generated(helm: Helm) -> None:
    objects = helm.render({"encryption": {"existingSecret": "roots"}})
    assert "abide-encryption" not in [o["metadata"]["name"] for o in objects]
    assert root_key_mount(objects) == "roots"


def test_without_encryption_the_operator_has_no_root_key(helm: Helm) -> None:
    objects = helm.render({"encryption": {"enabled": False}})
    assert "abide-encryption" not in [o["metadata"]["name"] for o in objects]
    assert root_key_mount(objects) is None
    assert "volumes" not in one(objects, "Deployment")["spec"]["template"]["spec"]


def test_the_crd_is_the_generated_one(helm: Helm) -> None:
    found = one(helm.render(), "CustomResourceDefinition")
    generated = yaml.safe_load(Path(CHART, "files", "crds", "abide.dev_agents.yaml").read_text())
    assert found["spec"] == generated["spec"]


def test_an_external_postgres_replaces_the_embedded_one(helm: Helm) -> None:
    objects = helm.render(OPTIONS["external with pooler"])
    assert {"StatefulSet", "Service"}.isdisjoint(o["kind"] for o in objects)
    assert [o["metadata"]["name"] for o in objects if o["kind"] == "Secret"] == ["abide-encryption"]
    told = environment(objects)
    assert told["ABIDE_POSTGRES_URL"] == {"name": "pg", "key": "u"}
    assert told["ABIDE_POSTGRES_DIRECT_URL"] == {"name": "pg", "key": "d"}


def test_a_secret_of_ones_own_is_used_and_none_generated(helm: Helm) -> None:
    objects = helm.render(OPTIONS["own secret"])
    assert [o["metadata"]["name"] for o in objects if o["kind"] == "Secret"] == ["abide-encryption"]
    assert environment(objects)["ABIDE_POSTGRES_URL"] == {"name": "mine", "key": "url"}
    volumes = one(objects, "StatefulSet")["spec"]["template"]["spec"]["volumes"]
    assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == ["mine"]


def test_namespaced_mode_asks_for_nothing_in_the_cluster(helm: Helm) -> None:
    objects = helm.render(NAMESPACED)
    assert not [o["kind"] for o in objects if o["kind"].startswith("Cluster") or o["kind"].startswith("Custom")]
    for kind in ("Role", "RoleBinding"):
        namespaces = sorted(o["metadata"]["namespace"] for o in objects if o["kind"] == kind)
        assert namespaces == ["abide-system", "desk", "shop"]  # its own one for its notes
    assert environment(objects)["ABIDE_WATCH_NAMESPACES"] == "shop,desk"
    cluster_wide = one(helm.render(), "ClusterRole", "abide-operator")
    watching = [o for o in objects if o["kind"] == "Role" and o["metadata"]["namespace"] != "abide-system"]
    assert all(o["rules"] == cluster_wide["rules"] for o in watching)


def test_registry_tags_digest_and_scheduling_reach_the_pods(helm: Helm) -> None:
    objects = helm.render(FULL)
    operator, postgres = (one(objects, kind)["spec"]["template"] for kind in ("Deployment", "StatefulSet"))
    registry = "registry.example.com/mirror"
    assert operator["spec"]["containers"][0]["image"] == f"{registry}/abide/operator:1.2.3@sha256:{'a' * 64}"
    assert postgres["spec"]["containers"][0]["image"] == f"{registry}/abide/postgres:1.2.3"
    assert environment(objects)["ABIDE_RUNTIME_IMAGE"] == f"{registry}/abide/runtime:9"
    for pod in (operator, postgres):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["spec"]["containers"][0]["imagePullPolicy"] == "Always"
        assert pod["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert operator["metadata"]["annotations"]["a"] == "b"
    assert (operator["metadata"]["labels"]["team"], postgres["metadata"]["labels"]["team"]) == ("x", "y")
    assert operator["spec"]["tolerations"] == FULL["operator"]["tolerations"]
    assert operator["spec"]["priorityClassName"] == "high"
    assert postgres["spec"]["containers"][0]["args"] == ["-c", "max_connections=200", "-c", "shared_buffers=512MB"]
    claim = one(objects, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["spec"]
    assert (claim["storageClassName"], claim["resources"]["requests"]["storage"]) == ("fast", "20Gi")


def test_labels_of_ones_own_cannot_break_the_selector(helm: Helm) -> None:
    deployment = one(helm.render({"operator": {"podLabels": {"app.kubernetes.io/name": "other"}}}), "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


MONITORING: Object = {
    "docsURL": "https://docs.example.com/abide/",
    "dashboards": {"labels": {"team": "x"}, "annotations": {"a": "b"}, "folder": "Agents"},
    "rules": {"labels": {"prometheus": "main"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "monitoring"}},
    "podMonitor": {"enabled": True, "labels": {"release": "monitoring"}, "interval": "15s"},
}
MONITORING_API = ("--api-versions", "monitoring.coreos.com/v1")


def test_dashboards_and_rules_come_as_config_maps(helm: Helm) -> None:
    objects = helm.render(MONITORING)
    dashboards = one(objects, "ConfigMap", "abide-dashboards")
    assert dashboards["metadata"]["labels"].items() >= {"grafana_dashboard": "1", "team": "x"}.items()
    assert dashboards["metadata"]["annotations"] == {"grafana_folder": "Agents", "a": "b"}
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert {name.removeprefix("abide-"): json.loads(text) for name, text in dashboards["data"].items()} == files
    assert {json.loads(text)["uid"] for text in dashboards["data"].values()} == {"abide-fleet", "abide-agent"}
    rules = one(objects, "ConfigMap", "abide-rules")
    assert rules["metadata"]["labels"]["prometheus"] == "main"
    assert yaml.safe_load(rules["data"]["abide.yaml"])["groups"] == expected_groups()
    assert sum(len(str(found)) for found in (dashboards, rules)) < 700_000, "a ConfigMap has at most 1 MiB"


def expected_groups() -> list[Object]:
    """Return the shipped rules with links to the documentation of MONITORING."""
    groups: list[Object] = yaml.safe_load((CHART / "rules" / "abide.yaml").read_text())["groups"]
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        link = rule["annotations"]["runbook_url"]
        rule["annotations"]["runbook_url"] = link.replace("docs/", "https://docs.example.com/abide/", 1)
    return groups


def test_the_prometheus_operator_gets_the_same_rules_and_finds_all_pods(helm: Helm) -> None:
    objects = helm.render(MONITORING, *MONITORING_API)
    rule = one(objects, "PrometheusRule")
    assert rule["spec"] == {"groups": expected_groups()}
    assert rule["metadata"]["labels"]["release"] == "monitoring"
    operator, agents = one(objects, "PodMonitor", "abide-operator"), one(objects, "PodMonitor", "abide-agents")
    selected = operator["spec"]["selector"]["matchLabels"]
    assert selected.items() <= one(objects, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert selected.items() > {"app.kubernetes.io/component": "operator"}.items()
    assert agents["spec"]["selector"]["matchLabels"].items() <= common_labels("desk").items()
    assert agents["spec"]["namespaceSelector"] == {"any": True}
    for monitor in (operator, agents):
        assert monitor["spec"]["podMetricsEndpoints"] == [{"port": PORT_NAME, "interval": "15s"}]
        assert monitor["metadata"]["labels"]["release"] == "monitoring"
    port = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"][0]
    assert port["name"] == PORT_NAME
    namespaced = helm.render({**MONITORING, **NAMESPACED}, *MONITORING_API)
    found = one(namespaced, "PodMonitor", "abide-agents")["spec"]["namespaceSelector"]
    assert found == {"matchNames": ["shop", "desk"]}


def test_objects_of_the_prometheus_operator_are_made_only_where_it_is_and_asked_for(helm: Helm) -> None:
    for values, arguments in ((MONITORING, ()), ({}, MONITORING_API)):
        kinds = {o["kind"] for o in helm.render(values, *arguments)}
        assert kinds.isdisjoint({"PrometheusRule", "PodMonitor"})
    off = helm.render({"dashboards": {"enabled": False}, "rules": {"enabled": False}})
    assert "ConfigMap" not in {o["kind"] for o in off}


REFUSED: dict[str, tuple[Object, str]] = {
    "key at the top": ({"postgress": {}}, "postgress"),
    "key of the operator": ({"operator": {"replicas": 2}}, "replicas"),
    "key deep inside": ({"postgres": {"embedded": {"storage": {"sice": "1Gi"}}}}, "sice"),
    "key of resources": ({"operator": {"resources": {"limit": {}}}}, "limit"),
    "key of a toleration": ({"operator": {"tolerations": [{"keys": "x"}]}}, "keys"),
    "number as string": ({"operator": {"logLevel": "LOUD"}}, "logLevel"),
    "size": ({"postgres": {"embedded": {"storage": {"size": "big"}}}}, "size"),
    "namespace": ({"watchNamespaces": ["Shop"]}, "watchNamespaces"),
    "parameter of the container": ({"postgres": {"embedded": {"parameters": {"port": "1"}}}}, "port"),
    "interval": ({"podMonitor": {"interval": "often"}}, "interval"),
    "both databases": (
        {"postgres": {"external": {"secretRef": {"name": "pg"}}}},
        "set postgres.embedded.enabled=false to use the one of Secret pg",
    ),
    "no database": ({"postgres": {"embedded": {"enabled": False}}}, "set postgres.embedded.enabled=true"),
    "direct key alone": ({"postgres": {"external": {"directKey": "d"}}}, "set both or neither"),
    "own secret without database": (
        {"postgres": {"embedded": {"enabled": False, "existingSecret": "a"}, "external": {"secretRef": {"name": "b"}}}},
        "set postgres.external.secretRef.name instead",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_values_are_refused_with_the_key_or_the_remedy(helm: Helm, case: str) -> None:
    values, words = REFUSED[case]
    assert words in helm.refuse(values)


def needed_rights() -> dict[str, set[str]]:
    """Return what the operator's calls need: {resource: verbs}, from the kinds its own code names."""
    rights: dict[str, set[str]] = {}

    def allow(kind: Kind, *verbs: str, part: str = "") -> None:
        rights.setdefault(f"{kind.group}/{kind.plural}{part}", set()).update(verbs)

    for kind in WATCHED_KINDS:
        allow(kind, "list", "watch")
    for kind in CHILD_KINDS:
        allow(kind, "get", "create", "patch")
    allow(AGENT, "get", "patch")  # patch: the finalizer
    allow(POD, "patch")  # of a changed Secret
    allow(DISRUPTION_BUDGET, "delete")  # of an agent with one pod
    allow(AGENT, "patch", part="/status")
    allow(AGENT, "update", part="/finalizers")  # owner references that block deletion
    allow(CONFIG_MAP, "delete")  # revisions no longer in use
    allow(REPLICA_SET, "list")  # which ones are
    allow(EVENT, "create")
    return rights


def test_the_operator_may_do_what_its_code_calls_and_nothing_more(helm: Helm) -> None:
    granted: dict[str, set[str]] = {}
    for rule in one(helm.render(), "ClusterRole", "abide-operator")["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault(f"{group}/{resource}", set()).update(rule["verbs"])
    assert granted == needed_rights()


@pytest.mark.parametrize("option", ["default", "namespaced"])
def test_the_operator_keeps_its_own_notes_in_its_own_namespace(helm: Helm, option: str) -> None:
    objects = helm.render(OPTIONS[option])
    role = one(objects, "Role", "abide-operator-own")
    assert role["metadata"]["namespace"] == "abide-system"
    notes = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "create", "delete"]}
    tokens = {
        "apiGroups": [""],
        "resources": ["serviceaccounts/token"],
        "resourceNames": ["abide-token-reviewer"],
        "verbs": ["create"],
    }
    assert role["rules"] == ([notes, tokens] if option == "default" else [notes])
    assert one(objects, "RoleBinding", "abide-operator-own")["roleRef"]["name"] == "abide-operator-own"
    assert environment(objects)["ABIDE_NAMESPACE"] == "abide-system"


def test_users_roles_cover_agents_and_only_them(helm: Helm) -> None:
    objects = helm.render()
    for name, to, verbs in (
        ("abide-agents-view", {"view", "edit", "admin"}, {"get", "list", "watch"}),
        (
            "abide-agents-edit",
            {"edit", "admin"},
            {"create", "update", "patch", "delete", "deletecollection", "chat", "read", "approve", "operate"},
        ),
        ("abide-agents-chat", set[str](), {"chat"}),
    ):
        role = one(objects, "ClusterRole", name)
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        labels = role["metadata"]["labels"]
        assert {key.removeprefix(prefix) for key in labels if key.startswith(prefix)} == to
        assert {group for rule in role["rules"] for group in rule["apiGroups"]} == {"abide.dev"}
        assert {verb for rule in role["rules"] for verb in rule["verbs"]} == verbs


def test_who_reviews_tokens_may_do_nothing_else(helm: Helm) -> None:
    objects = helm.render()
    rules = one(objects, "ClusterRole", "abide-token-reviewer")["rules"]
    assert {(*rule["apiGroups"], *rule["resources"], *rule["verbs"]) for rule in rules} == {
        ("authentication.k8s.io", "tokenreviews", "create"),
        ("authorization.k8s.io", "subjectaccessreviews", "create"),
    }
    account = one(objects, "ServiceAccount", "abide-token-reviewer")
    assert account["automountServiceAccountToken"] is False
    (subject,) = one(objects, "ClusterRoleBinding", "abide-token-reviewer")["subjects"]
    assert (subject["kind"], subject["name"], subject["namespace"]) == (
        "ServiceAccount",
        account["metadata"]["name"],
        account["metadata"]["namespace"],
    )
    assert environment(objects)["ABIDE_REVIEWER_ACCOUNT"] == "abide-token-reviewer"
    without = helm.render({"kubernetesTokens": {"enabled": False}})
    assert "token-reviewer" not in str(without)
    assert "ABIDE_REVIEWER_ACCOUNT" not in environment(without)


def test_the_notes_name_the_next_commands(helm: Helm) -> None:
    done = helm.run("install", "abide", str(CHART), "-n", "abide-system", "--dry-run=client", values={})
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    for word in ("kubectl apply", "kubectl wait", "abide chat assistant", "psql -U abide", "helm uninstall"):
        assert word in notes
