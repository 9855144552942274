"""Looking after agents, against a real API server: what is read, what is written, what is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent_api.version import VERSION
from tests.integration.agent_cli.cluster import TIME, World


def test_status_of_one_agent_has_few_lines_and_the_next_command(world: World) -> None:
    world.make_agent()
    world.report(revision={"current": "aaaa", "ready": "aaaa"})
    done = world.abide("status", "bot", "-n", world.namespace)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 15
    assert lines[0] == f"Agent {world.namespace}/bot: Ready=True since {TIME}, Serving"
    # No operator runs here, and that is told instead of being passed over.
    assert "status is old: no operator is installed" in done.stdout
    assert lines[-1].endswith(f'abide chat bot -n {world.namespace} "hello"')
    told = world.ask("status", "bot")
    assert (told["ready"], told["reason"], told["replicas"]) == ("True", "Serving", {"desired": 1, "ready": 1})
    assert told["old"]
    assert told["timeline"]


def test_status_tells_events_in_its_timeline(world: World) -> None:
    agent = world.make_agent()
    world.report(conditions={"Ready": ("False", "CrashLoop")})
    world.make(
        {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": "bot.1"},
            "eventTime": "2026-01-02T15:00:00.000000Z",
            "reportingController": "abide.dev/operator",
            "reportingInstance": "x",
            "regarding": {
                "apiVersion": "abide.dev/v1alpha1", "kind": "Agent", "name": "bot",
                "namespace": world.namespace, "uid": agent["metadata"]["uid"],
            },
            "action": "Reconcile",
            "reason": "PodReplaced",
            "note": "a pod was replaced",
            "type": "Warning",
        }
    )  # fmt: skip
    shown = world.abide("status", "bot", "-n", world.namespace).stdout
    assert "2026-01-02T15:00:00Z PodReplaced: a pod was replaced" in shown
    assert f"abide logs bot -n {world.namespace} --previous" in shown.splitlines()[-1]


def test_a_spec_that_nobody_processes_makes_the_status_old(world: World) -> None:
    operator = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "abide-operator",
            "labels": {"app.kubernetes.io/name": "abide", "app.kubernetes.io/component": "operator"},
        },
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "operator", "image": "none"}]}
            },
        },
    }  # fmt: skip
    world.make(operator)
    try:
        world.make_agent()
        world.report()
        silent = world.ask("status", "bot")
        assert "the operator is silent since" in silent["old"]
        available = json.dumps({"status": {"availableReplicas": 1, "readyReplicas": 1, "replicas": 1}})
        world.kubectl(
            "patch", "deployment", "abide-operator", "--subresource=status", "--type=merge", f"--patch={available}"
        )
        assert world.ask("status", "bot")["old"] is None
    finally:
        world.kubectl("delete", "deployment", "abide-operator")


def test_the_table_of_agents_fits_a_pipe_and_sorts_by_name(world: World) -> None:
    for name in ("zeta", "alpha"):
        world.make_agent(name)
    world.report("alpha")
    done = world.abide("status", "-n", world.namespace)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "MODEL", "UP", "SESSIONS", "AGE"]
    assert [row.split()[:3] for row in rows] == [["alpha", "True", "Serving"], ["zeta", "Unknown", "no"]]
    assert all(row == row.rstrip() for row in done.stdout.splitlines())
    everywhere = world.abide("status", "-A", "-o", "yaml").stdout
    assert f"namespace: {world.namespace}" in everywhere
    assert [one["name"] for one in world.ask("status")["items"]] == ["alpha", "zeta"]


def test_start_and_stop_change_one_field_and_may_be_repeated(world: World) -> None:
    world.make_agent(replicas=0)
    for expected in ("suspended; running turns finish", "was suspended already"):
        done = world.abide("stop", "bot", "-n", world.namespace)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    assert world.agent()["spec"]["suspend"] is True
    for expected in ("resumed; replicas raised from 0 to 1", "was started already"):
        done = world.abide("start", "bot", "-n", world.namespace)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    spec = world.agent()["spec"]
    assert (spec["suspend"], spec["replicas"]) == (False, 1)


def test_waiting_says_what_came_of_it(world: World) -> None:
    world.make_agent(suspend=True)
    world.report(conditions={"Ready": ("False", "Suspended"), "Suspended": ("True", "Suspended")})
    stopped = world.abide("stop", "bot", "-n", world.namespace, "--wait")
    assert stopped.returncode == 0, stopped.stderr
    assert "no pods are left after" in stopped.stdout
    late = world.abide("start", "bot", "-n", world.namespace, "--wait", "--timeout", "2")
    assert late.returncode == 1
    assert late.stderr.startswith(f"error: Agent {world.namespace}/bot is not there within 2 s; it is Ready=False")
    world.report(conditions={"Ready": ("False", "SecretMissing"), "Accepted": ("False", "SecretMissing")})
    hopeless = world.abide("start", "bot", "-n", world.namespace, "--wait")
    assert hopeless.returncode == 1
    assert "is not served: SecretMissing" in hopeless.stderr
    world.report()
    ready = world.abide("start", "bot", "-n", world.namespace, "--wait")
    assert (ready.returncode, ready.stderr) == (0, "")
    assert "Ready=True Serving after" in ready.stdout


def make_history(world: World) -> None:
    """An agent with three revisions; the third changed the model's prompt and a limit."""
    world.make_agent()
    world.keep_revision(1, "aaaa111111")
    world.change(history={"limit": 7})
    world.keep_revision(2, "bbbb222222")
    world.change(systemPrompt="Be rude.", limits={"maxSteps": 3})
    world.keep_revision(3, "cccc333333")


