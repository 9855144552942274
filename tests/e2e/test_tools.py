"""Tools on a real node: discovered, called, away and back, without a restart and without a secret in sight."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.kube import Client, Kube, agent, wait_for
from tests.e2e.surroundings import brief, expose, pods_of, restarts_of, status_of
from tests.fakes.mcp_process import McpProcess

TOKEN = "Bearer mcp-token-of-a-test-0001"
CLOCK = {"name": "time", "type": "Builtin", "builtin": {"name": "Clock"}}


@pytest.fixture
def server() -> Iterator[McpProcess]:
    """An MCP server on this machine that wants a token."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = int(probe.getsockname()[1])
    made = McpProcess(port, TOKEN)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def put_token(kube: Kube, namespace: str, token: str) -> None:
    content = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "gh"}, "stringData": {"bearer": token}}
    kube.apply(content, namespace)


def caller(kube: Kube, namespace: str, port: int) -> dict[str, Any]:
    """Return an agent whose model calls the server's tool in every turn."""
    url = expose(kube, namespace, port, name="mcp").removesuffix("/v1") + "/mcp"
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "gh", "key": "bearer"}}]
    entry = {"name": "github", "type": "MCP", "mcp": {"url": url, "headersFrom": headers}, "allow": ["get_diff"]}
    replies = [{"toolCalls": [{"name": "get_diff", "arguments": {"number": 7}}]}, "done"]
    models = [{"provider": "scripted", "parameters": {"replies": replies}}]
    return agent("desk", models=models, tools=[entry, CLOCK])


def tool_results(client: Client, session: str) -> list[str]:
    return [line["content"] for line in client.history(session) if line["role"] == "tool"]


def test_tools_are_discovered_called_and_missed_without_a_restart(
    kube: Kube, namespace: str, server: McpProcess
) -> None:
    put_token(kube, namespace, TOKEN)
    kube.apply(caller(kube, namespace, server.port), namespace)
    kube.wait_condition("desk", namespace, "ToolsReady", "True", "Connected", seconds=60)
    assert (brief(kube, "desk", namespace)["Ready"], brief(kube, "desk", namespace)["Degraded"]) == (
        "True/Serving",
        "False/AllWell",
    )
    found = {one["name"]: one for one in status_of(kube, "desk", namespace)["tools"]}
    assert (found["github"]["ready"], found["github"]["tools"]) == (True, ["get_diff"])
    assert found["time"]["tools"] == ["current_time"]
    client = Client(kube, "desk", namespace)
    assert client.send("s", "look")["reply"] == {"content": "done"}
    assert tool_results(client, "s") == ["diff of 7"]

    server.stop()
    # It is looked at every 10 s; status follows within 5 s.
    message = kube.wait_condition("desk", namespace, "ToolsReady", "False", "ToolDown", seconds=30)["message"]
    assert message.startswith(f"Tool github (http://mcp.{namespace}.svc:{server.port}/mcp) ")
    assert "Users get replies without it." in message
    assert brief(kube, "desk", namespace)["Ready"] == "True/ToolDown"
    assert brief(kube, "desk", namespace)["Degraded"] == "True/ToolDown"
    assert client.send("t", "look")["turn"]["status"] == "completed"
    assert tool_results(client, "t")[0].startswith("get_diff: its server refuses connections")

    server.start()
    back = time.monotonic()
    kube.wait_condition("desk", namespace, "ToolsReady", "True", "Connected", seconds=30)
    assert time.monotonic() - back <= 15 + 5 + 2
    assert client.send("u", "look")["turn"]["status"] == "completed"
    assert tool_results(client, "u") == ["diff of 7"]
    (pod,) = pods_of(kube, "desk", namespace)
    assert restarts_of(pod) == 0


def test_a_token_that_is_corrected_in_its_secret_is_used(kube: Kube, namespace: str, server: McpProcess) -> None:
    put_token(kube, namespace, "Bearer wrong")
    kube.apply(caller(kube, namespace, server.port), namespace)
    message = kube.wait_condition("desk", namespace, "ToolsReady", "False", "ToolDown", seconds=60)["message"]
    assert " answers 401 since " in message
    assert f"Put a valid value into Secret {namespace}/gh, key bearer" in message
    put_token(kube, namespace, TOKEN)
    kube.wait_condition("desk", namespace, "ToolsReady", "True", "Connected", seconds=75)
    client = Client(kube, "desk", namespace)
    assert client.send("s", "look")["turn"]["status"] == "completed"
    assert tool_results(client, "s") == ["diff of 7"]
    assert TOKEN not in kube.run("get", "agents.abide.dev", "-n", namespace, "-o", "json")
    (pod,) = pods_of(kube, "desk", namespace)
    assert TOKEN.removeprefix("Bearer ") not in kube.run("logs", "-n", namespace, pod["metadata"]["name"], "--tail=-1")
    assert restarts_of(pod) == 0


def test_a_missing_secret_of_a_tool_is_named(kube: Kube, namespace: str, server: McpProcess) -> None:
    kube.apply(caller(kube, namespace, server.port), namespace)
    found = kube.wait_condition("desk", namespace, "Accepted", "False", "SecretMissing", seconds=20)
    assert found["message"].startswith("spec.tools[0].mcp.headersFrom[0].secretKeyRef: Secret ")
    put_token(kube, namespace, TOKEN)

    def ready() -> bool:
        return brief(kube, "desk", namespace).get("ToolsReady") == "True/Connected"

    wait_for(ready, seconds=60, what="the tools are connected")
