"""Structured logs: one JSON object per line on stdout, or text for people on stderr.

The event is a short word, everything else a field; content of messages is never logged. Uvicorn's and other libraries'
lines take the same way out.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, cast

from agent_runtime.slim import without_modules

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Scrub = Callable[[str], str]


# structlog loads rich where it is installed, for coloured tracebacks that nobody uses here: 5 MB.
with without_modules("rich"):
    import structlog


def configure(log_format: str, level: str, scrub: Scrub) -> None:
    """Set up logging for this process; every line passes `scrub`. May be called again."""
    renderer = _render_json if log_format == "json" else _render_console
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Rendered(renderer, scrub),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout if log_format == "json" else sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(LEVELS[level], logging.WARNING))


def get_logger(name: str) -> "structlog.typing.FilteringBoundLogger":
    """Return the logger of one part of the runtime."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(part=name))


class _Rendered:
    def __init__(self, render: Callable[[Mapping[str, Any]], str], scrub: Scrub) -> None:
        self._render = render
        self._scrub = scrub

    def __call__(self, _logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
        return self._scrub(self._render(event))


_ENCODER: Final = json.JSONEncoder(default=str, ensure_ascii=False, separators=(",", ":"))


def _render_json(event: Mapping[str, Any]) -> str:
    return _ENCODER.encode(event)


def _render_console(event: Mapping[str, Any]) -> str:
    fields = dict(event)
    head = f"{str(fields.pop('timestamp', ''))[11:19]} {fields.pop('level', ''):<7} {fields.pop('event', '')}"
    trace = fields.pop("exception", "")
    line = " ".join([head, *(f"{name}={value}" for name, value in fields.items())])
    return f"{line}\n{trace}" if trace else line


class _Forward(logging.Handler):
    """Hands the lines of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = get_logger(record.name)
        method = logger.error if record.levelno >= logging.ERROR else logger.warning
        method(record.getMessage(), exc_info=record.exc_info or None)
