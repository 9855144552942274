"""The Kubernetes API: a port the core depends on, and the only adapter that imports a client library."""
