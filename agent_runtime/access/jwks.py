"""The public keys of an identity provider (JWKS, RFC 7517): fetched when first needed, kept, and fetched again."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.access.errors import AccessUnavailable
from agent_runtime.clock import Clock
from agent_runtime.telemetry.logs import get_logger

_LOG = get_logger("access")
FRESH_SECONDS: Final = 300.0
"""So long keys are used without asking: a key that was withdrawn is believed for so long."""
STALE_SECONDS: Final = 86_400.0
"""So long the last known keys are used while the provider does not answer."""
PAUSE_SECONDS: Final = 10.0
"""Between two fetches, whatever unknown keys tokens name: a stranger must not make us ask."""
MOST_KEYS: Final = 100
SMALLEST_RSA_BITS: Final = 2048
_RSA: Final = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_CURVES: Final[Mapping[str, frozenset[str]]] = {
    "P-256": frozenset(("ES256",)),
    "P-384": frozenset(("ES384",)),
    "P-521": frozenset(("ES512",)),
    "Ed25519": frozenset(("EdDSA",)),
}
ALGORITHMS: Final = frozenset().union(_RSA, *_CURVES.values())
"""What tokens may be signed with. Shared secrets (HS256) and unsigned tokens (none) are not among it."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and the algorithms it may be used with."""

    key: Any
    algorithms: frozenset[str]


class KeySet:
    """The keys behind one URL. One fetch at a time, whoever waits for it."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._client: Any = None
        self._keys: dict[str, VerificationKey] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()

    async def find(self, key_id: str, algorithm: str) -> VerificationKey | None:
        """Return the key of this id if it may be used with the algorithm, else None.

        Raises AccessUnavailable when the provider cannot be asked and nothing recent enough is known.
        """
        if self._age() > FRESH_SECONDS or key_id not in self._keys:
            await self._refresh(key_id)
        if self._age() > STALE_SECONDS:
            raise AccessUnavailable("The keys of the identity provider cannot be fetched.", retry_after=PAUSE_SECONDS)
        found = self._keys.get(key_id)
        return found if found is not None and algorithm in found.algorithms else None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock.monotonic() - self._fetched_at

    async def _refresh(self, key_id: str) -> None:
        async with self._lock:
            if self._age() <= FRESH_SECONDS and key_id in self._keys:
                return  # somebody else fetched it meanwhile
            now = self._clock.monotonic()
            if self._tried_at is not None and now - self._tried_at < PAUSE_SECONDS:
                return
            self._tried_at = now
            await self._fetch()

    async def _fetch(self) -> None:
        from agent_runtime.access.http import AskError, ask, build_client

        try:
            if self._client is None:
                self._client = build_client()
            document = await ask(self._client, "GET", self._url)
        except AskError as error:
            _LOG.warning("jwks_unavailable", url=self._url, message=str(error))
            return
        keys = parse_key_set(document)
        if not keys:
            _LOG.warning("jwks_unusable", url=self._url, message="no key in it that can be used")
            return
        self._keys, self._fetched_at = keys, self._clock.monotonic()


def parse_key_set(document: Any) -> dict[str, VerificationKey]:
    """Return the usable keys of a JWKS document by id (""  where a key has none); what cannot be used is left out."""
    entries = document.get("keys") if isinstance(document, dict) else None
    found: dict[str, VerificationKey] = {}
    for entry in (entries if isinstance(entries, list) else [])[:MOST_KEYS]:
        key = _parse_key(entry) if isinstance(entry, dict) else None
        if key is not None:
            found[str(entry.get("kid") or "")] = key
    return found


def _parse_key(entry: dict[str, Any]) -> VerificationKey | None:
    from jwt import PyJWTError
    from jwt.api_jwk import PyJWK

    algorithms = _RSA if entry.get("kty") == "RSA" else _CURVES.get(str(entry.get("crv")), frozenset())
    if entry.get("alg"):
        algorithms = algorithms & {str(entry["alg"])}
    # What signs is not what encrypts; and of a private key, or a shared secret, nothing published is to be trusted.
    if not algorithms or entry.get("use", "sig") != "sig" or "d" in entry or "k" in entry:
        return None
    try:
        key = PyJWK(entry, min(algorithms)).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if entry.get("kty") == "RSA" and key.key_size < SMALLEST_RSA_BITS:
        return None
    return VerificationKey(key, frozenset(algorithms))