def test_history_and_diff_say_what_changed(world: World) -> None:
    make_history(world)
    items = world.ask("history", "bot")["items"]
    assert [(one["number"], one["revision"], one["current"]) for one in items] == [
        (3, "cccc333333", True), (2, "bbbb222222", False), (1, "aaaa111111", False),
    ]  # fmt: skip
    assert items[0]["summary"] == "limits.maxSteps: 20 → 3; systemPrompt: Be kind. → Be rude."
    assert items[1]["summary"] == "history.limit: 50 → 7"
    shown = world.abide("history", "bot", "-n", world.namespace).stdout.splitlines()
    assert shown[0].split() == ["NUMBER", "REVISION", "AGE", "STATE", "CHANGED"]
    assert shown[1].split()[3] == "current,ready"
    last = world.abide("diff", "bot", "-n", world.namespace).stdout
    assert "-    maxSteps: 20" in last
    assert "+    maxSteps: 3" in last
    two = world.ask("diff", "bot", "1", "bbbb")
    assert two["changes"] == [{"path": "spec.history.limit", "from": 50, "to": 7}]
    unknown = world.abide("diff", "bot", "9", "-n", world.namespace)
    assert unknown.returncode == 1
    assert "kept are: 3 (cccc333333), 2 (bbbb222222), 1 (aaaa111111)" in unknown.stderr


def test_rollback_writes_the_old_spec_and_keeps_what_makes_no_revision(world: World) -> None:
    make_history(world)
    world.change(replicas=3, suspend=True)
    asked = world.abide("rollback", "bot", "-n", world.namespace)
    assert asked.returncode == 2
    assert "give --yes" in asked.stderr
    assert world.agent()["spec"]["systemPrompt"] == "Be rude."
    done = world.abide("rollback", "bot", "-n", world.namespace, "--yes", "--wait")
    assert done.returncode == 0, done.stderr
    assert "-  systemPrompt: Be rude." in done.stdout
    assert "the spec is that of revision 2 (bbbb222222) again" in done.stdout
    spec = world.agent()["spec"]
    assert (spec["systemPrompt"], spec["limits"]["maxSteps"], spec["history"]["limit"]) == ("Be kind.", 20, 7)
    assert (spec["replicas"], spec["suspend"]) == (3, True)
    first = world.abide("rollback", "bot", "-n", world.namespace, "--to", "1", "--yes")
    assert first.returncode == 0, first.stderr
    assert world.agent()["spec"]["history"]["limit"] == 50
    again = world.abide("rollback", "bot", "-n", world.namespace, "--to", "1", "--yes")
    assert "is that of revision 1 (aaaa111111) already" in again.stdout


