"""Saves one socket's session soon after it changes. Runs beside the conversation, which never waits for a store.

    keeper = Keeper(sessions, session, taken=hang_up)
    keeper.changed()             # at once; several changes in a row are one save
    keeper.acknowledged()        # the client has its token: told to the store in order with the saves
    await keeper.close()         # what is new is kept now

What fails is tried again with the next change. Finds out that another socket has resumed the session: then `taken` is
called, once, and nothing more is saved.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from omni.serve.errors import OmniError
from omni.serve.sessions import Session, Sessions

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0  # for the last writes


class Keeper:
    def __init__(self, sessions: Sessions, session: Session, taken: Callable[[], None]) -> None:
        self.session = session
        self.is_taken = False
        self._sessions, self._taken = sessions, taken
        self._due: dict[Callable[[], Awaitable[None]], None] = {}  # writes in their order, each at most once
        self._writing: asyncio.Task[None] | None = None
        self._alarm = self._set_alarm()

    def changed(self) -> None:
        self._want(self._save)

    def acknowledged(self) -> None:
        self._want(self._acknowledge)

    async def close(self) -> None:
        """Does not wait for ever for a store that does not answer."""
        self._alarm.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._writing is not None:
                    await asyncio.shield(self._writing)

    async def discard(self) -> None:
        """It was never used: forget it."""
        await self.close()
        with suppress(OmniError):
            await self._sessions.forget(self.session)

    def _want(self, write: Callable[[], Awaitable[None]]) -> None:
        self._due.setdefault(write)
        if self._writing is None and not self.is_taken:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        failed: dict[Callable[[], Awaitable[None]], None] = {}
        try:
            while self._due and not self.is_taken:
                write = next(iter(self._due))
                del self._due[write]  # it may be wanted again while it is under way
                if not await self._succeeds(write):
                    failed[write] = None
            if self.is_taken:
                self._taken()
        except Exception:
            logger.exception("session %s cannot be left", self.session.id)
        finally:
            self._due = failed | self._due  # the next change tries again
            self._writing = None

    async def _succeeds(self, write: Callable[[], Awaitable[None]]) -> bool:
        try:
            await write()
        except OmniError as exc:
            logger.warning("session %s is not saved: %s", self.session.id, exc.message)
            return False
        except Exception:
            logger.exception("session %s is not saved", self.session.id)
            return False
        return True

    async def _save(self) -> None:
        self.is_taken = not await self._sessions.save(self.session)

    async def _acknowledge(self) -> None:
        await self._sessions.acknowledge(self.session)

    def _set_alarm(self) -> asyncio.TimerHandle:
        """A session whose socket is open does not expire, though nothing changes."""
        return asyncio.get_running_loop().call_later(self._sessions.expiry / 2, self._touch)

    def _touch(self) -> None:
        self.changed()
        self._alarm = self._set_alarm()
