"""Where the agents of a load run are: made in a cluster, in a process on this machine, or already somewhere.

A place makes agents for one row, tells how to reach them, and removes them; leaving its block removes everything that
is left, whatever happened before.
"""

import base64
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from agent_api.labels import LABEL_AGENT, api_secret_name, child_name
from agent_cli.cluster.agents import name_of
from agent_cli.cluster.kubectl import Cluster, Forbidden, get_object, list_objects, open_port_forward, run
from agent_cli.cluster.targets import API_PORT, RESOURCE, find_condition
from agent_cli.errors import CliError, UsageError
from agent_cli.load.talk import Endpoint
from agent_cli.local.dev import choose_port
from agent_cli.local.migrations import migrate_in_subprocess
from agent_cli.local.workspace import Workspace
from agent_cli.output import note
from agent_store.embedded import EmbeddedPostgres, EmbeddedPostgresError

RUN_LABEL: Final = "abide-load"
NAMESPACE_PREFIX: Final = "abide-load-"
POLL_SECONDS: Final = 0.01
CLEANUP_TRIES: Final = 3
CLEANUP_SECONDS: Final = 120.0
DRAIN_SECONDS: Final = 5
STOP_SECONDS: Final = 30.0
PR_SET_PDEATHSIG: Final = 1


class Place(Protocol):
    """Agents for the rows of one run, which make and remove them one row after the other."""

    name: str
    makes_agents: bool

    def start(self, count: int, deadline: float) -> None:
        """Make `count` agents; return once all are ready. Raises CliError, at the latest at `deadline` (monotonic)."""
        ...

    def reach(self, stack: ExitStack) -> Sequence[Endpoint]:
        """Return ways in to the agents, open as long as the stack is."""
        ...

    def stop(self, deadline: float) -> None:
        """Remove the agents; return once their processes are gone. Raises CliError."""
        ...


def build_agent(name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return an Agent that echoes at once and whose rows go with it."""
    return {
        "apiVersion": "abide.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "systemPrompt": "You are under load.",
            "models": [{"provider": "echo"}],
            "state": {"deletionPolicy": "Delete"},
            "limits": {"requestsPerMinute": 0},
        },
    }


class ExistingPlace:
    """Agents that are there already, at an address; nothing is made or removed but sessions."""

    name = "url"
    makes_agents = False

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._count = 0

    def start(self, count: int, deadline: float) -> None:
        """Take the first `count` of the agents."""
        if count > len(self._endpoints):
            raise UsageError(f"--agents {count}: only {len(self._endpoints)} agents are named; give --name more often.")
        self._count = count

    def reach(self, stack: ExitStack) -> Sequence[Endpoint]:
        """Return the first agents."""
        return self._endpoints[: self._count]

    def stop(self, deadline: float) -> None:
        """Leave the agents alone."""


# ---- this machine


@contextmanager
def local_place() -> Iterator["LocalPlace"]:
    """Yield a place with a Postgres of its own; both and the runtime's process end with the block."""
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace())
        postgres = EmbeddedPostgres(workspace.data)
        stack.callback(postgres.stop)
        try:
            postgres.start()
        except EmbeddedPostgresError as error:
            raise CliError(str(error)) from error
        migrate_in_subprocess(postgres.url)
        place = LocalPlace(postgres.url, workspace.root)
        stack.callback(place.close)
        yield place


