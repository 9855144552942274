"""`make up` and `make down`: a cluster, Abide in it, and an agent that answers; and all of it gone again.

The cluster (variable CLUSTER: local, kind or current) is the work of `tests.cluster`; this puts the chart and the
example agent on it. Running it again changes nothing. Exit codes: 0 done, 1 a step failed (one sentence says which and
where to look), 2 a requirement is missing or was refused.

With CLUSTER=current the nodes must be able to pull the images: ABIDE_IMAGE_REGISTRY and ABIDE_IMAGE_TAG say from where.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.consent import ask  # noqa: E402
from tests.cluster.errors import RequirementError  # noqa: E402
from tools import deployment  # noqa: E402
from tools.deployment import AGENT, AGENT_NAMESPACE, MADE_BY, MADE_LABEL, NAMESPACE, RELEASE  # noqa: E402

CHART = ROOT / "helm" / "abide"
EXAMPLE = ROOT / "examples" / "assistant.yaml"
INSTALL_TIMEOUT = 300.0
READY_TIMEOUT = 180.0
COMMAND_TIMEOUT = 60.0
# The binaries of a local cluster take 5 to 10 minutes to build the first time; slow machines get more.
CLUSTER_TIMEOUT = 3600.0
# Sent with the same keys each time: a second `make up` gets the same replies and writes nothing.
MESSAGES = ("Hello, I have just installed you.", "Do you remember what I said?")
SESSION = "make-up"


class StepFailed(Exception):  # noqa: N818 - the message is what matters to its reader
    """A step did not work. The text is one sentence, `look` the command that shows more."""

    def __init__(self, text: str, look: str = "", *, exit_code: int = 1) -> None:
        super().__init__(text)
        self.look = look
        self.exit_code = exit_code


def say(text: str) -> None:
    """Write one line at once."""
    print(text, flush=True)  # noqa: T201 - this is a program for the terminal


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print the name of a step and, once done, what it took."""
    say(f"── {name}")
    begin = time.monotonic()
    yield
    say(f"   {time.monotonic() - begin:.1f} s")


def run(
    command: list[str], *, timeout: float = COMMAND_TIMEOUT, stdin: str | None = None, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program quietly to its end, whatever its exit code. Raises: StepFailed when it takes too long."""
    try:
        return subprocess.run(  # noqa: S603 - programs of this repository, arguments as a list
            command,
            check=False,
            capture_output=True,
            text=True,
            input=stdin if stdin is not None else "",
            timeout=timeout,
            env=dict(environ),
        )
    except subprocess.TimeoutExpired as error:
        raise StepFailed(f"`{shlex.join(command)}` did not end within {timeout:.0f} s.") from error


def last_line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def cluster_tool(*arguments: str, capture: bool = False, check: bool = True) -> str:
    """Run `python -m tests.cluster`, its progress going to the terminal; return its output if asked.

    Raises: StepFailed when `check`ed; the tool has said on the terminal what is wrong.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.cluster", *arguments],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        timeout=CLUSTER_TIMEOUT,
    )
    if done.returncode and check:
        raise StepFailed(
            f"`tests.cluster {' '.join(arguments)}` failed, as said above.",
            "python -m tests.cluster status",
            exit_code=done.returncode,
        )
    return (done.stdout or "").strip()


