"""Errors of the cluster tool. Each message is one sentence for the person at the terminal and says what to do."""


class ClusterError(Exception):
    """Something failed while it ran; the message says what and where to look."""

    exit_code = 1


class RequirementError(ClusterError):
    """The machine, or the person asked, does not allow what was wanted; nothing was changed."""

    exit_code = 2
