"""kubectl as this command uses it: reading and writing objects, and forwarding a port. Nothing else talks to a cluster.

kubectl brings every way of logging in that the user has set up; that is why it is called instead of a client library.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from agent_cli.errors import CliError

COMMAND_TIMEOUT: Final = 30.0
FORWARD_TIMEOUT: Final = 15.0
POD_TIMEOUT: Final = 10.0
"""How long kubectl waits for a pod behind the Service; less than FORWARD_TIMEOUT, so that it says so itself."""
STOP_TIMEOUT: Final = 3.0
POLL_PAUSE: Final = 0.02
OUTPUT_MAX_BYTES: Final = 65536
FORWARDING: Final = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) -> ", re.MULTILINE)
PR_SET_PDEATHSIG: Final = 1


class ObjectNotFound(CliError):  # noqa: N818 - the state of the world, not a mistake
    """The object that was asked for does not exist."""


class Conflict(CliError):  # noqa: N818
    """The object changed between reading and writing it."""


class Forbidden(CliError):  # noqa: N818
    """The user may not do this in the cluster."""


class ForwardFailed(CliError):  # noqa: N818
    """The port could not be forwarded now; usually a pod is being replaced, so trying again may help."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster and namespace; None leaves the choice to kubectl."""

    kubectl: str
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def arguments(self) -> list[str]:
        """Return kubectl's path and the options every call shares."""
        chosen = {"--kubeconfig": self.kubeconfig, "--context": self.context, "--namespace": self.namespace}
        return [self.kubectl, *(f"{option}={value}" for option, value in chosen.items() if value)]


def find_kubectl(environ: Mapping[str, str]) -> str:
    """Return the kubectl to use: $KUBECTL, or the one in PATH. Raises CliError when there is none."""
    wanted = environ.get("KUBECTL") or "kubectl"
    found = shutil.which(wanted, path=environ.get("PATH"))
    if found:
        return found
    raise CliError(
        f"kubectl was not found as {wanted!r}: install it, or name it with KUBECTL=/path/to/kubectl. "
        "An agent that is reachable without a cluster needs only --url (and --key)."
    )


def get_object(cluster: Cluster, resource: str, name: str, *arguments: str) -> dict[str, Any]:
    """Return an object as JSON; `arguments` are further ones of `kubectl get`.

    Raises ObjectNotFound when it does not exist, CliError when the cluster cannot be asked.
    """
    return _object(cluster, run(cluster, ["get", resource, name, *arguments, "--output=json"]), f"{resource} {name}")


def list_objects(
    cluster: Cluster, resource: str, *arguments: str, all_namespaces: bool = False, timeout: float = COMMAND_TIMEOUT
) -> list[dict[str, Any]]:
    """Return objects as JSON, in kubectl's order; `arguments` are further ones, such as a selector.

    Raises CliError when the cluster cannot be asked.
    """
    everywhere = ["--all-namespaces"] if all_namespaces else []
    output = run(cluster, ["get", resource, *everywhere, *arguments, "--output=json"], timeout=timeout)
    items = _object(cluster, output, resource).get("items")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def write_object(cluster: Cluster, document: dict[str, Any]) -> dict[str, Any]:
    """Replace an object as it was read and changed; return it as it now is.

    Raises Conflict when somebody else wrote it since (its resourceVersion moved), CliError when it is refused.
    """
    output = run(cluster, ["replace", "--filename=-", "--output=json"], stdin=json.dumps(document))
    return _object(cluster, output, str(document.get("kind", "object")))