class Deployment:
    """The cluster that is up, reached by kubectl and helm."""

    def __init__(self) -> None:
        said = dict(line.split(maxsplit=1) for line in cluster_tool("status", capture=True).splitlines())
        self.provider = said["provider"]
        self.kubeconfig = said["kubeconfig"]
        # Who uses a cluster of their own has these, with the plugins their login needs.
        found = {name: self.provider == "current" and shutil.which(name) for name in ("kubectl", "helm")}
        self.kubectl_path = found["kubectl"] or cluster_tool("tool", "kubectl", capture=True)
        self.helm_path = found["helm"] or cluster_tool("tool", "helm", capture=True)
        self.directories = list(
            dict.fromkeys(str(Path(p).parent) for p in (sys.executable, self.kubectl_path, self.helm_path))
        )
        self.environ = {
            **os.environ,
            "KUBECONFIG": self.kubeconfig,
            "PATH": ":".join([*self.directories, os.environ.get("PATH", "/usr/bin:/bin")]),
        }

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = COMMAND_TIMEOUT) -> str:
        """Return what kubectl prints. Raises: StepFailed with its last words."""
        done = run([self.kubectl_path, *arguments], stdin=stdin, timeout=timeout, environ=self.environ)
        if done.returncode:
            raise StepFailed(f"kubectl {arguments[0]} failed: {last_line(done.stderr)}", self.hint("get", "nodes"))
        return done.stdout

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects `kubectl get` finds; none where they, or their kind, do not exist."""
        done = run([self.kubectl_path, "get", *arguments, "-o", "json", "--ignore-not-found"], environ=self.environ)
        if done.returncode and "the server doesn't have a resource type" not in done.stderr:
            raise StepFailed(f"kubectl get {arguments[0]} failed: {last_line(done.stderr)}", self.hint("get", "nodes"))
        found = json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else {"items": []}
        return list(found["items"]) if "items" in found else [found]

    def hint(self, *arguments: str) -> str:
        """Return a kubectl command for a person's terminal."""
        return f"KUBECONFIG={self.kubeconfig} {self.kubectl_path} {' '.join(arguments)}"

    def helm(self, *arguments: str, timeout: float = COMMAND_TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run helm on the release's namespace, whatever its exit code."""
        return run([self.helm_path, *arguments, "-n", NAMESPACE], timeout=timeout, environ=self.environ)

    def release(self) -> deployment.Release | None:
        """Return the release, None where there is none."""
        done = self.helm("status", RELEASE, "-o", "json")
        if done.returncode == 0:
            return deployment.parse_release(done.stdout)
        if "not found" in done.stderr:
            return None
        raise StepFailed(f"helm status failed: {last_line(done.stderr)}", self.hint("get", "nodes"))


# ---------------------------------------------------------------------------------------------------- up


def up() -> None:
    """Bring everything up, or find that it is."""
    begin = time.monotonic()
    with step("cluster"):
        cluster_tool("up")
    target = Deployment()
    with step("images"):
        tags = deployment.parse_image_tags(cluster_tool("images", capture=True))
    with step("Abide"):
        ensure_namespace(target)
        ensure_release(target, deployment.image_values(tags, os.environ))
    with step(f"agent {AGENT}"):
        ensure_agent(target)
    with step("two messages"):
        chat(target)
    say(f"\nAbide is up ({time.monotonic() - begin:.1f} s).\n")
    say(deployment.next_steps(target.kubeconfig, target.directories, str(ROOT)))


def ensure_namespace(target: Deployment) -> None:
    """Make the namespace where pods must be restricted; ask first in a cluster that is not ours."""
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    found = target.items("namespace", NAMESPACE)
    if not found:
        if target.provider == "current":
            context = target.kubectl("config", "current-context").strip()
            ask([f"install Abide, and the agent {AGENT_NAMESPACE}/{AGENT}, in the cluster of context {context}"])
        metadata = {"name": NAMESPACE, "labels": {**labels, MADE_LABEL: MADE_BY}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        target.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    elif not labels.items() <= found[0]["metadata"].get("labels", {}).items():
        words = [f"{name}={value}" for name, value in labels.items()]
        target.kubectl("label", "namespace", NAMESPACE, "--overwrite", *words)


def ensure_release(target: Deployment, values: dict[str, Any]) -> None:
    """Install or upgrade the chart, unless exactly this is installed and ready."""
    description = deployment.release_description(deployment.chart_fingerprint(CHART, values))
    release = target.release()
    if release is not None and release.is_interrupted:
        release = recover_release(target, release)
    if release == deployment.Release("deployed", description) and workloads_are_ready(target):
        say("   unchanged")
        return
    command = [
        *(target.helm_path, "upgrade", RELEASE, str(CHART), "--install", "-n", NAMESPACE, "--description", description),
        # Without --reset-values helm takes the former values where the new ones are empty.
        *("--reset-values", "--values", "-", "--wait", "--timeout", f"{INSTALL_TIMEOUT:.0f}s"),
    ]
    pods = ["pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={RELEASE}"]
    done = run_watched(
        command,
        stdin=json.dumps(values),
        environ=target.environ,
        timeout=INSTALL_TIMEOUT + 30,
        watch=lambda: deployment.pods_in_words(target.items(*pods)),
    )
    if done.returncode:
        state = deployment.pods_in_words(target.items(*pods))
        seen = f" ({state})" if state else ""
        raise StepFailed(
            f"helm could not install Abide: {last_line(done.stderr)}{seen}",
            target.hint("describe", *pods),
        )


def recover_release(target: Deployment, release: deployment.Release) -> deployment.Release | None:
    """Put a release back into a state helm can go on from, after a helm that was killed."""
    say(f"   an earlier helm was interrupted ({release.status}): cleaning up after it")
    if release.status in ("pending-upgrade", "pending-rollback"):
        done = target.helm("rollback", RELEASE, timeout=INSTALL_TIMEOUT)
    else:
        done = target.helm("uninstall", RELEASE, "--wait", timeout=INSTALL_TIMEOUT)
    if done.returncode:
        raise StepFailed(f"helm could not recover: {last_line(done.stderr)}", f"helm history {RELEASE} -n {NAMESPACE}")
    return target.release()


def workloads_are_ready(target: Deployment) -> bool:
    """Tell whether operator and Postgres are there with all their pods."""
    found = target.items("deployments,statefulsets", "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={RELEASE}")
    return len(found) == 2 and all(map(deployment.is_ready, found))


def run_watched(
    command: list[str], *, stdin: str, environ: Mapping[str, str], timeout: float, watch: Callable[[], str]
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and print what `watch` sees meanwhile, when it changes, at most every 2 s."""
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(environ)
    )
    shown = ""
    sent: str | None = stdin
    try:
        while True:
            try:
                out, err = process.communicate(sent, timeout=2)
                return subprocess.CompletedProcess(command, process.returncode, out, err)
            except subprocess.TimeoutExpired:
                sent = None  # it was handed over by the first call
            if time.monotonic() > deadline:
                raise StepFailed(f"`{shlex.join(command[:3])}` did not end within {timeout:.0f} s.")
            if (seen := watch()) and seen != shown:
                say(f"   {seen}")
                shown = seen
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(10)


def ensure_agent(target: Deployment) -> None:
    """Apply the example and wait until it is Ready, telling what status says meanwhile."""
    look = target.hint("describe", f"agents.abide.dev/{AGENT}", "-n", AGENT_NAMESPACE)
    query = ("agents.abide.dev", AGENT, "-n", AGENT_NAMESPACE)
    before = target.items(*query)
    target.kubectl("apply", "-n", AGENT_NAMESPACE, "-f", str(EXAMPLE))
    # kubectl says "configured" also where only defaults of list entries stand against it; the generation tells.
    say(f"   {deployment.change_in_words(before, target.items(*query))}")
    begin, shown = time.monotonic(), ""
    while True:
        agents = target.items(*query)
        if not agents:
            raise StepFailed(f"agent {AGENT} was deleted while it was waited for.", look)
        state = deployment.agent_state(agents[0])
        if state.is_ready:
            say(f"   Ready: {state.words}")
            return
        waited = time.monotonic() - begin
        if waited > READY_TIMEOUT:
            raise StepFailed(f"agent {AGENT} is not Ready after {READY_TIMEOUT:.0f} s: {state.words}", look)
        if waited > 3 and state.words != shown:
            say(f"   {waited:.0f} s: {state.words}")
            shown = state.words
        time.sleep(0.3)


def chat(target: Deployment) -> None:
    """Send the messages as a user does and print the replies."""
    abide = str(Path(sys.executable).with_name("abide"))
    for number, message in enumerate(MESSAGES, start=1):
        command = [abide, "chat", AGENT, message, "-n", AGENT_NAMESPACE, "--session", SESSION]
        command += ["--idempotency-key", f"{SESSION}-{number}", "--timeout", "60"]
        done = run(command, timeout=120, environ={**target.environ, "KUBECTL": target.kubectl_path})
        if done.returncode:
            raise StepFailed(
                f"the agent did not answer {message!r}: {last_line(done.stderr)}",
                target.hint("logs", "-n", AGENT_NAMESPACE, "-l", f"abide.dev/agent={AGENT}", "--tail=50"),
            )
        say(f"   you        {message}")
        say(f"   {AGENT:<10} {done.stdout.strip()}")


# ---------------------------------------------------------------------------------------------------- down


def down() -> None:
    """Remove what `up` made: with the cluster where that is ours, object by object where it is not."""
    begin = time.monotonic()
    if cluster_provider() == "current":
        with step("Abide"):
            remove_from_current(Deployment())
    with step("cluster"):
        cluster_tool("down")
    say(f"\nEverything is gone ({time.monotonic() - begin:.1f} s); downloads and built programs stay cached.")


def cluster_provider() -> str:
    """Return the provider of the cluster that is up, or was; healthy or not."""
    words = cluster_tool("status", capture=True, check=False).split()
    return words[1] if len(words) > 1 else ""


def remove_from_current(target: Deployment) -> None:
    """Remove the example, the release, what the chart keeps, and the namespace if `up` made it; ask first.

    Raises: StepFailed where other Agents exist: without the operator and its resource they would be lost.
    """
    agents = [item["metadata"] for item in target.items("agents.abide.dev", "--all-namespaces")]
    names = [(agent["namespace"], agent["name"]) for agent in agents]
    others = ["/".join(name) for name in names if name != (AGENT_NAMESPACE, AGENT)]
    if others:
        raise StepFailed(
            f"agents that `make up` did not make are here: {', '.join(others[:10])}; delete them first, since removing "
            "Abide deletes all agents.",
            target.hint("get", "agents.abide.dev", "--all-namespaces"),
        )
    namespaces = target.items("namespace", NAMESPACE)
    is_ours = bool(namespaces) and namespaces[0]["metadata"].get("labels", {}).get(MADE_LABEL) == MADE_BY
    if not (namespaces or agents or target.items("customresourcedefinition", "agents.abide.dev")):
        say("   nothing of Abide is in this cluster")
        return
    context = target.kubectl("config", "current-context").strip()
    what = [f"agent {AGENT_NAMESPACE}/{AGENT}", f"release {RELEASE}", "the Agent resource", "all chats"]
    what += [f"namespace {NAMESPACE}"] if is_ours else []
    ask([f"remove {', '.join(what)} from the cluster of context {context}"])

    def delete(*arguments: str) -> None:
        target.kubectl("delete", "--ignore-not-found", "--timeout=120s", *arguments, timeout=150)

    if agents:
        delete("agents.abide.dev", AGENT, "-n", AGENT_NAMESPACE)
    done = target.helm("uninstall", RELEASE, "--ignore-not-found", "--wait", timeout=INSTALL_TIMEOUT)
    if done.returncode:
        raise StepFailed(f"helm could not uninstall: {last_line(done.stderr)}", f"helm status {RELEASE} -n {NAMESPACE}")
    delete("customresourcedefinition", "agents.abide.dev")
    selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=postgres"
    delete("persistentvolumeclaims,secrets", "-n", NAMESPACE, "-l", selector)
    if is_ours:
        delete("namespace", NAMESPACE)


def main(arguments: list[str]) -> int:
    """Run `up` or `down` and return the exit code."""
    actions = {"up": up, "down": down}
    if len(arguments) != 1 or arguments[0] not in actions:
        say("usage: up.py up | down")
        return 2
    try:
        actions[arguments[0]]()
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        if error.look:
            print(f"look further with: {error.look}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except RequirementError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; run it again, it goes on where it was", file=sys.stderr)  # noqa: T201
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
