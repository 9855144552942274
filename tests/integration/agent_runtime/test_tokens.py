"""Tokens of an identity provider (JWT): verified with keys that the provider publishes over real HTTP."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agent_api.v1alpha1 import JwtAccess
from agent_runtime.access.errors import AccessUnavailable, NotIdentifiedError
from agent_runtime.access.jwks import FRESH_SECONDS, PAUSE_SECONDS, STALE_SECONDS, parse_key_set
from agent_runtime.access.principal import Right
from agent_runtime.access.tokens import TokenVerifier
from agent_runtime.clock import ManualClock
from agent_runtime.settings import AuthMode
from tests.integration.agent_runtime.harness import manifest, serving

ISSUER = "https://login.example.com"
AUDIENCE = "abide"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS: Mapping[str, Any] = {
    "RS256": RSA_KEY,
    "PS512": RSA_KEY,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    kind = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    kind = "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else kind
    algorithm = jwt.get_algorithm_by_name(kind)
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **more}


def sign(key: Any = RSA_KEY, kid: str = "k1", algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    content = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300, **claims}
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(content, key, algorithm, headers={"kid": kid})


class Provider:
    """An identity provider's JWKS endpoint."""

    def __init__(self) -> None:
        self.document: Any = {"keys": [public_jwk(RSA_KEY, "k1")]}
        self.status = 200
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                body = json.dumps(provider.document).encode()
                self.send_response(provider.status)
                if provider.status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def identity() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


def access(url: str, **more: Any) -> JwtAccess:
    fields = {"name": "company", "issuer": ISSUER, "audience": AUDIENCE, "jwksURL": url, **more}
    return JwtAccess.model_validate(fields)


@pytest.mark.parametrize("algorithm", KEYS)
async def test_each_kind_of_key_verifies(identity: Provider, algorithm: str) -> None:
    key = KEYS[algorithm]
    identity.document = {"keys": [public_jwk(key, "k1")]}
    verifier = TokenVerifier([access(identity.url)], "ns/a", ManualClock())
    found = await verifier.identify(sign(key, algorithm=algorithm))
    assert found is not None
    assert (found.name, found.user, found.rights) == ("jwt:company:alice", "alice", {Right.CHAT})
    assert found.agents == {"ns/a"}
    await verifier.aclose()


def unsigned(algorithm: str, secret: bytes = b"") -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 300}
    if algorithm == "none":
        nothing: Any = None
        return jwt.encode(claims, nothing, "none", headers={"kid": "k1"})
    return jwt.encode(claims, secret, algorithm, headers={"kid": "k1"})


def hmac_with_the_public_key() -> str:
    """Sign with the published key as if it were a shared secret: what a careless verifier takes."""
    pem = RSA_KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (
            {"alg": "HS256", "typ": "JWT", "kid": "k1"},
            {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 300},
        )
    )
    algorithm: Any = jwt.get_algorithm_by_name("HS256")
    import hashlib
    import hmac

    assert algorithm is not None
    mark = base64.urlsafe_b64encode(hmac.new(pem, head + b"." + body, hashlib.sha256).digest()).rstrip(b"=")
    return b".".join((head, body, mark)).decode()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sign(exp=int(time.time()) - 60), "expired"),
        (lambda: sign(exp=None), "MissingRequiredClaimError"),
        (lambda: sign(nbf=int(time.time()) + 600), "ImmatureSignatureError"),
        (lambda: sign(aud="other"), "another audience"),
        (lambda: sign(aud=None), "not valid"),
        (lambda: sign(sub=None), "who you are"),
        (lambda: sign(sub=""), "who you are"),
        (lambda: sign(OTHER_KEY), "InvalidSignatureError"),
        (lambda: sign(kid="unknown"), "does not publish"),
        (lambda: sign(KEYS["ES256"], algorithm="ES256"), "does not publish"),
        (lambda: unsigned("none"), "'none' are not taken"),
        (lambda: unsigned("HS256", b"s" * 32), "'HS256' are not taken"),
        (hmac_with_the_public_key, "'HS256' are not taken"),
    ],
)
async def test_what_is_not_valid_says_why(identity: Provider, make: Any, words: str) -> None:
    verifier = TokenVerifier([access(identity.url)], "ns/a", ManualClock())
    with pytest.raises(NotIdentifiedError, match=words):
        await verifier.identify(make())
    await verifier.aclose()


async def test_tokens_of_others_are_nobodys_here_and_cost_no_question(identity: Provider) -> None:
    verifier = TokenVerifier([access(identity.url)], "ns/a", ManualClock())
    for token in (sign(iss="https://elsewhere"), "no-token", "a.b.c", "x" * 20_000, sign(iss=None)):
        assert await verifier.identify(token) is None
    assert identity.asked == 0