def test_a_failed_rollout_goes_back_to_what_serves(world: World) -> None:
    make_history(world)
    world.report(
        conditions={"Progressing": ("False", "RolloutFailed")},
        revision={"current": "cccc333333", "ready": "aaaa111111"},
    )
    assert f"abide rollback bot -n {world.namespace}" in world.ask("status", "bot")["next"]
    done = world.abide("rollback", "bot", "-n", world.namespace, "--yes")
    assert "the spec is that of revision 1 (aaaa111111) again" in done.stdout


def test_a_prompt_whose_config_map_changed_is_rolled_back_inline(world: World) -> None:
    ref = {"configMapKeyRef": {"name": "prompts", "key": "bot"}}
    world.kubectl("create", "configmap", "prompts", "--from-literal=bot=Old text.")
    world.make_agent(systemPromptFrom=ref)
    world.keep_revision(1, "aaaa111111", prompt="Old text.")
    world.change(history={"limit": 9})
    world.keep_revision(2, "bbbb222222", prompt="Old text.")
    same = world.abide("rollback", "bot", "-n", world.namespace, "--yes")
    assert same.returncode == 0, same.stderr
    assert world.agent()["spec"]["systemPromptFrom"] == ref
    world.kubectl("patch", "configmap", "prompts", "--type=merge", '--patch={"data":{"bot":"New text."}}')
    world.change(history={"limit": 11})
    world.keep_revision(3, "cccc333333", prompt="New text.")
    inlined = world.abide("rollback", "bot", "-n", world.namespace, "--to", "2", "--yes")
    assert inlined.returncode == 0, inlined.stderr
    assert "the prompt is written inline" in inlined.stderr
    spec = world.agent()["spec"]
    assert "systemPromptFrom" not in spec
    assert (spec["systemPrompt"], spec["history"]["limit"]) == ("Old text.", 9)


def test_errors_fall_back_to_the_status_when_no_pod_answers(world: World) -> None:
    world.make_agent(suspend=True)
    last = {"time": "2026-01-02T14:00:00Z", "type": "ModelUnreachable", "message": "echo/echo answers 503"}
    world.report(conditions={"Ready": ("False", "Suspended")}, lastError=last)
    done = world.abide("errors", "bot", "-n", world.namespace)
    assert done.returncode == 0, done.stderr
    assert "its status still tells" in done.stderr
    assert done.stdout.splitlines()[1].split()[:3] == ["2026-01-02T14:00:00Z", "ModelUnreachable", "-"]
    told = world.ask("errors", "bot")
    assert (told["source"], told["items"][0]["message"]) == ("status", "echo/echo answers 503")


def test_logs_without_pods_name_the_next_command(world: World) -> None:
    world.make_agent(suspend=True)
    world.report(conditions={"Ready": ("False", "Suspended")})
    done = world.abide("logs", "bot", "-n", world.namespace)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: Agent {world.namespace}/bot has no pods. Next: abide start bot -n {world.namespace} --wait\n"
    )


