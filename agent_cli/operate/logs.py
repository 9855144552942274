"""`abide logs`: the lines of all pods of an agent, through kubectl, rendered for people."""

import json
import math
import queue
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from agent_cli.cluster.agents import list_pods, name_of, read_agent
from agent_cli.cluster.kubectl import Cluster, run
from agent_cli.cluster.targets import agent_label
from agent_cli.errors import CliError
from agent_cli.operate.advice import next_command
from agent_cli.output import note, one_line

CONTAINER: Final = "runtime"
NEW_PODS_SECONDS: Final = 2.0
QUEUE_LINES: Final = 1000
"""A reader that cannot keep up slows kubectl down instead of filling memory."""
STOP_TIMEOUT: Final = 3.0
LEAD: Final = ("timestamp", "level", "event")
STYLES: Final = {"error": "red", "warning": "yellow", "debug": "dim"}


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Which lines, and how they are shown. `since` is kubectl's, such as `10m`."""

    follow: bool = False
    previous: bool = False
    since: str | None = None
    tail: int = 200
    raw: bool = False

    def arguments(self) -> list[str]:
        """Return kubectl's options for them."""
        chosen = [f"--container={CONTAINER}", f"--tail={-1 if self.since else self.tail}"]
        if self.since:
            chosen.append(f"--since={self.since}")
        return chosen + (["--previous"] if self.previous else [])


@dataclass(frozen=True, slots=True)
class Line:
    """One line of one pod."""

    pod: str
    text: str

    @property
    def fields(self) -> dict[str, Any] | None:
        """The fields of a structured line, None of any other."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return None
        return found if isinstance(found, dict) and "event" in found else None


def run_logs(cluster: Cluster, name: str, options: LogOptions) -> None:
    """Print the lines, and with `follow` those to come, until Ctrl-C. Raises CliError when there are none to read."""
    cluster, agent = read_agent(cluster, name)
    pods = [name_of(pod) for pod in list_pods(cluster, name)]
    if not pods and not options.follow:
        raise CliError(f"Agent {agent_label(agent)} has no pods. Next: {next_command(agent)}")
    printer = Printer(raw=options.raw, several=len(pods) > 1 or options.follow)
    if options.follow:
        _follow(cluster, name, options, printer)
        return
    read, problems = _read_all(cluster, pods, options)
    for line in read:
        printer.print(line)
    for problem in problems:
        note(problem)
    if problems and len(problems) == len(pods):
        raise CliError(f"No log of agent {agent_label(agent)} could be read.")


def _read_all(cluster: Cluster, pods: Sequence[str], options: LogOptions) -> tuple[list[Line], list[str]]:
    lines: list[Line] = []
    problems = []
    for pod in pods:
        try:
            told = run(cluster, ["logs", pod, *options.arguments()])
        except CliError as error:
            problems.append(f"pod {pod}: {error.lines[0].removeprefix('kubectl: ')}")
        else:
            lines += [Line(pod, text) for text in told.splitlines()]
    return merge(lines), problems


def merge(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of several pods in the order of their times; one without a time stays behind its predecessor."""
    keyed = []
    last: dict[str, str] = {}
    for line in lines:
        fields = line.fields
        last[line.pod] = str(fields.get("timestamp", "")) if fields else last.get(line.pod, "")
        keyed.append((last[line.pod], line))
    return [line for _, line in sorted(keyed, key=lambda pair: pair[0])]


def render_line(fields: dict[str, Any]) -> str:
    """Return a structured line for people: time, level, event, then the other fields; a traceback stands below."""
    rest = {name: value for name, value in fields.items() if name not in (*LEAD, "exception")}
    clock = str(fields.get("timestamp", ""))[11:23].rstrip("Z").ljust(12)
    told = [f"{name}={_value(value)}" for name, value in rest.items() if value not in (None, "")]
    line = " ".join([clock, str(fields.get("level", "")).ljust(7), one_line(str(fields.get("event", ""))), *told])
    trace = str(fields.get("exception", "")).rstrip()
    return "\n".join([line, *(f"    {one_line_kept(part)}" for part in trace.splitlines())])


