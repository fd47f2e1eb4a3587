"""Sessions in Redis, shared by several controllers: `omni up --store redis://HOST:PORT/N`. Needs the extra `redis`.

One hash a session: its owner and the one before, its head, its parts. Redis itself forgets a session when its time is
over, and runs each of the scripts below in one step. How much it may hold is Redis' own setting (maxmemory).
"""

from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, RedisError, TimeoutError

from omni.serve.errors import StoreLost
from omni.serve.stores import SPENT_SECONDS, Change, Record

SECONDS = 5.0  # to connect, and for one answer
RETRIES = 3
RETRY_AFTER = 1.0
PART = "part:"

CREATE = """
if redis.call('HSETNX', KEYS[1], 'owner', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'head', '')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
WRITE = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'head', ARGV[3])
local parts = 2 * tonumber(ARGV[4])
for i = 1, parts, 2 do redis.call('HSET', KEYS[1], ARGV[4 + i], ARGV[5 + i]) end
for i = 5 + parts, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
TAKE = """
local time = redis.call('TIME')
local now = 1000 * time[1] + math.floor(time[2] / 1000)
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'spent', ARGV[1], 'spent_until', now + ARGV[4])
elseif redis.call('HGET', KEYS[1], 'spent') ~= ARGV[1]
    or now >= tonumber(redis.call('HGET', KEYS[1], 'spent_until') or 0) then
  return false
end
redis.call('HSET', KEYS[1], 'owner', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('HGETALL', KEYS[1])
"""
SETTLE = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('HDEL', KEYS[1], 'spent') end"
DELETE = "if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisStore:
    def __init__(self, url: str, password: str | None = None) -> None:
        self._redis = redis.Redis.from_url(
            url,
            password=password,
            socket_timeout=SECONDS,
            socket_connect_timeout=SECONDS,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
            retry_on_error=[ConnectionError, TimeoutError],
        )
        scripts = map(self._redis.register_script, (CREATE, WRITE, TAKE, SETTLE, DELETE))
        self._create, self._write, self._take, self._settle, self._delete = scripts

    async def create(self, session_id: str, owner: str, lifetime: float) -> bool:
        words: list[str | bytes | int] = [owner, _milliseconds(lifetime)]
        return bool(await _translated(self._create(keys=[_key(session_id)], args=words)))

    async def write(self, session_id: str, owner: str, change: Change, lifetime: float) -> bool:
        words: list[str | bytes | int] = [owner, _milliseconds(lifetime), change.head, len(change.parts)]
        for name, content in change.parts.items():
            words += [PART + name, content]
        words += [PART + name for name in change.gone]
        return bool(await _translated(self._write(keys=[_key(session_id)], args=words)))

    async def take(self, session_id: str, owner: str, new_owner: str, lifetime: float) -> Record | None:
        words: list[str | bytes | int] = [owner, _milliseconds(lifetime), new_owner, _milliseconds(SPENT_SECONDS)]
        found = await _translated(self._take(keys=[_key(session_id)], args=words))
        if not found:
            return None
        fields = dict(zip(found[::2], found[1::2], strict=True))
        parts = {name.decode()[len(PART) :]: content for name, content in fields.items() if name.startswith(b"part:")}
        return Record(fields[b"head"], parts)

    async def settle(self, session_id: str, owner: str) -> None:
        await _translated(self._settle(keys=[_key(session_id)], args=[owner]))

    async def delete(self, session_id: str, owner: str) -> None:
        await _translated(self._delete(keys=[_key(session_id)], args=[owner]))

    async def close(self) -> None:
        await self._redis.aclose()


def _key(session_id: str) -> str:
    return f"omni:session:{session_id}"


def _milliseconds(lifetime: float) -> int:
    return max(1, int(1000 * lifetime))


async def _translated(work: Any) -> Any:
    try:
        return await work
    except RedisError as exc:
        raise StoreLost(f"The session store does not answer ({type(exc).__name__}).", retry_after=RETRY_AFTER) from exc
