"""Asking others who somebody is: JSON over HTTP, bounded in time and size. Imported only where it is needed."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx2

MOST_BYTES: Final = 1024 * 1024
SECONDS: Final = 5.0
MOST_CONNECTIONS: Final = 8


class AskError(Exception):
    """There is no usable answer; the text says why, without secrets."""


class RefusedError(AskError):
    """The other side answered, with another status than success."""

    def __init__(self, status: int) -> None:
        super().__init__(f"answers {status}")
        self.status = status


def build_client(ca_file: Path | None = None) -> httpx2.AsyncClient:
    """Return a client that follows no redirects: what is asked is said to one host only.

    Raises AskError if `ca_file`, the only authority to trust, cannot be read.
    """
    try:
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else ssl.create_default_context()
    except OSError as error:
        raise AskError(f"the certificates in {ca_file} cannot be read") from error
    limits = httpx2.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=2, keepalive_expiry=30)
    return httpx2.AsyncClient(timeout=SECONDS, limits=limits, follow_redirects=False, verify=verify)


async def ask(
    client: httpx2.AsyncClient, method: str, url: str, *, body: Any = None, headers: Mapping[str, str] | None = None
) -> Any:
    """Return the JSON document of the answer. Raises AskError."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _ask(client, method, url, body, headers)
    except TimeoutError:
        raise AskError(f"does not answer within {SECONDS:g} s") from None
    except httpx2.HTTPError as error:
        raise AskError(f"cannot be reached ({type(error).__name__})") from error
    except ValueError as error:
        raise AskError("answers something that is not JSON") from error


async def _ask(client: httpx2.AsyncClient, method: str, url: str, body: Any, headers: Mapping[str, str] | None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if content else {}
    more = {"Accept": "application/json", **kind, **(headers or {})}
    async with client.stream(method, url, content=content, headers=more) as response:
        if not response.is_success:
            raise RefusedError(response.status_code)
        received = bytearray()
        async for piece in response.aiter_bytes():
            received += piece
            if len(received) > MOST_BYTES:
                raise AskError(f"answers more than {MOST_BYTES} bytes")
    return json.loads(bytes(received))
