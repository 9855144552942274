"""Certificates and kubeconfigs of a control plane, made with the openssl command."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import run
from tests.cluster.errors import RequirementError

_DAYS = "3650"
# Clients on Python 3.13 and later check strictly (RFC 5280): the authority needs keyUsage and subjectKeyIdentifier,
# the others authorityKeyIdentifier.
_AUTHORITY = """\
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
_LEAF = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Identity:
    """Whom a certificate speaks for: a user (CN), its group (O) and the names and addresses it may serve."""

    user: str
    group: str = ""
    names: tuple[str, ...] = ()


class Authority:
    """A certificate authority in a directory; makes `NAME.crt` and `NAME.key` files beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self._key = directory / "ca.key"

    def create(self) -> None:
        """Make the directory (mode 0700), the authority and the key pair that signs service account tokens."""
        self.directory.mkdir(parents=True, mode=0o700)
        self._request("ca", "CN = abide-test-authority", _AUTHORITY)
        private, public = self.path("service-accounts.key"), self.path("service-accounts.pub")
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private)
        _openssl("pkey", "-in", private, "-pubout", "-out", public)

    def issue(self, name: str, identity: Identity) -> None:
        """Make `NAME.crt` and `NAME.key` for an identity."""
        subject = f"CN = {identity.user}" + (f"\nO = {identity.group}" if identity.group else "")
        extensions = _LEAF
        if identity.names:
            extensions += f"subjectAltName = {', '.join(map(_alternative_name, identity.names))}\n"
        self._request(name, subject, extensions, "-CA", self.certificate, "-CAkey", self._key)

    def path(self, name: str) -> Path:
        return self.directory / name

    def kubeconfig(self, name: str, url: str) -> str:
        """Return a kubeconfig (JSON, which is YAML too) that holds everything `NAME` needs, so it can be copied."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "abide",
                "contexts": [{"name": "abide", "context": {"cluster": "abide", "user": name}}],
                "clusters": [
                    {
                        "name": "abide",
                        "cluster": {"server": url, "certificate-authority-data": _encoded(self.certificate)},
                    }
                ],
                "users": [
                    {
                        "name": name,
                        "user": {
                            "client-certificate-data": _encoded(self.path(f"{name}.crt")),
                            "client-key-data": _encoded(self.path(f"{name}.key")),
                        },
                    }
                ],
            },
            indent=1,
        )

    def _request(self, name: str, subject: str, extensions: str, *signer: str | Path) -> None:
        # A configuration of its own: the machine's openssl.cnf would add extensions.
        config = self.path(f"{name}.cnf")
        config.write_text(
            "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n"
            f"[subject]\n{subject}\n[extensions]\n{extensions}"
        )
        _openssl(
            *("req", "-x509", "-config", config, "-days", _DAYS, "-nodes"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.crt")),
            *signer,
        )


def _openssl(*arguments: str | Path) -> None:
    run(["openssl", *arguments], timeout=30)


def require_openssl() -> None:
    """Raises: RequirementError when openssl is missing or older than 3, which cannot sign in one step."""
    try:
        version = run(["openssl", "version"], timeout=30)
    except Exception as error:
        raise RequirementError("openssl is missing: install the package openssl (3.0 or newer)") from error
    if int(version.split()[1].partition(".")[0]) < 3:
        raise RequirementError(f"{version.strip()} is too old: install openssl 3.0 or newer")


def _alternative_name(name: str) -> str:
    is_address = name.replace(".", "").isdigit()
    return f"{'IP' if is_address else 'DNS'}:{name}"


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
