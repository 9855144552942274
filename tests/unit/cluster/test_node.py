"""The node's configuration and the small parsers around it."""

import json
import socket
import tomllib
from pathlib import Path

from tests.cluster import node
from tests.cluster.controlplane import free_endpoints
from tests.cluster.current import user_kubeconfig
from tests.cluster.local import dns_has_answer, dns_query, parse_images

STATE = Path("/cache/abide/cluster/state")


def test_everything_containerd_writes_is_below_the_state_directory() -> None:
    config = tomllib.loads(node.containerd_config(STATE, "overlayfs"))
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    written = [
        config["root"],
        config["state"],
        config["grpc"]["address"],
        config["plugins"]["io.containerd.internal.v1.opt"]["path"],
        runtime["cni"]["conf_dir"],
        runtime["containerd"]["runtimes"]["runc"]["options"]["Root"],
    ]
    assert [path for path in written if not Path(path).is_relative_to(STATE)] == []
    assert runtime["netns_mounts_under_state_dir"] is True


def test_kubelet_keeps_to_its_directory_and_cgroup() -> None:
    config = json.loads(node.kubelet_config(STATE, Path("/etc/resolv.conf")))
    assert config["cgroupRoot"] == "/abide"
    assert config["podLogsDir"].startswith(f"{STATE}/")
    assert config["volumePluginDir"].startswith(f"{STATE}/")
    assert config["authentication"]["anonymous"] == {"enabled": False}


def test_default_storage_class_is_marked_as_such() -> None:
    (storage,) = [item for item in node.base_objects() if item["kind"] == "StorageClass"]
    assert storage["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}


def test_name_service_forwards_only_where_there_is_somewhere_to_forward_to() -> None:
    assert "forward . /etc/resolv.conf" in node.corefile(Path("/k"), Path("/etc/resolv.conf"))
    assert "forward" not in node.corefile(Path("/k"), None)


def test_pods_get_name_servers_they_can_reach() -> None:
    stub, real = (Path("/a"), "nameserver 127.0.0.53\n"), (Path("/b"), "# x\nsearch y\nnameserver 192.0.2.1\n")
    assert node.choose_resolv_conf([stub, real]) == Path("/b")
    assert node.choose_resolv_conf([real, stub]) == Path("/b")
    assert node.choose_resolv_conf([stub, (Path("/c"), "")]) is None


def test_dns_answer_must_fit_the_question_and_hold_a_record() -> None:
    query = dns_query("kubernetes.default.svc.cluster.local")
    assert b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00" in query
    answer = bytearray(query)
    answer[2:4], answer[6:8] = b"\x81\x80", b"\x00\x01"
    assert dns_has_answer(query, bytes(answer))
    refused = bytes(answer[:3]) + b"\x85" + bytes(answer[4:])
    assert not dns_has_answer(query, refused)
    assert not dns_has_answer(query, b"\x00\x00" + bytes(answer[2:]))
    assert not dns_has_answer(query, query)
    assert not dns_has_answer(query, b"")


def test_images_are_read_from_the_runtimes_table() -> None:
    listed = (
        "REF                      TYPE              DIGEST       SIZE    PLATFORMS   LABELS\n"
        "docker.io/abide/a:1      application/x     sha256:aa    1.0 MiB linux/amd64 -\n"
    )
    assert parse_images(listed) == {"docker.io/abide/a:1": "sha256:aa"}
    assert parse_images("") == {}


def test_free_ports_differ_and_can_be_bound() -> None:
    endpoints = free_endpoints()
    ports = {endpoints.api, endpoints.etcd, endpoints.peer}
    assert len(ports) == 3
    for port in ports:
        with socket.socket() as listener:
            listener.bind((endpoints.host, port))


def test_kubeconfig_of_the_user_is_what_kubectl_would_read() -> None:
    assert user_kubeconfig({"KUBECONFIG": "/a:/b"}, Path("/home/x")) == "/a:/b"
    assert user_kubeconfig({}, Path("/home/x")) == "/home/x/.kube/config"
