"""Saves one socket's session soon after it changes. Runs beside the conversation, which never waits for a store.

    keeper = Keeper(sessions, session, taken=hang_up)
    keeper.changed()             # at once; several changes in a row are one save
    await keeper.close()         # what is new is kept now

Finds out that another socket has resumed the session: then `taken` is called, once, and nothing more is saved.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from omni.serve.errors import OmniError
from omni.serve.sessions import Session, Sessions

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0  # for the last save


class Keeper:
    def __init__(self, sessions: Sessions, session: Session, taken: Callable[[], None]) -> None:
        self.session = session
        self.is_taken = False
        self._sessions, self._taken = sessions, taken
        self._dirty = False
        self._saving: asyncio.Task[None] | None = None
        self._alarm = self._set_alarm()

    def changed(self) -> None:
        self._dirty = True
        if self._saving is None and not self.is_taken:
            self._saving = asyncio.create_task(self._save())

    async def close(self) -> None:
        """Does not wait for ever for a store that does not answer."""
        self._alarm.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._saving is not None:
                    await asyncio.shield(self._saving)

    async def discard(self) -> None:
        """It was never used: forget it."""
        await self.close()
        with suppress(OmniError):
            await self._sessions.forget(self.session)

    async def _save(self) -> None:
        try:
            while self._dirty and not self.is_taken:
                self._dirty = False
                self.is_taken = not await self._sessions.save(self.session)
            if self.is_taken:
                self._taken()
        except OmniError as exc:  # the next change tries again
            logger.warning("session %s is not saved: %s", self.session.id, exc.message)
        except Exception:
            logger.exception("session %s is not saved", self.session.id)
        finally:
            self._saving = None

    def _set_alarm(self) -> asyncio.TimerHandle:
        """A session whose socket is open does not expire, though nothing changes."""
        return asyncio.get_running_loop().call_later(self._sessions.expiry / 2, self._touch)

    def _touch(self) -> None:
        self.changed()
        self._alarm = self._set_alarm()
