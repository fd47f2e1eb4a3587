"""A session store that does not answer for a while."""

from omni.serve.errors import StoreLost
from omni.serve.stores import MemoryStore, Record


class StoreAway(MemoryStore):
    """Away for the next so many resumptions."""

    away = 0

    async def take(self, session_id: str, owner: str, new_owner: str, lifetime: float) -> Record | None:
        if self.away:
            self.away -= 1
            raise StoreLost("The session store does not answer.", retry_after=1.0)
        return await super().take(session_id, owner, new_owner, lifetime)
