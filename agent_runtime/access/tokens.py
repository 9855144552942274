"""Tokens of identity providers (JWT, RFC 7519), verified here with the provider's public keys."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent_api.v1alpha1 import JwtAccess
from agent_runtime.access.errors import NotIdentifiedError
from agent_runtime.access.jwks import ALGORITHMS, KeySet
from agent_runtime.access.keys import rights_of
from agent_runtime.access.names import user_of
from agent_runtime.access.principal import Principal, Right
from agent_runtime.clock import Clock

LEEWAY_SECONDS: Final = 30
"""How far clocks may differ."""
MOST_CHARS: Final = 16_384
MOST_VALUES: Final = 1000


class TokenVerifier:
    """The providers of `spec.access.jwt` of one agent (`agent`: `namespace/name`)."""

    def __init__(self, providers: Sequence[JwtAccess], agent: str, clock: Clock) -> None:
        self._providers = [(provider, KeySet(provider.jwks_url, clock)) for provider in providers]
        self._agent = agent

    def __bool__(self) -> bool:
        """Whether there is any provider."""
        return bool(self._providers)

    async def identify(self, token: str) -> Principal | None:
        """Return who the token names, None if it is of no provider known here.

        Raises NotIdentifiedError for a provider's token that is not valid, AccessUnavailable.
        """
        if not self._providers or token.count(".") != 2 or len(token) > MOST_CHARS:
            return None
        head = _peek(token)
        if head is None:
            return None
        algorithm, key_id, issuer = head
        candidates = [one for one in self._providers if one[0].issuer == issuer]
        problem: NotIdentifiedError | None = None
        for provider, keys in candidates:
            try:
                return await self._verify(token, algorithm, key_id, provider, keys)
            except NotIdentifiedError as error:
                problem = error
        if problem is not None:
            raise problem
        return None

    async def aclose(self) -> None:
        """Close all connections."""
        for _, keys in self._providers:
            await keys.aclose()

    async def _verify(self, token: str, algorithm: str, key_id: str, provider: JwtAccess, keys: KeySet) -> Principal:
        import jwt

        if algorithm not in ALGORITHMS:
            raise NotIdentifiedError(f"Tokens signed with {algorithm[:16]!r} are not taken.")
        key = await keys.find(key_id, algorithm)
        if key is None:
            raise NotIdentifiedError("The token is signed with a key that its issuer does not publish.")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=provider.audience,
                issuer=provider.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise NotIdentifiedError("The token has expired.") from None
        except jwt.InvalidAudienceError:
            raise NotIdentifiedError("The token is for another audience.") from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise NotIdentifiedError(f"The token is not valid ({type(error).__name__}).") from None
        return self._principal(claims, provider)

    def _principal(self, claims: Mapping[str, Any], provider: JwtAccess) -> Principal:
        subject = find_claim(claims, provider.user_claim)
        if not isinstance(subject, str) or not subject:
            raise NotIdentifiedError(f"The token does not say who you are: claim {provider.user_claim!r} is missing.")
        user = user_of(subject, provider.user_prefix)
        return Principal(f"jwt:{provider.name}:{user}", granted(claims, provider), user, frozenset((self._agent,)))


def granted(claims: Mapping[str, Any], provider: JwtAccess) -> frozenset[Right]:
    """Return the rights that a valid token with these claims gives."""
    rights = rights_of(provider.rights)
    if provider.rights_claim:
        for value in claim_values(find_claim(claims, provider.rights_claim)):
            rights |= rights_of(provider.rights_map.get(value, ()))
    return rights


def find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by the path to it with dots between (`realm_access.roles`); None if absent."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def claim_values(value: Any) -> Sequence[str]:
    """Return the texts of a claim that is a list, or a text with blanks between (as `scope` is)."""
    if isinstance(value, str):
        return value.split()[:MOST_VALUES]
    return [one for one in value if isinstance(one, str)][:MOST_VALUES] if isinstance(value, list) else []


def _peek(token: str) -> tuple[str, str, str] | None:
    """Return algorithm, key id and issuer as the token claims them, unverified; None if it is no JWT."""
    import jwt

    try:
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return str(header.get("alg", "")), str(header.get("kid") or ""), str(claims.get("iss", ""))
