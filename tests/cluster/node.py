"""The configuration of the local cluster's node: containerd, kubelet, kube-proxy, CoreDNS and the volume provisioner.

All functions are pure: they return file contents and objects for paths they are given.
"""

import json
from pathlib import Path
from typing import Any

from tests.cluster.settings import (
    BRIDGE,
    CGROUP,
    CNI_NETWORK,
    DNS_PORT,
    DNS_SERVICE_IP,
    NODE_IP,
    NODE_POD_CIDR,
    POD_CIDR,
    STORAGE_PROVISIONER,
)

PAUSE_IMAGE = "docker.io/abide/pause:local"


def containerd_config(state: Path, snapshotter: str) -> str:
    """Return containerd's configuration (version 3). Everything it writes, it writes below `state`."""
    return f"""\
version = 3
root = "{state}/containerd"
state = "{state}/containerd-state"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "{state}/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
  path = "{state}/containerd-opt"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "{snapshotter}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  # A process without CAP_SYS_RESOURCE, as in many virtual machines, may not lower these scores.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
  conf_dir = "{state}/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  Root = "{state}/runc"
  SystemdCgroup = false
"""


def cni_config(state: Path) -> str:
    """Return the pod network: one bridge, addresses kept in files, masquerading to the outside."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,  # a pod reaches itself through its Service
        "ipam": {
            "type": "host-local",
            "dataDir": f"{state}/cni-addresses",
            "ranges": [[{"subnet": NODE_POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return json.dumps({"cniVersion": "1.0.0", "name": CNI_NETWORK, "plugins": [bridge]}, indent=1)


def kubelet_config(state: Path, resolv_conf: Path) -> str:
    """Return a KubeletConfiguration (JSON is accepted as such)."""
    pki = state / "pki"
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_IP,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": f"{pki}/ca.crt"},
                "webhook": {"enabled": True},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/kubelet.crt",
            "tlsPrivateKeyFile": f"{pki}/kubelet.key",
            "clusterDNS": [DNS_SERVICE_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": str(resolv_conf),
            "containerRuntimeEndpoint": f"unix://{state}/containerd.sock",
            "podLogsDir": f"{state}/pod-logs",
            "volumePluginDir": f"{state}/flexvolume",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}",
            "oomScoreAdj": 0,
            "failSwapOn": False,
            "maxPods": 250,
            # The disk is shared with everything else on the machine, so its fill says little about this cluster.
            "imageGCHighThresholdPercent": 99,
            "imageGCLowThresholdPercent": 98,
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        },
        indent=1,
    )


def proxy_config(kubeconfig: Path) -> str:
    """Return a KubeProxyConfiguration that leaves the machine's connection tracking settings alone."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_CIDR,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "healthzBindAddress": f"{NODE_IP}:10256",
            "metricsBindAddress": f"{NODE_IP}:10249",
            "nodePortAddresses": [f"{NODE_IP}/32"],
            "oomScoreAdj": 0,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        },
        indent=1,
    )


def corefile(kubeconfig: Path, upstream: Path | None) -> str:
    """Return CoreDNS's configuration; other names go to the name servers of `upstream`, a resolv.conf, if any."""
    forward = f"  forward . {upstream}\n" if upstream else ""
    return f"""\
.:{DNS_PORT} {{
  bind {NODE_IP}
  errors
  cache 5
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig}
  }}
{forward}}}
"""


def choose_resolv_conf(candidates: list[tuple[Path, str]]) -> Path | None:
    """Return the first file whose name servers a pod could reach as well: none of them a loopback address.

    `candidates` are (path, content) pairs.
    """
    for path, content in candidates:
        words = [line.split() for line in content.splitlines()]
        servers = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
        if servers and not any(server.startswith("127.") or server == "::1" for server in servers):
            return path
    return None


def base_objects() -> list[dict[str, Any]]:
    """Return what every cluster has: the name service with its fixed address and a default StorageClass."""
    ports = [{"name": name, "protocol": protocol} for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))]
    name_service = {"name": "kube-dns", "namespace": "kube-system"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**name_service, "labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "clusterIP": DNS_SERVICE_IP,
                "ports": [{**port, "port": 53, "targetPort": DNS_PORT} for port in ports],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**name_service, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": True}}],
            "ports": [{**port, "port": DNS_PORT} for port in ports],
        },
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": STORAGE_PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
    ]