def one_line_kept(text: str) -> str:
    """Return a line with its indentation and without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = one_line(text)
    return json.dumps(text, ensure_ascii=False) if " " in text else text


class Printer:
    """Writes lines to stdout; with several pods each line ends with its pod's own part of the name."""

    def __init__(self, *, raw: bool, several: bool) -> None:
        self._raw = raw
        self._several = several
        self._console: Any = None

    def print(self, line: Line) -> None:
        """Print one line."""
        fields = None if self._raw else line.fields
        if fields is None:
            print(line.text if self._raw else one_line_kept(line.text), flush=True)
            return
        suffix = f"  [{line.pod[-5:]}]" if self._several else ""
        head, *trace = render_line(fields).split("\n")
        self._styled("\n".join([head + suffix, *trace]), STYLES.get(str(fields.get("level")), ""))

    def _styled(self, text: str, style: str) -> None:
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        if style and self._console.is_terminal and not self._console.no_color:
            from rich.text import Text

            self._console.print(Text(text, style=style))
        else:
            print(text, flush=True)


class _Follower:
    """One `kubectl logs --follow`; its lines go into the shared queue from a thread of its own."""

    def __init__(self, cluster: Cluster, pod: str, options: LogOptions, lines: "queue.Queue[Line]") -> None:
        command = [*cluster.arguments(), "logs", pod, "--follow", *options.arguments()]
        self._process = subprocess.Popen(  # noqa: S603 - the user's own kubectl, arguments as a list
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            # In a group of its own, so that Ctrl-C in the terminal reaches this process alone.
            start_new_session=True,
        )
        self.ended: float | None = None
        self._thread = threading.Thread(target=self._read, args=[pod, lines], name=f"logs-{pod}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End kubectl. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_TIMEOUT)

    def _read(self, pod: str, lines: "queue.Queue[Line]") -> None:
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        for text in self._process.stdout:
            lines.put(Line(pod, text.rstrip("\n")))
        self.ended = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Source:
    """One life of one container: a restart begins a log of its own."""

    pod: str
    restarts: int
    running: bool = field(compare=False)


def find_sources(pods: Sequence[dict[str, Any]]) -> list[_Source]:
    """Return the containers of an agent's pods that have begun to run, so that they have a log."""
    sources = []
    for pod in pods:
        for container in (pod.get("status") or {}).get("containerStatuses") or []:
            state = container.get("state") or {}
            if container.get("name") == CONTAINER and ("running" in state or "terminated" in state):
                sources.append(_Source(name_of(pod), int(container.get("restartCount", 0)), "running" in state))
    return sources


class _Following:
    """The followers of all containers of an agent, with those that come later."""

    def __init__(self, cluster: Cluster, name: str, options: LogOptions) -> None:
        self._cluster = cluster
        self._name = name
        self._options = options
        self._lines: queue.Queue[Line] = queue.Queue(QUEUE_LINES)
        self._followers: dict[_Source, _Follower] = {}

    def lines(self) -> Iterator[Line]:
        """Yield lines as they come, for ever."""
        first = True
        while True:
            self._look(first)
            if first and not self._followers:
                note("no pod of the agent runs yet; waiting …")
            first = False
            deadline = time.monotonic() + NEW_PODS_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                try:
                    yield self._lines.get(timeout=left)
                except queue.Empty:
                    break

    def close(self) -> None:
        """End every kubectl."""
        for follower in self._followers.values():
            follower.close()

    def _look(self, first: bool) -> None:
        try:
            sources = find_sources(list_pods(self._cluster, self._name))
        except CliError as error:
            note(f"{error.lines[0]}; trying again …")
            return
        for gone in [source for source in self._followers if source not in sources]:
            if self._followers[gone].ended is not None:
                self._followers.pop(gone).close()
        for source in sources:
            follower = self._followers.get(source)
            if follower is None:
                options = self._options if first else LogOptions(tail=-1)
            elif follower.ended is not None and source.running:
                # The connection broke, not the container: go on where it ended.
                follower.close()
                options = LogOptions(since=f"{math.ceil(time.monotonic() - follower.ended)}s")
            else:
                continue
            self._followers[source] = _Follower(self._cluster, source.pod, options, self._lines)


def _follow(cluster: Cluster, name: str, options: LogOptions, printer: Printer) -> None:
    following = _Following(cluster, name, options)
    try:
        for line in following.lines():
            printer.print(line)
    finally:
        following.close()
