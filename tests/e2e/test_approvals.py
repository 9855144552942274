"""A tool call that waits for a person outlives the pod that asked."""

from typing import Any

from tests.e2e.kube import Client, Kube, agent, wait_for

REPLIES: list[Any] = [{"toolCalls": [{"name": "current_time", "arguments": {}}]}, "now you know"]


def test_what_waits_for_a_person_goes_on_in_another_pod(kube: Kube, namespace: str) -> None:
    model = {"name": "primary", "provider": "scripted", "parameters": {"replies": REPLIES}}
    clock = {
        "name": "clock",
        "type": "Builtin",
        "builtin": {"name": "Clock"},
        "approval": {"for": ["current_time"]},
    }
    kube.apply(agent("asks", models=[model], tools=[clock], messages={"waitingApproval": "I ask."}), namespace)
    kube.wait_ready("asks", namespace)
    client = Client(kube, "asks", namespace)
    told = client.request(
        "POST", "/sessions/one/messages", json={"content": "what time is it?"}, headers={"Idempotency-Key": "k"}
    )
    assert told.status_code == 202, told.text
    assert (told.json()["turn"]["status"], told.json()["reply"]) == ("waiting", {"content": "I ask."})
    turn = told.json()["turn"]["id"]

    asking = kube.pod("asks", namespace)["metadata"]
    kube.run("delete", "pod", asking["name"], "-n", namespace, "--grace-period=0", "--force")
    wait_for(
        lambda: kube.pod("asks", namespace)["metadata"]["uid"] != asking["uid"] or None,
        seconds=90,
        what="another pod",
    )
    kube.wait_ready("asks", namespace)

    (waiting,) = client.request("GET", "/approvals").json()["items"]
    assert (waiting["turnId"], waiting["tool"]) == (turn, "current_time")
    decided = client.request("POST", f"/turns/{turn}/approvals/{waiting['callId']}", json={"decision": "approve"})
    assert decided.status_code == 200, decided.text
    found = wait_for(
        lambda: next((t for t in [client.request("GET", f"/turns/{turn}").json()["turn"]] if t["finishedAt"]), None),
        seconds=30,
        what="the outcome of the turn",
    )
    assert client.send("one", "what time is it?", "k")["reply"] == {"content": "now you know"}
    assert found["attempts"] == 1, "waiting is no failure"
    assert [(step["kind"], step["name"], step["status"]) for step in found["steps"]] == [
        ("model", "scripted/scripted", "finished"),
        ("tool", "current_time", "finished"),
    ]
    assert [line["role"] for line in client.history("one")] == ["user", "assistant", "tool", "assistant"]
