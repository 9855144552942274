"""`abide load` in a cluster where no agent ever gets ready: it says so in time, and removes what it made."""

import json

from tests.integration.agent_cli.cluster import World

ARGUMENTS = ("load", "--agents", "2", "--messages", "1", "--timeout", "10")


def test_agents_that_do_not_get_ready_are_named_and_removed(world: World) -> None:
    done = world.abide(*ARGUMENTS, "-n", world.namespace)
    assert done.returncode == 1
    assert "Not all of 2 agents became Ready" in done.stderr
    assert done.stderr.count("no status") == 2
    assert world.kubectl("get", "agents.abide.dev", "-o", "name") == ""


def test_a_namespace_made_for_the_run_is_deleted(world: World) -> None:
    before = {item["metadata"]["name"] for item in namespaces(world)}
    done = world.abide(*ARGUMENTS)
    assert done.returncode == 1, done.stderr
    made = [item for item in namespaces(world) if item["metadata"]["name"] not in before]
    # The controller that finishes a deletion does not run here.
    assert all("deletionTimestamp" in item["metadata"] for item in made)
    assert "could not clean up" not in done.stderr
    assert all(item["metadata"]["name"].startswith("abide-load-") for item in made)


def namespaces(world: World) -> list[dict[str, dict[str, str]]]:
    """Return all namespaces."""
    found: list[dict[str, dict[str, str]]] = json.loads(world.kubectl("get", "namespaces", "-o", "json"))["items"]
    return found
