"""The sessions of one controller: opened, saved, and resumed by whoever holds the token. docs/protocol.md tells how.

    session, token = await sessions.open(settings)
    ...                                                    # session.conversation changes
    kept = await sessions.save(session)                    # False: it was resumed elsewhere
    session, token = await sessions.resume(session_id, token)      # raises NotResumable
    await sessions.acknowledge(session)                            # the client has that token

A token is random, bound to its session, and kept here only as a digest. It is spent by a resumption; but the answer to
that, with the next token, may be lost on its way. So a spent token resumes its session again, and no other, until the
next one was used or acknowledged, and for a minute at most (stores.SPENT_SECONDS).
"""

import asyncio
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omni.serve.alignment import Alignment
from omni.serve.config import ServeConfig
from omni.serve.conversation import Conversation, Item
from omni.serve.errors import NotResumable
from omni.serve.stores import Change, Record, Store
from omni.serve.window import Window

TOKEN_BYTES = 32
MAX_WORD = 200  # characters of an id or token that a client may show
FORMAT = 1  # of what is kept; another one's sessions are not resumed


@dataclass
class Session:
    id: str
    conversation: Conversation
    settings: dict[str, Any] = field(default_factory=dict)  # JSON; the realtime session's, as the client set it
    worker: str = ""  # the model worker that has its keys and values
    owner: str = field(default="", repr=False)  # digest of the token; proves to the store that it is still ours
    saved: dict[str, bytes] = field(default_factory=dict, repr=False)  # item → its head, as the store has it
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


class Sessions:
    def __init__(self, config: ServeConfig, store: Store) -> None:
        self.expiry = config.session_expiry  # seconds
        self._config, self._store = config, store

    async def open(self, settings: Mapping[str, Any] | None = None) -> tuple[Session, str]:
        """A new session, and the token that resumes it."""
        session = Session(f"sess_{secrets.token_hex(12)}", self._conversation(()), dict(settings or {}))
        token = self._new_token(session)
        await self._store.create(session.id, session.owner, self.expiry)
        return session, token

    async def save(self, session: Session) -> bool:
        """Keep what is new. False: the session is no longer ours; somebody resumed it."""
        async with session.lock:
            if await self._write(session):
                return True
            if not await self._store.create(session.id, session.owner, self.expiry):
                return False
            session.saved = {}  # it had expired, or had to go for others: all of it, again
            return await self._write(session)

    async def _write(self, session: Session) -> bool:
        heads = {item.id: _item_head(item) for item in session.conversation}
        changed = [item for item in session.conversation if session.saved.get(item.id) != heads[item.id]]
        change = Change(
            self._head(session),
            {item.id: _pack(heads[item.id], item.pcm16 or b"") for item in changed},
            [item_id for item_id in session.saved if item_id not in heads],
        )
        kept = await self._store.write(session.id, session.owner, change, self.expiry)
        if kept:
            session.saved = heads
        return kept

    async def resume(self, session_id: str, token: str) -> tuple[Session, str]:
        """The session as it was saved last, and the token that resumes it next time; this one is spent, once the
        client has that."""
        if len(session_id) > MAX_WORD or len(token) > MAX_WORD:
            raise _not_resumable()
        session = Session(session_id, self._conversation(()))
        new_token = self._new_token(session)
        record = await self._store.take(session_id, _digest(session_id, token), session.owner, self.expiry)
        if record is None:
            raise _not_resumable()
        self._restore(session, record)
        return session, new_token

    async def acknowledge(self, session: Session) -> None:
        """The client has the token of its resumption: the one it resumed with is good for nothing from now on."""
        await self._store.settle(session.id, session.owner)

    async def forget(self, session: Session) -> None:
        await self._store.delete(session.id, session.owner)

    async def close(self) -> None:
        await self._store.close()

    def _conversation(self, items: tuple[Item, ...]) -> Conversation:
        return Conversation(Window.of(self._config), items, self._config.max_messages, self._config.max_text_chars)

    def _new_token(self, session: Session) -> str:
        token = secrets.token_urlsafe(TOKEN_BYTES)
        session.owner = _digest(session.id, token)
        return token

    def _head(self, session: Session) -> bytes:
        return _json(
            {
                "format": FORMAT,
                "model": self._config.model_name,
                "worker": session.worker,
                "settings": session.settings,
                "order": [item.id for item in session.conversation],
            }
        )

    def _restore(self, session: Session, record: Record) -> None:
        if not record.head:
            return  # nothing was said yet
        head = json.loads(record.head)
        if head["format"] != FORMAT:
            raise _not_resumable()
        items = {name: _unpack(content) for name, content in record.parts.items()}
        ordered = [items[item_id] for item_id in head["order"] if item_id in items]
        if head["model"] != self._config.model_name:
            ordered = [_without_tokens(item) for item in ordered]  # another model's tokens are other words
        session.settings, session.worker = head["settings"], head["worker"]
        session.conversation.items = ordered
        session.saved = {item.id: _item_head(item) for item in ordered}


def _not_resumable() -> NotResumable:
    return NotResumable(
        "There is no such session, its time is over, or this token was used already. Begin a new session."
    )


def _digest(session_id: str, token: str) -> str:
    """One session's token is nothing to another one. It is random and long: no salt, no slow hash."""
    return hashlib.sha256(f"{session_id}\0{token}".encode("utf-8", "surrogatepass")).hexdigest()


def _item_head(item: Item) -> bytes:
    fields = {name: value for name, value in vars(item).items() if name not in ("pcm16", "alignment")}
    spoken = None if item.alignment is None else asdict(item.alignment)
    return _json(fields | {"spoken": item.pcm16 is not None, "alignment": spoken})


def _pack(head: bytes, pcm16: bytes) -> bytes:
    return struct.pack(">I", len(head)) + head + pcm16


def _unpack(content: bytes) -> Item:
    (size,) = struct.unpack_from(">I", content)
    fields = json.loads(content[4 : 4 + size])
    pcm16 = content[4 + size :] if fields.pop("spoken") else None
    alignment = fields.pop("alignment")
    if alignment is not None:
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in alignment.items()}
        alignment = Alignment(**given)
    item = Item(**fields, pcm16=pcm16, alignment=alignment)
    if item.status == "in_progress":  # the controller that made it is gone
        item.status = "incomplete"
    return item


def _without_tokens(item: Item) -> Item:
    heard = item.heard
    if heard is None:
        return item
    return Item(item.id, item.role, text=heard.text, status=item.status)


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