class LocalPlace:
    """All agents of a row in one runtime process on loopback."""

    name = "dev"
    makes_agents = True
    namespace: Final = "load"

    def __init__(self, database: str, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._names: Sequence[str] = ()

    def start(self, count: int, deadline: float) -> None:
        """Start the process; return at the first 200 of /readyz."""
        self._names = [f"load-{number}" for number in range(count)]
        agents = [build_agent(name, self.namespace, {}) for name in self._names]
        manifest = self._folder / "load.yaml"
        # JSON is YAML; one document per agent.
        manifest.write_text("\n---\n".join(json.dumps(agent) for agent in agents))
        port = choose_port(0)
        self._url = f"http://127.0.0.1:{port}"
        self._process = self._spawn(manifest, port)
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise CliError(["The runtime ended instead of starting:", *self._log().splitlines()[-5:]])
            with suppress(httpx.TransportError):
                if httpx.get(f"{self._url}/readyz", trust_env=False, timeout=5.0).is_success:
                    return
            time.sleep(POLL_SECONDS)
        raise CliError(f"The runtime with {count} agents was not ready in time.")

    def reach(self, stack: ExitStack) -> Sequence[Endpoint]:
        """Return all agents at the one address."""
        return [Endpoint(self.namespace, name, self._url) for name in self._names]

    def stop(self, deadline: float) -> None:
        """Drain the process; return when it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
            raise CliError("The runtime did not stop in time and was killed.") from None

    def close(self) -> None:
        """End the process if it still runs."""
        with suppress(CliError):
            self.stop(time.monotonic() + STOP_SECONDS)

    def _spawn(self, manifest: Path, port: int) -> "subprocess.Popen[bytes]":
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ABIDE_")}
        environ = {
            "ABIDE_MANIFEST": str(manifest),
            "ABIDE_POSTGRES_URL": self._database,
            "ABIDE_AUTH": "none",
            "ABIDE_HOST": "127.0.0.1",
            "ABIDE_PORT": str(port),
            "ABIDE_DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        prctl = ctypes.CDLL(None).prctl
        with (self._folder / "runtime.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "agent_runtime"],
                env=kept | environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches this process alone; should it be killed, the kernel ends the runtime.
                start_new_session=True,
                preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def _log(self) -> str:
        return (self._folder / "runtime.log").read_text(errors="replace")


# ---- a cluster


@contextmanager
def cluster_place(cluster: Cluster, run_id: str) -> Iterator["ClusterPlace"]:
    """Yield a place in the given namespace, else in one made for this run; everything made goes with the block."""
    is_own = cluster.namespace is None
    namespace = cluster.namespace or f"{NAMESPACE_PREFIX}{run_id}"
    place = ClusterPlace(Cluster(cluster.kubectl, namespace, cluster.context, cluster.kubeconfig), namespace, run_id)
    with ExitStack() as stack:
        if is_own:
            everywhere = Cluster(cluster.kubectl, None, cluster.context, cluster.kubeconfig)
            stack.callback(
                _cleanup, everywhere, ["delete", "namespace", namespace, "--ignore-not-found", "--wait=false"]
            )
            try:
                run(everywhere, ["create", "namespace", namespace])
            except Forbidden as error:
                raise CliError([*error.lines, "Give a namespace that you may use: -n NAMESPACE."]) from error
        stack.callback(place.close)
        yield place


class ClusterPlace:
    """Agents in one namespace, told from others by a label with this run's id."""

    name = "cluster"
    makes_agents = True

    def __init__(self, cluster: Cluster, namespace: str, run_id: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._run_id = run_id
        self._names: Sequence[str] = ()

    @property
    def _selector(self) -> str:
        return f"--selector={RUN_LABEL}={self._run_id}"

    def start(self, count: int, deadline: float) -> None:
        """Apply all agents at once; return when each is Ready."""
        names = [f"load-{self._run_id}-{number}" for number in range(count)]
        self._names = names
        agents = [build_agent(name, self._namespace, {RUN_LABEL: self._run_id}) for name in names]
        seconds = max(1.0, deadline - time.monotonic())
        document = {"apiVersion": "v1", "kind": "List", "items": agents}
        run(self._cluster, ["apply", "--filename=-"], stdin=json.dumps(document), timeout=seconds)
        left = max(1.0, deadline - time.monotonic())
        arguments = ["wait", "--for=condition=Ready", RESOURCE, self._selector, f"--timeout={left:.0f}s"]
        try:
            run(self._cluster, arguments, timeout=left + 30)
        except CliError as error:
            raise CliError([f"Not all of {count} agents became Ready:", *self._unready(), *error.lines]) from error

    def reach(self, stack: ExitStack) -> Sequence[Endpoint]:
        """Forward a port to each agent's Service, with the key from its Secret."""
        return [self._endpoint(name, stack) for name in self._names]

    def stop(self, deadline: float) -> None:
        """Delete the agents; return when their pods are gone."""
        seconds = max(1.0, deadline - time.monotonic())
        run(self._cluster, ["delete", RESOURCE, self._selector, f"--timeout={seconds:.0f}s"], timeout=seconds + 30)
        pods = f"--selector={LABEL_AGENT} in ({','.join(self._names)})"
        while list_objects(self._cluster, "pods", pods):
            if time.monotonic() >= deadline:
                raise CliError("Pods of deleted agents are still there.")
            left = max(1.0, deadline - time.monotonic())
            # kubectl says "not found" for pods that went while it looked.
            with suppress(CliError):
                run(self._cluster, ["wait", "--for=delete", "pods", pods, f"--timeout={left:.0f}s"], timeout=left + 30)
        self._names = ()

    def close(self) -> None:
        """Delete what is left of this run."""
        _cleanup(self._cluster, ["delete", RESOURCE, self._selector, "--wait=false"])

    def _endpoint(self, name: str, stack: ExitStack) -> Endpoint:
        forward = open_port_forward(self._cluster, f"service/{child_name(name)}", API_PORT)
        stack.callback(forward.close)
        secret = get_object(self._cluster, "secret", api_secret_name(name))
        key = base64.b64decode((secret.get("data") or {}).get("key", "")).decode("ascii").strip()
        return Endpoint(self._namespace, name, f"http://127.0.0.1:{forward.port}", key)

    def _unready(self) -> list[str]:
        lines = []
        with suppress(CliError):
            for agent in list_objects(self._cluster, RESOURCE, self._selector):
                ready = find_condition(agent, "Ready")
                if ready.get("status") != "True":
                    lines.append(f"  {name_of(agent)}: {ready.get('reason', 'no status')}: {ready.get('message', '')}")
        return lines[:5]


def _cleanup(cluster: Cluster, arguments: list[str]) -> None:
    """Run kubectl to remove something; tries again, and says what to run by hand if it cannot."""
    for left in reversed(range(CLEANUP_TRIES)):
        try:
            run(cluster, arguments, timeout=CLEANUP_SECONDS)
        except CliError as error:
            if not left:
                note(f"could not clean up ({error}); run: kubectl {' '.join([*cluster.arguments()[1:], *arguments])}")
            continue
        return
