"""Why nobody could be found behind a request."""

from agent_runtime.errors import Waiting


class NotIdentifiedError(Exception):
    """The token says nothing this agent believes; the text tells the caller what is wrong with it, without secrets."""


class AccessUnavailable(Waiting):
    """Who could tell whether the token is valid does not answer now."""
