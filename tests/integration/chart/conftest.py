"""helm, as a user runs it, on the chart of this repository."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "helm" / "abide"

Object = dict[str, Any]


class Helm:
    """helm on the chart; nothing here needs a cluster."""

    def __init__(self, program: str) -> None:
        self._program = program

    def run(self, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command, values handed over as a file, whatever the exit code."""
        given = ["--values", "-"] if values is not None else []
        return subprocess.run(
            [self._program, *arguments, *given],
            input=json.dumps(values or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def render(self, values: Object | None = None, *arguments: str) -> list[Object]:
        """Return the objects an install would make."""
        done = self.run("template", "abide", str(CHART), "-n", "abide-system", *arguments, values=values or {})
        assert done.returncode == 0, done.stderr
        return [found for found in yaml.safe_load_all(done.stdout) if found]

    def refuse(self, values: Object) -> str:
        """Return the words of the refusal of wrong values."""
        done = self.run("template", "abide", str(CHART), "-n", "abide-system", values=values)
        assert done.returncode != 0, f"accepted: {values}"
        return done.stderr


@pytest.fixture(scope="session")
def helm() -> Helm:
    """The helm of the test cluster, built first if need be."""
    command = [sys.executable, "-m", "tests.cluster", "tool", "helm"]
    return Helm(
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=1200).stdout.strip()
    )
