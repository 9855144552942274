"""A real Prometheus scrapes a real runtime and a real operator: every query of dashboards and rules gives data."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent_operator.kube.port import AGENT, POD
from agent_operator.resources.inputs import PORT
from tests.cluster.controlplane import ControlPlane
from tests.integration.agent_operator.harness import Api, eventually
from tests.integration.agent_operator.test_process import process as operator_process
from tests.integration.agent_runtime.harness import manifest, scripted, until
from tests.integration.agent_runtime.harness import process as runtime_process
from tests.integration.metrics.rules import RULES, SCRAPE, without_data
from tests.tools.discovery import Discovery, selectors_of
from tests.tools.prometheus import Server, Tools, running, wait_for

NAME = "desk"
SLI = "sum by (result) (abide_sli_messages_total{%s})"
MODELS = (
    scripted("one", {"error": 500}, {"error": 401}, name="first", model="large"),
    scripted("two", "two", {"error": 503}, name="second", model="small"),
)
"""The first turn of a session gets the first model, the second the other one, the third the fallback message."""
INTERVAL = 1
POD_IP = "127.0.91.9"
"""An address that stands for a pod's; the port must be that of the container."""


@dataclass(frozen=True)
class Scene:
    """One agent with traffic, and the operator that knows it."""

    namespace: str
    pod: str
    runtime: str
    operator: str
    agents: Discovery

    def config(self) -> dict[str, Any]:
        """Return a configuration of Prometheus: the agent is found as shipped; the operator is no pod here."""
        operator = {"targets": [self.operator.removeprefix("http://")], "labels": {"pod": "operator"}}
        return {
            "global": {
                "scrape_interval": f"{INTERVAL}s",
                "scrape_timeout": f"{INTERVAL}s",
                "evaluation_interval": f"{INTERVAL}s",
            },
            "rule_files": [str(RULES)],
            "scrape_configs": [*self.agents.jobs(), {"job_name": "abide-operator", "static_configs": [operator]}],
        }


async def talk(http: httpx.AsyncClient, scene: Scene, session: str, times: int) -> list[str]:
    """Send messages; return the status of each turn."""
    found = []
    for _ in range(times):
        answer = await http.post(
            f"{scene.runtime}/v1/agents/{scene.namespace}/{NAME}/sessions/{session}/messages", json={"content": "hello"}
        )
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["turn"]["status"])
    return found


@asynccontextmanager
async def scene_of(
    control_plane: ControlPlane, api: Api, namespace: str, postgres_url: str, folder: Path
) -> AsyncIterator[Scene]:
    """Run the operator and the runtime of one agent, both as processes on one Postgres."""
    agent = manifest(NAME, *MODELS)
    agent["metadata"]["namespace"] = namespace
    uid = (await api.make(AGENT, namespace, NAME, spec=agent["spec"]))["metadata"]["uid"]
    async with (
        runtime_process(
            folder, postgres_url, agent, ABIDE_AGENT_ID=uid, ABIDE_HOST=POD_IP, ABIDE_PORT=str(PORT)
        ) as runtime,
        operator_process(
            control_plane.kubeconfig,
            folder / "operator.log",
            ABIDE_WATCH_NAMESPACES=namespace,
            ABIDE_POSTGRES_URL=postgres_url,
            ABIDE_INSTALL_ID="metrics",
        ) as operator,
    ):
        runtime.base = f"http://{POD_IP}:{PORT}"
        async with httpx.AsyncClient(timeout=30) as http:
            await runtime.wait_ready(http)
        await eventually(operator.ready, timeout=30)
        pod = await api.the_pod(namespace)
        await api.set_ready(namespace, pod, ip=POD_IP)
        await api.wait_condition(namespace, "StateStoreReady", "True/Connected", name=NAME, timeout=30)
        shipped = yaml.safe_load(SCRAPE.read_text())["scrape_configs"]
        pods = {selector: await api.all(POD, namespace, selector) for job in shipped for selector in selectors_of(job)}
        jobs = [job for job in shipped if job["job_name"] == "abide-agents"]
        agents = Discovery(folder / "targets", jobs, lambda selector: pods[selector])
        agents.refresh()
        yield Scene(namespace, pod, runtime.base, operator.url, agents)


def counted(text: str) -> int:
    """Return the number of series in a scrape."""
    return sum(len(family.samples) for family in text_string_to_metric_families(text))


def problems(server: Server, scene: Scene) -> list[str]:
    """Return what is not as it should be, yet."""
    missing = without_data(server, NAME, scene.namespace, f"{10 * INTERVAL}s")
    return server.targets_down() + server.rules_failing() + missing


