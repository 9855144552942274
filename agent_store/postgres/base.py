"""What the parts of the Postgres store share."""

from agent_store.codec import PLAIN, Codec
from agent_store.postgres.executor import Executor


class Part:
    """A part of the store: statements through `_db`, content through `_codec`."""

    def __init__(self, db: Executor, codec: Codec = PLAIN) -> None:
        self._db = db
        self._codec = codec
