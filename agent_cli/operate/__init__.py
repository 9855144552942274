"""Looking after agents in a cluster: one module per command, pure rendering beside the calls."""