async def test_rights_come_from_everybodys_and_from_claims(identity: Provider) -> None:
    company = access(
        identity.url,
        rights=["Chat"],
        rightsClaim="realm_access.roles",
        rightsMap={"support": ["Read", "Approve"], "ops": ["Operate"]},
        userClaim="email",
        userPrefix="acme:",
    )
    verifier = TokenVerifier([company], "ns/a", ManualClock())
    for roles, expected in (
        (["support", "other"], {Right.CHAT, Right.READ, Right.APPROVE}),
        ("ops support", set(Right)),
        ([], {Right.CHAT}),
        ({"support": True}, {Right.CHAT}),
        ([1, None], {Right.CHAT}),
    ):
        found = await verifier.identify(sign(email="bob@example.com", realm_access={"roles": roles}))
        assert found is not None
        assert (found.user, found.rights) == ("acme:bob@example.com", expected)
    await verifier.aclose()


async def test_keys_are_rotated_and_strangers_cannot_make_us_ask(identity: Provider) -> None:
    clock = ManualClock()
    verifier = TokenVerifier([access(identity.url)], "ns/a", clock)
    for _ in range(5):
        assert await verifier.identify(sign()) is not None
    assert identity.asked == 1
    identity.document = {"keys": [public_jwk(OTHER_KEY, "k2")]}
    for number in range(20):
        with pytest.raises(NotIdentifiedError, match="does not publish"):
            await verifier.identify(sign(OTHER_KEY, kid=f"made-up-{number}"))
    assert identity.asked == 1, "asked less than a pause ago"
    await clock.advance(PAUSE_SECONDS)
    assert await verifier.identify(sign(OTHER_KEY, kid="k2")) is not None
    assert identity.asked == 2
    with pytest.raises(NotIdentifiedError, match="does not publish"):
        await verifier.identify(sign())
    await verifier.aclose()


async def test_known_keys_outlive_an_outage_of_their_provider_for_a_day(identity: Provider) -> None:
    clock = ManualClock()
    verifier = TokenVerifier([access(identity.url)], "ns/a", clock)
    assert await verifier.identify(sign()) is not None
    for trouble in (500, 302):
        identity.status = trouble
        await clock.advance(FRESH_SECONDS + 1)
        assert await verifier.identify(sign()) is not None
    identity.status, identity.document = 200, {"keys": "none"}
    await clock.advance(FRESH_SECONDS + 1)
    assert await verifier.identify(sign()) is not None
    await clock.advance(STALE_SECONDS)
    with pytest.raises(AccessUnavailable):
        await verifier.identify(sign())
    identity.document = {"keys": [public_jwk(RSA_KEY, "k1")]}
    await clock.advance(PAUSE_SECONDS)
    assert await verifier.identify(sign()) is not None
    await verifier.aclose()


def test_of_a_key_set_only_public_signing_keys_are_taken() -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # too small is the point
    private = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEY))
    document = {
        "keys": [
            public_jwk(RSA_KEY, "good"),
            public_jwk(RSA_KEY, "limited", alg="RS384"),
            public_jwk(RSA_KEY, "for-encryption", use="enc"),
            public_jwk(small, "small"),
            {**private, "kid": "private"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
            {"kty": "EC", "crv": "P-999", "kid": "curve"},
            "text",
        ]
    }
    found = parse_key_set(document)
    assert sorted(found) == ["good", "limited"]
    assert found["limited"].algorithms == {"RS384"}
    useless: tuple[Any, ...] = (None, [], {}, {"keys": {}}, {"keys": [None]})
    for one in useless:
        assert parse_key_set(one) == {}


async def test_over_http_a_token_makes_a_user_of_its_own(identity: Provider, postgres_url: str) -> None:
    spec = {"jwt": [access(identity.url).model_dump(by_alias=True)]}
    async with serving(postgres_url, manifest("a", access=spec), auth=AuthMode.KEY) as served:
        url = f"{served.base}/v1/agents/tests/a/sessions/s/messages"

        async def say(token: str, **headers: str) -> Any:
            named = {"Authorization": f"Bearer {token}", **headers}
            return await served.http.post(url, json={"content": "hi"}, headers=named)

        assert (await say(sign())).json()["reply"]["content"] == "hi [1]"
        assert (await say(sign())).json()["reply"]["content"] == "hi [2]"
        assert (await say(sign(sub="bob"))).json()["reply"]["content"] == "hi [1]"
        assert (await say(sign(), **{"Abide-User": "bob"})).status_code == 403
        expired = await say(sign(exp=int(time.time()) - 60))
        assert (expired.status_code, expired.json()["detail"]) == (401, "The token has expired.")
        identity.status = 500
        assert (await say(sign())).status_code == 200
    identity.status = 500
    async with serving(postgres_url, manifest("a", access=spec), auth=AuthMode.KEY) as served:
        url = f"{served.base}/v1/agents/tests/a/sessions/s/messages"
        unknown = await served.http.post(url, json={"content": "hi"}, headers={"Authorization": f"Bearer {sign()}"})
        assert unknown.status_code == 503
        assert unknown.json()["type"].endswith("/access-unavailable")
        assert int(unknown.headers["Retry-After"]) >= 1
