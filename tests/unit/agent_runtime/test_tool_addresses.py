"""Which addresses tools may connect to: nothing that a public name could be pointed at by somebody else."""

import pytest

from agent_runtime.tools.addresses import is_private_name, refuse

PUBLIC = "api.example.com"


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_public_addresses_are_for_everybody(address: str) -> None:
    assert refuse(PUBLIC, address, allow_private=False) == ""
    assert refuse("orders.shop.svc", address, allow_private=False) == ""


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5", "172.16.3.4", "192.168.1.1", "100.64.0.9", "fd12::1", "::ffff:10.0.0.5", "64:ff9b::10.0.0.5",
     "2002:0a00:0005::1"],
)  # fmt: skip
def test_private_addresses_are_for_private_names(address: str) -> None:
    assert "leads to a private address" in refuse(PUBLIC, address, allow_private=False)
    assert refuse(PUBLIC, address, allow_private=True) == ""
    for name in ("orders", "orders.shop.svc", "orders.shop.svc.cluster.local", "wiki.internal"):
        assert refuse(name, address, allow_private=False) == ""


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "0.0.0.0",
     "::", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "224.0.0.1", "ff02::1"],
)  # fmt: skip
def test_link_local_and_metadata_addresses_are_for_nobody(address: str) -> None:
    for name in (PUBLIC, "metadata", "metadata.internal", address):
        assert refuse(name, address, allow_private=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_for_localhost(address: str) -> None:
    assert refuse(PUBLIC, address, allow_private=True)
    assert refuse("orders.shop.svc", address, allow_private=True)
    assert refuse("localhost", address, allow_private=False) == ""
    assert refuse(address, address, allow_private=False) == ""


def test_names_that_are_private_by_themselves() -> None:
    assert is_private_name("orders")
    assert is_private_name("ORDERS.shop.SVC.")
    assert is_private_name("10.0.0.5")
    assert is_private_name("[fd12::1]")
    assert not is_private_name(PUBLIC)
    assert not is_private_name("svc.example.com")
