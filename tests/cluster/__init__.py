"""The cluster tool: brings up a real Kubernetes cluster for tests and for `make up`.

Run `python3 -m tests.cluster --help`; it needs nothing but the standard library, so it works before any virtual
environment exists. Tests that need only an API server use `tests.cluster.controlplane.ControlPlane`.
"""
