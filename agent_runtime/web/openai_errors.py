"""Problems in the shape that OpenAI's clients read: `{"error": {message, type, param, code}}`."""

from collections.abc import Mapping
from typing import Any, Final

PATHS: Final = ("/v1/chat/", "/v1/models")
"""Below these every error has this shape, whoever found it."""

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODES: Final[Mapping[str, str]] = {
    "unauthorized": "invalid_api_key",
    "forbidden": "insufficient_permissions",
    "agent-not-found": "model_not_found",
    "rate-limited": "rate_limit_exceeded",
    "too-large": "string_above_max_length",
}


def is_openai(path: str) -> bool:
    """Whether errors of this path have OpenAI's shape."""
    return path.startswith(PATHS)


def openai_status(status: int) -> int:
    """Return the status OpenAI answers with: wrong fields are 400 there."""
    return 400 if status == 422 else status


def openai_error(kind: str, status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error. `kind` is the last part of a problem's type, which is the code of most."""
    default = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(status, default),
            "param": param,
            "code": _CODES.get(kind, kind.replace("-", "_")),
        }
    }