def judge(server: Server, scene: Scene) -> None:
    """Wait until every query gives data, and check what the rules made of the traffic."""
    wait_for(
        lambda: not problems(server, scene),
        seconds=60,
        what=lambda: str(problems(server, scene)),
    )
    agent = f'agent="{NAME}",agent_namespace="{scene.namespace}"'
    wait_for(
        lambda: (
            {one["metric"]["result"]: float(one["value"][1]) for one in server.query(SLI % agent)}
            == {"good": 20.0, "bad": 10.0}
        ),
        seconds=20,
        what=lambda: str(server.query(SLI % agent)),
    )
    assert server.value(f'abide_turns_answered_total{{{agent},model="scripted/small"}}') == 10
    (found,) = server.query(f"abide_ready{{{agent}}}")
    assert (found["metric"]["pod"], found["metric"]["namespace"]) == (scene.pod, scene.namespace)
    wait_for(
        lambda: round(server.value(f"agent:abide_sli_bad:ratio_rate1h{{{agent}}}"), 2) == 0.33,
        seconds=20,
        what=lambda: str(server.query("agent:abide_sli_bad:ratio_rate1h")),
    )
    wait_for(
        lambda: server.alerts("AbideErrorBudgetBurnsFast"), seconds=20, what=lambda: str(server.get("alerts")["alerts"])
    )
    assert server.value("abide:postgres_unreachable") == 0


async def test_every_query_gives_data_and_every_metric_is_well_named(
    control_plane: ControlPlane, api: Api, namespace: str, postgres_url: str, promtool: Tools, tmp_path: Path
) -> None:
    async with (
        scene_of(control_plane, api, namespace, postgres_url, tmp_path) as scene,
        httpx.AsyncClient(timeout=30) as http,
    ):

        def scrape_and_judge() -> None:
            with running(tmp_path / "prometheus", scene.config(), promtool) as server:
                wait_for(
                    lambda: server.query("abide_sli_messages_total") and server.query("abide_operator_info"),
                    seconds=30,
                    what=lambda: str(server.targets_down()),
                )
                asyncio.run_coroutine_threadsafe(traffic(http, scene), loop).result(60)
                judge(server, scene)

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(scrape_and_judge)
        for url, most in ((scene.runtime, 150 + 38 * len(MODELS)), (scene.operator, 400)):
            text = (await http.get(f"{url}/metrics")).text
            verdict = promtool.check("check", "metrics", stdin=text)
            assert (verdict.returncode, verdict.stdout + verdict.stderr) == (0, "")
            families = list(text_string_to_metric_families(text))
            assert {family.name.split("_")[0] for family in families} == {"abide"}
            assert counted(text) <= most
            for family in families:
                assert all("namespace" not in sample.labels for sample in family.samples)


async def traffic(http: httpx.AsyncClient, scene: Scene) -> None:
    """Ten sessions of three turns, and requests that are refused."""
    statuses = await asyncio.gather(*(talk(http, scene, f"s{number}", 3) for number in range(10)))
    assert statuses == [["completed", "completed", "fallback"]] * 10
    assert (await http.get(f"{scene.runtime}/nowhere")).status_code == 404
    path = f"{scene.runtime}/v1/agents/{scene.namespace}/{NAME}/sessions/a/messages"
    assert (await http.post(path, json={})).status_code == 422


async def test_labels_from_outside_make_no_series(postgres_url: str, tmp_path: Path) -> None:
    """Sessions, users, paths and codes that callers choose do not make series of their own."""
    agent = manifest(NAME, *MODELS)
    async with (
        runtime_process(tmp_path, postgres_url, agent) as runtime,
        httpx.AsyncClient(timeout=30) as http,
    ):
        await runtime.wait_ready(http)
        path = f"{runtime.base}/v1/agents/tests/{NAME}/sessions"

        async def one_of_each(number: int) -> None:
            headers = {"Abide-User": f"user-{number}", "Idempotency-Key": f"key-{number}"}
            await http.post(f"{path}/s{number}/messages", json={"content": "x"}, headers=headers)
            await http.get(f"{runtime.base}/nowhere/{number}")

        async def series() -> int:
            return counted((await http.get(f"{runtime.base}/metrics")).text)

        await one_of_each(0)
        await one_of_each(0)
        before = await series()
        for number in range(1, 30):
            await one_of_each(number)
        assert await series() == before
        assert before <= 150 + 38 * len(MODELS)

        async def counted_down() -> bool:
            return (
                'abide_running_turns{agent="desk",agent_namespace="tests"} 0.0'
                in (await http.get(f"{runtime.base}/metrics")).text
            )

        await until(counted_down, "no turn runs any more")
