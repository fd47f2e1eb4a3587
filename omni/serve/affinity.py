"""Which model worker answered a conversation last, for clients that name their conversations. Decides only.

prefer = affinity.find(key)        # "" where nothing is known: any worker will do
affinity.note(key, worker)

A key is any word of the client's. It is a hint, kept for the conversations that were used last, and no secret.
"""

from collections import OrderedDict

MAX_KEY = 200  # characters
MAX_CONVERSATIONS = 10_000


class Affinity:
    def __init__(self, max_conversations: int = MAX_CONVERSATIONS) -> None:
        self._max = max_conversations
        self._workers: OrderedDict[str, str] = OrderedDict()  # the one used longest ago first

    def find(self, key: str) -> str:
        return self._workers.get(key, "")

    def note(self, key: str, worker: str) -> None:
        if not key or not worker:
            return
        self._workers[key] = worker
        self._workers.move_to_end(key)
        if len(self._workers) > self._max:
            self._workers.popitem(last=False)
