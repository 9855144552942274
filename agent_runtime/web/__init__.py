"""The HTTP edge: the only importer of the web framework. Requests in, plain values to the engine, documents out."""

from agent_runtime.slim import without_modules

# The framework asks of every route whether it uses pydantic 1, and loads that to find out: 3 MB and 0.1 s.
with without_modules("pydantic.v1"):
    from agent_runtime.web.app import build_app

__all__ = ["build_app"]
