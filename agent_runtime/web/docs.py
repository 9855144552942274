"""A page that shows the OpenAPI document. Self-contained: it loads nothing from anywhere else."""

from pathlib import Path


def docs_page() -> str:
    """Return the page; it reads openapi.json beside it."""
    return Path(__file__).with_name("docs.html").read_text(encoding="utf-8")
