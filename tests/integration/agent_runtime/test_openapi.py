"""The OpenAPI document is true: generated requests, right and wrong ones, get answers as it describes them."""

import asyncio
import sys
from pathlib import Path

from tests.integration.agent_runtime.harness import manifest, serving

# Cursors and the order of a conversation follow rules that a schema cannot say; a message that is too long gets 413.
CONFIG = """
[checks]
positive_data_acceptance.enabled = false
negative_data_rejection.expected-statuses = ["400", "401", "404", "405", "409", "413", "422", "431"]
"""


def shortened(output: bytes) -> str:
    return "\n".join(line[:300] for line in output.decode(errors="replace").splitlines()[-80:])


async def test_generated_requests_get_answers_as_described(postgres_url: str, tmp_path: Path) -> None:
    agent = manifest("assistant", memories={"enabled": True})
    agent["metadata"]["namespace"] = "default"
    async with serving(postgres_url, agent) as served:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{served.base}/openapi.json"]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "10", "--generation-deterministic"]
        command += ["--suppress-health-check", "all", "--no-color", "--request-timeout", "20", "--warnings", "off"]
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        run = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(240):
                output, _ = await run.communicate()
        finally:
            if run.returncode is None:
                run.kill()
                await run.wait()
        assert run.returncode == 0, shortened(output)
        assert b"Tested: 35" in output
