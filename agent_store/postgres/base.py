"""What the parts of the Postgres store share."""

from agent_store.codec import PLAIN_CODECS, Codecs
from agent_store.postgres.executor import Executor


class Part:
    """A part of the store: statements through `_db`, content through `_codecs`."""

    def __init__(self, db: Executor, codecs: Codecs = PLAIN_CODECS) -> None:
        self._db = db
        self._codecs = codecs
