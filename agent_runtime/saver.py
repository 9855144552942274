"""Snapshots of sessions: saved every few messages, on eviction and at shutdown; read and written by users."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

from agent_runtime import state
from agent_runtime.clock import Clock
from agent_runtime.errors import InvalidState
from agent_runtime.sessions import CachedSession, SessionCache
from agent_runtime.telemetry.agent import AgentTelemetry
from agent_runtime.telemetry.logs import get_logger
from agent_store.errors import SessionGone, StateChanged, StoreError
from agent_store.ports import SessionStore

_LOG = get_logger("saver")
SUMMARY_RACES: Final = 5
"""How often a summary is written again that met another save of the session."""
SAVES_AT_ONCE: Final = 4
"""The pool has few connections and turns need them too."""


class StateSaver:
    """Saves the sessions of one agent. A save that fails is owed and tried again."""

    def __init__(
        self, agent_id: UUID, store: SessionStore, clock: Clock, cache: SessionCache, telemetry: AgentTelemetry
    ) -> None:
        self._agent_id = agent_id
        self._store = store
        self._clock = clock
        self._cache = cache
        self._telemetry = telemetry
        self._saving: dict[UUID, asyncio.Event] = {}

    async def save_due(self, session_id: UUID) -> None:
        """Save the session if its automatic save is due."""
        session = self._cache.find(session_id)
        if session is not None and session.save_due:
            await self._save(session, "messages")

    async def save_owed(self) -> None:
        """Try again what could not be saved when it was due; stops at the first failure."""
        for session in self._cache.due():
            if not await self._save(session, "messages"):
                return

    async def evict_surplus(self) -> None:
        """Let idle and surplus sessions leave memory, saved first; nothing is lost if that fails."""
        for session in self._cache.surplus(self._clock.monotonic()):
            if session.unsaved_turns and not await self._save(session, "eviction"):
                return
            if not session.unsaved_turns:
                self._cache.forget(session.session_id)

    async def save_all(self, *, timeout: float) -> None:
        """Save every session with unsaved turns, for at most `timeout` seconds."""
        gate = asyncio.Semaphore(SAVES_AT_ONCE)
        unsaved: list[CachedSession] = []

        async def save(session: CachedSession) -> bool:
            async with gate:
                return await self._save(session, "shutdown")

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for begun in list(self._saving.values()):  # what they save need not be saved again
                    await begun.wait()
                unsaved += self._cache.unsaved()
                await asyncio.gather(*map(save, unsaved))
        left = sum(1 for _ in self._cache.unsaved())
        _LOG.info("states_saved", saved=len(unsaved) - left, left=left)

    async def _save(self, session: CachedSession, trigger: str) -> bool:
        """Save one session; False if it could not be."""
        if session.session_id in self._saving:
            return True
        done = self._saving[session.session_id] = asyncio.Event()
        started = self._clock.monotonic()
        turns, owed = session.unsaved_turns, session.save_due
        session.save_due = False  # a turn that ends meanwhile may set it again
        try:
            await self._write(session)
        except InvalidState as error:
            # Written by a newer version: theirs to keep.
            self._telemetry.error("InvalidState", str(error), session=session.session_id)
        except SessionGone:
            self._cache.forget(session.session_id)  # deleted meanwhile, maybe through another process
        except StoreError as error:
            session.save_due = session.save_due or owed
            _LOG.warning("state_not_saved", session=str(session.session_id), error=type(error).__name__)
            return False
        else:
            self._telemetry.state_saved(self._clock.monotonic() - started, trigger=trigger)
        finally:
            del self._saving[session.session_id]
            done.set()
        session.unsaved_turns -= turns
        return True

    async def _write(self, session: CachedSession) -> None:
        """Write the snapshot. Its variables and summary are others' and stay as they are in the store.

        One statement where this process wrote the newest snapshot and there were none; else they are read first, which
        is also how a session begins that was saved before it came into this process's memory.
        """
        cursor = state.SessionDocument(turn_seq=session.turn_seq, accepted_messages=session.accepted_messages)
        if session.plain_version is not None:
            try:
                saved = await self._store.save_state(
                    self._agent_id, session.session_id, state.encode(cursor), expected=session.plain_version
                )
                session.plain_version = saved.version
                return
            except StateChanged:
                session.plain_version = None
        stored = await self._store.load_state(self._agent_id, session.session_id)
        before = state.decode(stored.document) if stored is not None else state.SessionDocument()
        document = replace(cursor, variables=before.variables, summary=before.summary, summary_seq=before.summary_seq)
        # Somebody who writes in between keeps what they wrote: the save is owed then.
        version = stored.version if stored is not None else 0
        saved = await self._store.save_state(
            self._agent_id, session.session_id, state.encode(document), expected=version
        )
        session.plain_version = None if document.variables or document.summary is not None else saved.version

    async def save_summary(self, session_id: UUID, summary: str, summary_seq: int) -> bool:
        """Write a summary into the session's state, which keeps the rest; False if a later one is there already.

        The session is read from the store before its next turn. Raises StoreError, SessionGone, InvalidState.
        """
        for _ in range(SUMMARY_RACES):
            stored = await self._store.load_state(self._agent_id, session_id)
            before = state.decode(stored.document) if stored is not None else state.SessionDocument()
            if before.summary is not None and before.summary_seq >= summary_seq:
                return False
            document = state.encode(replace(before, summary=summary, summary_seq=summary_seq))
            try:
                await self._store.save_state(
                    self._agent_id, session_id, document, expected=stored.version if stored is not None else 0
                )
            except StateChanged:
                continue
            self._cache.reload(session_id)
            return True
        return False
