"""POST /v1/turns: audio bytes in, typed events out. docs/protocol.md describes it; events.py frames it.

curl --data-binary @question.wav -H 'accept: application/x-ndjson' 'http://127.0.0.1:8000/v1/turns?seed=1'
"""

import secrets
from collections.abc import Callable
from contextlib import aclosing

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omni.audio.wav import SAMPLE_RATE
from omni.serve import events
from omni.serve.errors import BadRequest
from omni.serve.events import FRAMES, JSON_LINES, Started
from omni.serve.exchange import Exchange
from omni.serve.protocol import AudioDelta, Done, Event, Failed, Message, Sampling, TextDelta
from omni.serve.registry import LiveTurn
from omni.serve.surface import NO_STORE, Surface, invalid

SEED_LIMIT = 2**63


class TurnOptions(BaseModel):
    """The query string of /v1/turns."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    system: str | None = Field(None, description="Written instructions before the question.")
    adaptor: str | None = Field(None, description="Who hears the question: see /v1/models.")
    temperature: float = Field(Sampling.temperature, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(Sampling.top_p, gt=0, le=1)
    top_k: int = Field(Sampling.top_k, ge=0, le=1000, description="0 switches it off.")
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, gt=-SEED_LIMIT, lt=SEED_LIMIT)

    def sampling(self, limit: int) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=within(self.max_new_tokens, limit, "max_new_tokens"),
            seed=self.seed if self.seed is not None else new_seed(),
        )


class TurnsApi(Surface):
    name = "turns"

    async def answer(self, exchange: Exchange, live: LiveTurn) -> None:
        encode, media_type = _encoding(exchange)
        options = self._options(exchange)
        self.check_model(options.model)
        adaptor, sampling = self.adaptor(options.adaptor), options.sampling(self.config.max_new_tokens)
        body = await self.read(exchange, live, self.config.max_upload_bytes)
        pcm16 = await self.uploads.decode(body, exchange.headers.get("content-type", ""))
        messages = [Message("system", text=options.system)] if options.system else []
        messages.append(Message("user", pcm16=pcm16))
        asked = live.answer(messages, sampling, session=self.session_of(exchange), adaptor=adaptor)
        async with aclosing(asked) as answer:
            event: TextDelta | AudioDelta | Done = await anext(answer)  # until here an error has an HTTP status
            headers = {"content-type": media_type, "x-request-id": live.turn_id, **NO_STORE}
            await exchange.start(200, headers)
            await exchange.send(encode(Started(live.turn_id, self.config.model_name, SAMPLE_RATE, sampling.seed)))
            await exchange.send(encode(event))
            async for event in answer:
                await exchange.send(encode(event))
            await exchange.finish()

    def last_words(self, exchange: Exchange, failed: Failed) -> bytes:
        encode, _ = _encoding(exchange)
        return encode(failed)

    def _options(self, exchange: Exchange) -> TurnOptions:
        pairs = exchange.query.multi_items()
        if len(pairs) != len(exchange.query):
            raise BadRequest("The query string gives an option twice.", code="invalid_value")
        try:
            options = TurnOptions.model_validate(dict(pairs))
        except ValidationError as exc:
            raise invalid(exc, TurnOptions) from exc
        if options.system and len(options.system) > self.config.max_text_chars:
            raise BadRequest(f"system has more than {self.config.max_text_chars} characters.", param="system")
        return options


def within(wanted: int | None, limit: int, param: str) -> int:
    """How many tokens an answer may have: as wanted, or the limit. More than the limit is not cut silently."""
    if wanted is not None and wanted > limit:
        raise BadRequest(f"{param} is {wanted}; this server allows at most {limit}.", code="invalid_value", param=param)
    return wanted or limit


def new_seed() -> int:
    return secrets.randbits(31)


def _encoding(exchange: Exchange) -> tuple[Callable[[Started | Event], bytes], str]:
    """Frames, unless JSON lines are asked for."""
    if JSON_LINES in exchange.headers.get("accept", ""):
        return events.to_json_line, JSON_LINES
    return events.to_frame, FRAMES