def test_doctor_names_what_is_wrong_and_ends_with_1(world: World) -> None:
    world.make_agent()
    world.report(conditions={"Ready": ("False", "CrashLoop")})
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"pods": "2"}},
    }
    world.make(quota)
    used = json.dumps({"status": {"hard": {"pods": "2"}, "used": {"pods": "2"}}})
    world.kubectl("patch", "resourcequota", "small", "--subresource=status", "--type=merge", f"--patch={used}")
    done = world.abide("doctor", "-n", world.namespace, "-o", "json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    levels = {(one["check"], one["level"]) for one in found["checks"]}
    assert {("kubectl", "ok"), ("cluster", "ok"), ("crd", "ok"), ("operator", "fail"), ("quotas", "warn")} <= levels
    assert ("agents", "fail") in levels
    assert all(one["remedy"] for one in found["checks"] if one["level"] != "ok")
    assert (found["ok"], found["version"]) == (False, VERSION)
    shown = world.abide("doctor", "-n", world.namespace).stdout
    assert f"fail  agents    {world.namespace}/bot is not ready: CrashLoop" in shown


def test_doctor_without_a_cluster_ends_early(world: World) -> None:
    done = world.abide("doctor", KUBECONFIG="/nowhere/config")
    assert done.returncode == 1
    assert "fail  cluster" in done.stdout
    none = world.abide("doctor", KUBECTL="/nowhere/kubectl")
    assert none.returncode == 1
    assert none.stdout.startswith("fail  kubectl   kubectl was not found")


def test_the_plugin_does_the_same_through_kubectl(world: World, tmp_path: Path) -> None:
    world.make_agent()
    world.report()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl-abide").symlink_to(Path(sys.executable).with_name("kubectl-abide"))
    done = subprocess.run(
        [world.kubectl_path, "abide", "status", "bot", "-n", world.namespace, "-o", "json"],
        env={
            "PATH": f"{programs}:{Path(world.kubectl_path).parent}:/usr/bin:/bin",
            "HOME": str(world.home),
            "KUBECONFIG": str(world.kubeconfig),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "bot"
    wrong = world.abide("nosuch", program="kubectl-abide")
    assert wrong.returncode == 2
    assert "kubectl abide" in wrong.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_commands_and_names_of_agents(world: World, shell: str) -> None:
    for name in ("bot", "bold", "other"):
        world.make_agent(name)
    script = world.abide("completion", shell)
    assert script.returncode == 0
    assert "_ABIDE_COMPLETE" in script.stdout
    line = f"abide status -n {world.namespace} bo"
    words = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": "4"},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    offered = world.abide(**words, _ABIDE_COMPLETE=f"complete_{shell}")
    assert "bold" in offered.stdout
    assert "bot" in offered.stdout
    assert "other" not in offered.stdout
    silent = world.abide(**words, _ABIDE_COMPLETE=f"complete_{shell}", KUBECONFIG="/nowhere/config")
    assert "bold" not in silent.stdout
    assert silent.stderr == ""


def test_kubectl_completes_the_plugin(world: World, tmp_path: Path) -> None:
    world.make_agent("helpdesk")
    program = tmp_path / "kubectl_complete-abide"
    program.write_text(world.abide("completion", "kubectl").stdout)
    program.chmod(0o755)
    for name in ("abide", "kubectl-abide"):
        (tmp_path / name).symlink_to(Path(sys.executable).with_name(name))
    done = subprocess.run(
        [world.kubectl_path, "__complete", "abide", "status", "-n", world.namespace, "he"],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(world.home),
            "KUBECTL": world.kubectl_path, "KUBECONFIG": str(world.kubeconfig),
        },
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["helpdesk", ":4"]


def test_bash_itself_completes(world: World) -> None:
    world.make_agent("helpdesk")
    script = world.abide("completion", "bash").stdout
    ask = (
        f"{script}\nCOMP_WORDS=(abide status -n {world.namespace} he); COMP_CWORD=4\n"
        '_abide_completion abide; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", ask],
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(world.home), "KUBECTL": world.kubectl_path, "KUBECONFIG": str(world.kubeconfig),
        },
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "helpdesk"


def test_an_unknown_agent_is_one_sentence(world: World) -> None:
    world.make_agent()
    done = world.abide("status", "nobody", "-n", world.namespace)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: There is no agent 'nobody' in namespace {world.namespace}; `abide status -A` lists all.\n"
    )
