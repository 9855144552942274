"""A pod that is real where it matters: a runtime on the pod's address, and a hand that probes it as a kubelet does."""

import asyncio
import base64
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from agent_operator.kube.port import AGENT, CONFIG_MAP, SECRET
from tests.fakes.provider import KEY
from tests.integration.agent_operator.harness import RUNTIME_IP, Api

REPOSITORY = Path(__file__).resolve().parents[3]
READINESS_PERIOD = 2.0
FAILURES = 2


@dataclass
class RealPod:
    """One runtime process and what its kubelet last said of it."""

    api: Api
    namespace: str
    name: str
    folder: Path
    port: int
    ready: bool = False
    ready_at: float = 0.0
    """When the present readiness was told to the API server (time.monotonic)."""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def base(self) -> str:
        """Where the runtime listens."""
        return f"http://{RUNTIME_IP}:{self.port}"

    def put_key(self, key: str) -> None:
        """Replace the mounted key, as a kubelet does: by a rename."""
        folder = self.folder / "secrets" / "llm"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "new").write_text(key)
        (folder / "new").rename(folder / "key")

    async def say(self, content: str, session: str = "s") -> dict[str, Any]:
        """Send a message and return the answer."""
        url = f"{self.base}/v1/agents/{self.namespace}/bot/sessions/{session}/messages"
        async with aiohttp.ClientSession() as http, http.post(url, json={"content": content}) as response:
            assert response.status == 200, await response.text()
            return dict(await response.json())

    async def wait_ready(self, ready: bool, *, timeout: float) -> float:
        """Wait until the API server was told so; return when that was."""
        async with asyncio.timeout(timeout):
            while self.ready is not ready:
                await asyncio.sleep(0.02)
        return self.ready_at

    async def _probe(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{self.base}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _tell(self, ready: bool) -> None:
        await self.api.set_pod(
            self.namespace, self.name, ready=ready, running=True, started_ago=time.monotonic() - self.started_at
        )
        self.ready, self.ready_at = ready, time.monotonic()

    async def keep_probing(self) -> None:
        """Probe for ever: often until it is ready the first time, then with the Deployment's period and threshold."""
        await self._tell(False)
        failures, was_ready = 0, False
        while True:
            well = await self._probe()
            failures = 0 if well else failures + 1
            if well is not self.ready and (well or failures >= FAILURES):
                await self._tell(well)
            was_ready = was_ready or well
            await asyncio.sleep(READINESS_PERIOD if was_ready else 0.2)


def mount_encryption_keys(folder: Path, secret: Any) -> dict[str, str]:
    """Write the Secret's keys as files, and return what the Deployment says of them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, value in secret["data"].items():
        (folder / name).write_bytes(base64.b64decode(value))
    source = f"Secret {secret['metadata']['namespace']}/{secret['metadata']['name']}"
    return {"ABIDE_ENCRYPTION_KEYS_DIR": str(folder), "ABIDE_ENCRYPTION_SOURCE": source}


@asynccontextmanager
async def real_pod(
    api: Api, namespace: str, folder: Path, *, postgres_url: str, port: int, key: str = KEY
) -> AsyncIterator[RealPod]:
    """Run the pod of agent `bot` until the block ends."""
    name = await api.the_pod(namespace)
    agent = await api.get(AGENT, namespace, "bot")
    revision = await api.revision(namespace)
    manifest = await api.get(CONFIG_MAP, namespace, f"agent-bot-{revision}")
    assert agent is not None
    assert manifest is not None
    (folder / "agent.json").write_text(manifest["data"]["agent.json"])
    pod = RealPod(api, namespace, name, folder, port)
    pod.put_key(key)
    environ = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "ABIDE_MANIFEST": str(folder / "agent.json"),
        "ABIDE_AGENT_ID": agent["metadata"]["uid"],
        "ABIDE_REVISION": revision,
        "ABIDE_SECRETS_DIR": str(folder / "secrets"),
        "ABIDE_POSTGRES_URL": postgres_url,
        "ABIDE_INSTANCE": name,
        "ABIDE_POD_NAME": name,
        "ABIDE_AUTH": "none",
        "ABIDE_HOST": RUNTIME_IP,
        "ABIDE_PORT": str(port),
    }
    if (secret := await api.get(SECRET, namespace, "agent-bot-encryption")) is not None:
        environ |= mount_encryption_keys(folder / "encryption-keys", secret)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent_runtime", cwd=REPOSITORY, env=environ,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    probing = asyncio.create_task(pod.keep_probing())
    try:
        yield pod
    except BaseException as error:
        error.add_note((folder / "log").read_text(errors="replace")[-4000:])
        raise
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        if process.returncode is None:
            process.kill()
        await process.wait()
