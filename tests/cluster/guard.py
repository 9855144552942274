"""Ends the daemons of a directory when whoever started them has died.

Run as `python3 -m tests.cluster.guard DIRECTORY` with a pipe as standard input that the starter holds open: the
kernel closes it when the starter ends in any way, kill -9 included. After an orderly stop nothing is left to end.
"""

import sys
from pathlib import Path

from tests.cluster.processes import Daemons


def main(directory: Path) -> None:
    """Wait for the end of standard input, then kill the daemons of the directory."""
    sys.stdin.buffer.read()
    Daemons(directory).kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
