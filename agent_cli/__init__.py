"""The `abide` command: chat, dev mode and status in a terminal.

An edge: it turns arguments into calls of agent_api, agent_store and agent_runtime and speaks HTTP and kubectl. Nothing
imports it.
"""
