"""`abide chat`: from how an agent is reached to a conversation with it."""

import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, NoReturn

from agent_api.wire import IDEMPOTENCY_KEY_MAX_LENGTH, SESSION_PATTERN, USER_PATTERN, TurnStatus
from agent_cli.cluster.kubectl import Cluster, find_kubectl
from agent_cli.cluster.targets import ClusterTarget, UrlTarget
from agent_cli.errors import FAILED, UsageError
from agent_cli.talk.client import AgentClient, AgentRef
from agent_cli.talk.conversation import Chat, Screen, clean, new_key, outcome_note
from agent_cli.talk.streamed import Output

KEY_PATTERN: Final = f"[!-~]{{1,{IDEMPOTENCY_KEY_MAX_LENGTH}}}"


@dataclass(frozen=True, slots=True)
class Reach:
    """How the user names an agent: by a cluster, or by an address with `url`."""

    name: str
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    url: str | None = None
    key: str | None = field(default=None, repr=False)

    def cluster(self, environ: Mapping[str, str]) -> Cluster:
        """Return the cluster that is meant. Raises CliError without kubectl."""
        return Cluster(find_kubectl(environ), self.namespace, self.context, self.kubeconfig)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """One conversation. `message` None: read messages from the terminal, or line by line from a pipe.

    `key` is the idempotency key of the one message; None: a new one.
    """

    message: str | None
    session: str
    user: str
    timeout: float
    key: str | None = None


def run_chat(reach: Reach, options: ChatOptions, environ: Mapping[str, str]) -> None:
    """Chat, and exit with 1 if a message had no reply. Raises CliError, UsageError."""
    check_name("--session", options.session, SESSION_PATTERN)
    check_name("--user", options.user, USER_PATTERN)
    if options.key is not None:
        check_key(options)
    screen = Screen(interactive=options.message is None and sys.stdin is not None and sys.stdin.isatty())
    with connected(reach, options.user, screen, environ) as client:
        if options.message is None:
            replied = Chat(screen, [client], session=options.session, timeout=options.timeout).run()
        else:
            replied = send_one(screen, client, options)
    if not replied:
        sys.exit(FAILED)


def send_one(screen: Screen, client: AgentClient, options: ChatOptions) -> bool:
    """Send the message and print its reply, whole; return whether the turn was answered."""
    if not options.message:
        raise UsageError("The message is empty; write what the agent should read.")

    def ignore(_: Output) -> None:
        """Print nothing before the reply is final: what a pipe got cannot be taken back."""

    key = options.key or new_key()
    response = client.send(options.session, options.message, key=key, timeout=options.timeout, sink=ignore)
    if response.reply is not None:
        screen.write(clean(response.reply.content) + "\n")
    note = outcome_note(response.turn)
    if note:
        screen.note(note)
    return response.turn.status not in (TurnStatus.FAILED, TurnStatus.CANCELLED)


def check_name(option: str, value: str, pattern: str) -> None:
    """Raise UsageError unless the name can stand in a path or header."""
    if not re.fullmatch(pattern, value):
        raise UsageError(f"{option} {value!r}: write 1 to 128 characters of A-Z a-z 0-9 . _ : @ -")


def check_key(options: ChatOptions) -> None:
    """Raise UsageError unless the idempotency key can stand in a header and belongs to one message."""
    if options.message is None:
        raise UsageError("--idempotency-key belongs to one message; give MESSAGE too.")
    if not re.fullmatch(KEY_PATTERN, options.key or ""):
        raise UsageError(f"--idempotency-key: write 1 to {IDEMPOTENCY_KEY_MAX_LENGTH} visible ASCII characters")


@contextmanager
def connected(reach: Reach, user: str, screen: Screen, environ: Mapping[str, str]) -> Iterator[AgentClient]:
    """Find the agent; end kubectl on the way out, also when SIGTERM or SIGHUP ends this process."""
    if reach.url is not None:
        if not reach.url.startswith(("http://", "https://")):
            raise UsageError(f"--url {reach.url}: write http://host:port or https://host")
        agent = AgentRef(reach.namespace or "default", reach.name)
        with AgentClient(UrlTarget(reach.url, agent, key=reach.key), agent, user=user, note=screen.note) as client:
            yield client
        return
    target = ClusterTarget(reach.cluster(environ), reach.name, note=screen.note)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    try:
        with AgentClient(target, target.find(), user=user, note=screen.note) as client:
            yield client
    finally:
        target.drop()


def _exit(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