def patch_object(cluster: Cluster, resource: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
    """Merge a patch into an object (RFC 7396); return it as it now is. Raises CliError."""
    arguments = ["patch", resource, name, "--type=merge", f"--patch={json.dumps(patch)}", "--output=json"]
    return _object(cluster, run(cluster, arguments), f"{resource} {name}")


def _object(cluster: Cluster, output: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(output)
    except ValueError as error:
        raise CliError(f"kubectl answered no JSON for {what}; is {cluster.kubectl} really kubectl?") from error
    if not isinstance(found, dict):
        raise CliError(f"kubectl answered no object for {what}.")
    return found


def run(
    cluster: Cluster, arguments: Sequence[str], *, stdin: str | None = None, timeout: float = COMMAND_TIMEOUT
) -> str:
    """Run kubectl to its end and return its stdout. Raises CliError, and its children above where they fit."""
    command = [*cluster.arguments(), *arguments]
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - the user's own kubectl
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, **given
        )
    except subprocess.TimeoutExpired as error:
        raise CliError(f"kubectl did not answer within {timeout:g} s; is the cluster reachable?") from error
    except OSError as error:
        raise CliError(f"{cluster.kubectl} cannot be run: {error.strerror}.") from error
    if done.returncode:
        raise explain_failure(done.stderr)
    return done.stdout


def explain_failure(stderr: str) -> CliError:
    """Return what kubectl's complaint means for the user, as one sentence."""
    # The last line is kubectl's own verdict; before it stand the client library's log lines.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    verdict = lines[-1].removeprefix("error: ") if lines else "kubectl failed without a word"
    if "doesn't have a resource type" in verdict:
        return CliError(
            "This cluster does not know agents.abide.dev: install Abide there (helm install), or use --context."
        )
    if "timed out waiting for the condition" in verdict:
        return CliError("No pod of the agent is there.")
    if "(NotFound)" in verdict:
        return ObjectNotFound(verdict)
    if "(Conflict)" in verdict:
        return Conflict("The object was changed by somebody else in the meantime; look at it and try again.")
    if "(Forbidden)" in verdict:
        return Forbidden(f"The cluster forbids this: {verdict}")
    # kubectl's words for a cluster it cannot talk to, as far as they tell it from other failures.
    unreachable = ("Unable to connect", "was refused", "connection refused", "no such host", "i/o timeout")
    if any(sign in verdict for sign in unreachable):
        return CliError(f"The cluster cannot be reached: {verdict}")
    return CliError(f"kubectl: {verdict}")


class PortForward:
    """One `kubectl port-forward` to a Service on a free port of the loopback address.

    The process ends with close(), and also when this process is killed.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self._process = process
        self.port = port

    @property
    def is_alive(self) -> bool:
        """Whether kubectl still runs; it ends by itself when its pod goes away."""
        return self._process.poll() is None

    def close(self) -> None:
        """End kubectl. Idempotent."""
        _end(self._process)


def open_port_forward(cluster: Cluster, target: str, port: int, *, timeout: float = FORWARD_TIMEOUT) -> PortForward:
    """Forward a free loopback port to a port of `service/NAME` or `pod/NAME`; return once it listens.

    Call it from the main thread: the kernel ends kubectl with the thread that started it.
    Raises ForwardFailed when kubectl ends or does not listen within `timeout` seconds.
    """
    options = ["--address=127.0.0.1", f"--pod-running-timeout={POD_TIMEOUT:g}s"]
    command = [*cluster.arguments(), "port-forward", *options, target, f":{port}"]
    # Files, not pipes: kubectl writes a line per connection, and a full pipe would stop it.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = _start_forward(command, output, errors)
        try:
            chosen = _wait_port(process, output, timeout)
            if chosen is None:
                raise ForwardFailed(explain_failure(_text(errors)).lines)
        except BaseException:
            _end(process)
            raise
        return PortForward(process, chosen)


def _start_forward(command: list[str], output: IO[bytes], errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    prctl = ctypes.CDLL(None).prctl
    try:
        return subprocess.Popen(  # noqa: S603 - the user's own kubectl, arguments as a list
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            # In a group of its own, so that Ctrl-C in the terminal reaches this process alone.
            start_new_session=True,
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    except OSError as error:
        raise CliError(f"{command[0]} cannot be run: {error.strerror}.") from error


def _wait_port(process: "subprocess.Popen[bytes]", output: IO[bytes], timeout: float) -> int | None:
    """Return the port kubectl says it forwards, or None when it ends or stays silent."""
    deadline = time.monotonic() + timeout
    while True:
        ended = process.poll() is not None
        match = FORWARDING.search(_text(output))
        if match:
            return int(match.group(1))
        if ended or time.monotonic() >= deadline:
            return None
        time.sleep(POLL_PAUSE)


def _text(file: IO[bytes]) -> str:
    # pread leaves the offset alone: kubectl writes through the same open file.
    return os.pread(file.fileno(), OUTPUT_MAX_BYTES, 0).decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)
