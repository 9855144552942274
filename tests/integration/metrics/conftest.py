"""Fixtures: promtool and Prometheus, and the operator's API server."""

import pytest

from tests.integration.agent_operator.conftest import api, control_plane, namespace
from tests.tools.prometheus import Tools, ensure

__all__ = ["api", "control_plane", "namespace", "promtool"]


@pytest.fixture(scope="session")
def promtool() -> Tools:
    """Prometheus and promtool, fetched first if need be."""
    return ensure()
