"""Which addresses a tool may connect to: a name that anybody may point anywhere must not lead into the cluster.

Private addresses are for hosts that are private by their name, or where the author said so. Link-local ones, and with
them the metadata services of clouds, are for nobody.
"""

import ipaddress
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PRIVATE_SUFFIXES: Final = (".svc", ".local", ".internal", ".localhost", ".home.arpa")
_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "169.254.0.0/16",
        "100.100.100.200/32",  # metadata of one cloud, in a range that others use as private
        "192.0.0.192/32",
        "fe80::/10",
        "fd00:ec2::/32",
        "::/128",
    )
)
_TRANSLATED: Final = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_SIX_TO_FOUR: Final = ipaddress.ip_network("2002::/16")


def is_private_name(host: str) -> bool:
    """Whether a host is private by its name: localhost, an in-cluster name, or an address."""
    name = host.rstrip(".").lower().strip("[]")
    if _parse(name) is not None:
        return True
    return "." not in name or name.endswith(PRIVATE_SUFFIXES)


def refuse(host: str, address: str, *, allow_private: bool) -> str:
    """Return why a tool on `host` may not connect to `address`, as what follows its name; empty if it may."""
    found = _parse(address)
    if found is None:
        return "has a host name that leads to no address"
    inner = _embedded(found)
    for one in (found, *inner):
        if one.is_multicast or any(one.version == net.version and one in net for net in _NEVER):
            return "has a host name that leads to a link-local or metadata address, which no tool may connect to"
    if all(one.is_global for one in (inner or [found])):
        return ""
    if any(one.is_loopback for one in (found, *inner)):
        name = host.rstrip(".").lower().strip("[]")
        if name == "localhost" or name.endswith(".localhost") or _parse(name) == found:
            return ""
        return "has a host name that leads to this pod itself, which no tool may connect to"
    if allow_private or is_private_name(host):
        return ""
    return "has a public host name that leads to a private address; set allowPrivateAddresses if that is meant"


def _parse(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0].strip("[]"))
    except ValueError:
        return None


def _embedded(address: Address) -> list[Address]:
    """Return the IPv4 address that an IPv6 one stands for, if it does (RFC 4291, 6052, 3056)."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if any(address in net for net in _TRANSLATED):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address in _SIX_TO_FOUR and address.sixtofour is not None:
        return [address.sixtofour]
    return []
