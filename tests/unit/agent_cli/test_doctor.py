"""The checks of `abide doctor`, on what a cluster answers."""

import copy
from collections.abc import Iterable
from typing import Any

from agent_api.crdgen import build_crd
from agent_api.version import VERSION
from agent_cli.operate.doctor import (
    Finding,
    check_agents,
    check_crd,
    check_operators,
    check_quotas,
    check_readiness,
    check_store,
)


def seen(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    found = list(findings)
    assert all(one.remedy for one in found if one.level != "ok")
    return [(one.check, one.level.value) for one in found]


def crd() -> dict[str, Any]:
    found = copy.deepcopy(build_crd())
    found["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
    return found


def test_the_crd_is_compared_field_by_field() -> None:
    assert seen(check_crd(crd())) == [("crd", "ok")]
    assert seen(check_crd(build_crd())) == [("crd", "fail")]
    older, newer = crd(), crd()
    spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["limits"]
    (finding,) = check_crd(older)
    assert (finding.level, "lacks spec.limits, spec.limits.maxSteps" in finding.message) == ("fail", True)
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["dreams"] = {"type": "string"}
    (finding,) = check_crd(newer)
    assert (finding.level, "spec.dreams" in finding.message) == ("warn", True)


def operator(available: int, version: str = VERSION) -> dict[str, Any]:
    labels = {"app.kubernetes.io/version": version}
    return {
        "metadata": {"name": "abide-operator", "namespace": "abide-system", "labels": labels},
        "status": {"availableReplicas": available},
    }


def test_operators() -> None:
    assert seen(check_operators([])) == [("operator", "fail")]
    assert seen(check_operators([operator(1)])) == [("operator", "ok"), ("versions", "ok")]
    assert seen(check_operators([operator(0, "0.0.1")])) == [("operator", "fail"), ("versions", "warn")]


def test_what_the_operator_says() -> None:
    assert seen(check_readiness('{"ok": true, "checks": [{"name": "synced", "ok": true, "message": ""}]}')) == [
        ("operator", "ok")
    ]
    (finding,) = check_readiness('{"ok": false, "checks": [{"name": "synced", "ok": false, "message": "not yet"}]}')
    assert (finding.level, finding.message) == ("fail", "it is not ready: synced: not yet")
    assert seen(check_readiness("<html>")) == [("operator", "warn")]


def test_postgres_as_the_operator_sees_it() -> None:
    assert seen(check_store("abide_operator_store_reachable 1.0\nabide_operator_migrations_done 1.0\n")) == [
        ("postgres", "ok")
    ]
    assert seen(check_store("abide_operator_store_reachable 0.0\n")) == [("postgres", "fail")]
    assert seen(check_store("abide_operator_store_reachable 1.0\nabide_operator_migrations_done 0.0")) == [
        ("postgres", "fail")
    ]
    assert seen(check_store("# nothing\n")) == [("postgres", "warn")]


def agent(name: str, ready: str, reason: str, degraded: str = "False", **more: Any) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": ready, "reason": reason, "message": "m"},
        {"type": "Degraded", "status": degraded, "reason": "ServingOnFallback"},
    ]
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": more, "status": {"conditions": conditions}}


def test_agents_that_are_stopped_on_purpose_are_well() -> None:
    assert seen(check_agents([])) == [("agents", "ok")]
    stopped = [agent("a", "False", "Suspended", suspend=True), agent("b", "False", "ScaledToZero", replicas=0)]
    assert seen(check_agents(stopped)) == [("agents", "ok")]
    assert seen(check_agents([agent("a", "False", "CrashLoop"), *stopped])) == [("agents", "fail")]
    assert seen(check_agents([agent("a", "True", "Serving", degraded="True")])) == [("agents", "warn")]
    many = [agent(f"a{number}", "False", "CrashLoop") for number in range(50)]
    assert len(seen(check_agents(many))) == 11


def test_runtimes_of_another_version_are_named() -> None:
    old = agent("a", "True", "Serving")
    old["status"]["runtimeVersion"] = "0.0.1"
    assert seen(check_agents([old])) == [("agents", "ok"), ("versions", "warn")]


def test_quotas_that_are_almost_used_up() -> None:
    def quota(used: str, hard: str) -> dict[str, Any]:
        status = {"hard": {"limits.memory": hard}, "used": {"limits.memory": used}}
        return {"metadata": {"name": "q", "namespace": "shop"}, "status": status}

    assert seen(check_quotas([quota("950Mi", "1Gi")])) == [("quotas", "warn")]
    assert seen(check_quotas([quota("100Mi", "1Gi"), quota("odd", "1Gi"), quota("0", "0")])) == [("quotas", "ok")]
