"""The commands of `python3 -m tests.cluster`. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done (for `status`: healthy), 1 something failed, 2 a requirement is missing or was refused.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from tests.cluster.binaries import BINARIES, LOCAL, Binaries
from tests.cluster.commands import LOCK_TIMEOUT, exclusive
from tests.cluster.current import CurrentCluster
from tests.cluster.errors import ClusterError, RequirementError
from tests.cluster.images import DEFAULT_TARGETS, ImageBuilder, load_images
from tests.cluster.kind import KindCluster, docker_answers
from tests.cluster.local import LocalCluster
from tests.cluster.progress import Progress
from tests.cluster.settings import Paths, paths_from_environment

PROVIDERS = ("current", "kind", "local")
Cluster = CurrentCluster | KindCluster | LocalCluster


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    chosen = parser().parse_args(arguments)
    progress = Progress()
    try:
        paths = paths_from_environment()
        return int(chosen.run(Tool(paths, Binaries(paths, progress), progress, os.environ), chosen))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted: the next `up` or `down` removes what is half-done", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `run` of the result is the command's method."""
    root = argparse.ArgumentParser(prog="python3 -m tests.cluster", description="A real Kubernetes cluster for tests.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[["Tool", argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    up = add("up", Tool.up, "bring up a cluster, or leave a healthy one alone")
    up.add_argument(
        "--provider",
        choices=PROVIDERS,
        help="default: the variable CLUSTER, else kind where a Docker engine answers, else local",
    )
    add("down", Tool.down, "remove the cluster and everything it left on the machine; caches stay")
    add("status", Tool.status, "tell what is up; exit code 0 only when it is healthy")
    add("kubeconfig", Tool.kubeconfig, "print the path of the kubeconfig")
    images = add("images", Tool.images, "build images of the Dockerfile and load them into the cluster")
    images.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: {' '.join(DEFAULT_TARGETS)}")
    tool = add("tool", Tool.tool, "print the path of a program, built first if need be")
    tool.add_argument("name", metavar="NAME", help=", ".join(sorted(BINARIES)))
    add("binaries", Tool.build, "build all programs of the local cluster")
    return root


def choose_provider(option: str | None, environ: Mapping[str, str], has_docker: Callable[[], bool]) -> str:
    """Return the provider for `up`: the option, else CLUSTER, else kind with Docker, else local.

    Raises: RequirementError for an unknown value of CLUSTER.
    """
    chosen = option or environ.get("CLUSTER") or ("kind" if has_docker() else "local")
    if chosen not in PROVIDERS:
        raise RequirementError(f"CLUSTER={chosen} is unknown: use one of {', '.join(PROVIDERS)}")
    return chosen


def read_record(text: str) -> str | None:
    """Return the provider a record file names, or None when it names none of ours."""
    try:
        provider = json.loads(text)["provider"]
    except (ValueError, KeyError, TypeError):
        return None
    return provider if provider in PROVIDERS else None


class Tool:
    """The commands. Each takes the parsed arguments and returns an exit code."""

    def __init__(self, paths: Paths, binaries: Binaries, progress: Progress, environ: Mapping[str, str]) -> None:
        self._paths = paths
        self._binaries = binaries
        self._progress = progress
        self._environ = environ

    def up(self, chosen: argparse.Namespace) -> int:
        provider = choose_provider(chosen.provider, self._environ, docker_answers)
        with self._exclusive():
            recorded = self._recorded()
            if recorded not in {None, "current", provider} and self._cluster(recorded).problem() is None:
                raise RequirementError(f"a cluster of provider {recorded} is up: run `down` first, or use it")
            self._record(provider)
            self._cluster(provider).up()
        return 0

    def down(self, _: argparse.Namespace) -> int:
        with self._exclusive():
            self._cluster(self._known_provider()).down()
            self._paths.record.unlink(missing_ok=True)
        return 0

    def status(self, _: argparse.Namespace) -> int:
        cluster = self._cluster(self._known_provider())
        problem = cluster.problem()
        print(f"provider    {cluster.name}")
        print(f"healthy     {'yes' if problem is None else f'no: {problem}'}")
        if isinstance(cluster, LocalCluster):
            print(f"node        {cluster.node}")
        print(f"kubeconfig  {cluster.kubeconfig}")
        return 0 if problem is None else 1

    def kubeconfig(self, _: argparse.Namespace) -> int:
        print(self._cluster(self._known_provider()).kubeconfig)
        return 0

    def images(self, chosen: argparse.Namespace) -> int:
        cluster = self._cluster(self._known_provider())
        if isinstance(cluster, CurrentCluster):
            self._progress.say(
                "the current cluster must be able to pull the images by itself: nothing is built or loaded"
            )
            return 0
        if problem := cluster.problem():
            raise RequirementError(f"the {cluster.name} cluster is not healthy ({problem}): run `up` first")
        with exclusive(self._paths.image_lock, waiting=self._say_waiting, timeout=LOCK_TIMEOUT):
            builder = ImageBuilder(self._paths, self._progress)
            loaded = load_images(cluster, builder, chosen.targets or list(DEFAULT_TARGETS))
        for target, reference in loaded.items():
            print(f"{target} {reference}")
        return 0

    def tool(self, chosen: argparse.Namespace) -> int:
        self._binaries.ensure((chosen.name,))
        print(self._binaries.path(chosen.name))
        return 0

    def build(self, _: argparse.Namespace) -> int:
        self._binaries.ensure(LOCAL)
        self._progress.say(f"all binaries are built, below {self._paths.binaries}")
        return 0

    def _exclusive(self) -> "contextlib.AbstractContextManager[None]":
        return exclusive(self._paths.cluster / "lock", waiting=self._say_waiting, timeout=LOCK_TIMEOUT)

    def _say_waiting(self) -> None:
        self._progress.say("waiting for another run of this tool to end")

    def _recorded(self) -> str | None:
        return read_record(self._paths.record.read_text()) if self._paths.record.is_file() else None

    def _record(self, provider: str) -> None:
        self._paths.record.write_text(json.dumps({"provider": provider}))

    def _known_provider(self) -> str:
        """Return the provider that was brought up last, else the one `up` would choose."""
        return self._recorded() or choose_provider(None, self._environ, docker_answers)

    def _cluster(self, provider: str) -> Cluster:
        if provider == "current":
            return CurrentCluster(self._binaries, self._progress)
        if provider == "kind":
            return KindCluster(self._paths, self._binaries, self._progress)
        return LocalCluster(self._paths, self._binaries, self._progress)
