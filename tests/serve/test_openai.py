"""POST /v1/chat/completions, as OpenAI's own client speaks it."""

import asyncio
import base64
import io
import json

import openai
import pytest
import soundfile
from fake_cluster import (
    CACHED_TOKENS,
    PROMPT_TOKENS,
    WORDS,
    config,
    in_process,
    lost_worker,
    over_tcp,
    question,
    tone,
    until,
    whole_answer,
)

from omni.audio import wav
from omni.serve import errors
from omni.serve.controller import make_app
from omni.serve.openai_api import Answers
from omni.serve.protocol import Message

ROUTE = "/v1/chat/completions"
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
STREAMED = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}, "stream": True}


def spoken(data: bytes | None = None) -> dict:
    data = question() if data is None else data
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts or [spoken()])}


@pytest.fixture
async def client(app):
    async with over_tcp(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def ask(client, *messages, **options):
    return await client.chat.completions.create(model="fake", messages=list(messages) or [user()], **options)


# --- OpenAI's client, whole answers -----------------------------------------------------------------------------------


async def test_whole_answer(client):
    """message.audio holds the sound, its transcript, and how long it may be referred to."""
    reply = await ask(client, **SPOKEN)
    text, pcm = whole_answer()
    (choice,) = reply.choices
    assert choice.finish_reason == "stop" and choice.message.content is None
    assert choice.message.audio.transcript == text
    assert wav.to_pcm16(wav.decode(base64.b64decode(choice.message.audio.data))) == pcm
    assert choice.message.audio.expires_at > reply.created
    assert reply.model == "fake" and reply.object == "chat.completion"
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, len(WORDS))
    assert usage.total_tokens == PROMPT_TOKENS + len(WORDS)
    assert usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS


async def test_text_only(client, cluster):
    """Without the audio modality the answer is content, and no vocoder is asked."""
    reply = await ask(client)
    assert reply.choices[0].message.content == whole_answer()[0] and reply.choices[0].message.audio is None
    assert cluster.vocoded == 0


async def test_sync_client(app):
    """The blocking client works as the asynchronous one does."""

    def talk(url: str) -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
            whole = client.chat.completions.create(model="fake", messages=[user()], **SPOKEN)
            stream = client.chat.completions.create(model="fake", messages=[user()], **STREAMED)
            parts = [_audio(chunk).get("transcript") or "" for chunk in stream if chunk.choices]
            return whole.choices[0].message.audio.transcript, "".join(parts)

    async with over_tcp(app) as url:
        assert await asyncio.to_thread(talk, url) == (whole_answer()[0],) * 2


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus"])
async def test_formats_of_whole_answers(client, format):
    """Each is a file that a decoder reads, as long as the answer (MP3 and Opus pad a little)."""
    reply = await ask(client, modalities=["text", "audio"], audio={"voice": "alloy", "format": format})
    data = base64.b64decode(reply.choices[0].message.audio.data)
    samples, rate = soundfile.read(io.BytesIO(data))
    seconds = len(whole_answer()[1]) / 2 / 16_000
    assert abs(len(samples) / rate - seconds) < 0.1
    assert format != "wav" or len(samples) == seconds * 16_000


async def test_pcm16_rates(client):
    """pcm16 comes at 24 kHz as OpenAI's does, and at 16 kHz, untouched, when asked for."""
    theirs = await ask(client, modalities=["text", "audio"], audio={"voice": "alloy", "format": "pcm16"})
    ours = await ask(
        client, modalities=["text", "audio"], audio={"voice": "alloy", "format": "pcm16", "sample_rate": 16000}
    )
    pcm = whole_answer()[1]
    assert base64.b64decode(ours.choices[0].message.audio.data) == pcm
    assert abs(len(base64.b64decode(theirs.choices[0].message.audio.data)) - len(pcm) * 3 / 2) <= 4


# --- OpenAI's client, streams -----------------------------------------------------------------------------------------


def _audio(chunk) -> dict:
    audio = chunk.choices[0].delta.audio
    return audio.model_dump() if audio else {}


async def test_stream(client):
    """Deltas of transcript and sound, one audio id, the finish at the end, no usage unless asked for."""
    chunks = [chunk async for chunk in await ask(client, **STREAMED)]
    text, pcm = whole_answer()
    assert all(chunk.choices for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [_audio(chunk) for chunk in chunks]
    assert "".join(each.get("transcript") or "" for each in deltas) == text
    heard = b"".join(base64.b64decode(each.get("data") or "") for each in deltas)
    assert abs(len(heard) - len(pcm) * 3 / 2) <= 4
    assert len({each["id"] for each in deltas if each.get("id")}) == 1
    assert any(each.get("expires_at") for each in deltas)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_stream_at_our_own_rate_is_untouched(client):
    options = STREAMED | {"audio": {"voice": "alloy", "format": "pcm16", "sample_rate": 16000}}
    deltas = [_audio(chunk) async for chunk in await ask(client, **options)]
    assert b"".join(base64.b64decode(each.get("data") or "") for each in deltas) == whole_answer()[1]


async def test_streamed_usage(client):
    """stream_options.include_usage adds a last chunk without choices."""
    chunks = [chunk async for chunk in await ask(client, **STREAMED, stream_options={"include_usage": True})]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(WORDS)


async def test_streamed_text(client):
    chunks = [chunk async for chunk in await ask(client, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole_answer()[0]


async def test_stream_comes_as_it_is_made(client, cluster):
    """The first words are there while the model waits for its second token."""
    cluster.gate = asyncio.Event()
    words = []
    async for chunk in await ask(client, **STREAMED):
        words.append(_audio(chunk).get("transcript") or "")
        if words[-1] and not cluster.gate.is_set():
            assert cluster.tokens_sent == 1
            cluster.gate.set()
    assert "".join(words) == whole_answer()[0]


async def test_closing_the_stream_stops_the_turn(app, client, cluster):
    cluster.gate = asyncio.Event()
    stream = await ask(client, **STREAMED)
    await anext(aiter(stream))
    await stream.close()
    await until(lambda: not app.state.registry.live)
    assert cluster.closed and cluster.tokens_sent <= 1


# --- conversations ----------------------------------------------------------------------------------------------------


async def test_conversation(client, cluster):
    """System, spoken and written turns and answers reach the worker in order."""
    await ask(
        client,
        {"role": "system", "content": "Be kind."},
        user(),
        {"role": "assistant", "content": "Hello."},
        user({"type": "text", "text": "Listen:"}, spoken()),
    )
    messages = cluster.requests[0].messages
    assert [(each.role, each.text) for each in messages] == [
        ("system", "Be kind."), ("user", None), ("assistant", "Hello."), ("user", "Listen:"), ("user", None)
    ]  # fmt: skip
    assert messages[1].pcm16 == messages[4].pcm16 == wav.to_pcm16(tone())


async def test_an_answer_is_named_by_its_audio_id(client, cluster):
    """assistant.audio.id stands for what was said, as OpenAI has it; the whole message may be sent back too."""
    first = await ask(client, **SPOKEN)
    message = first.choices[0].message
    await ask(client, user(), {"role": "assistant", "audio": {"id": message.audio.id}}, user())
    await ask(client, user(), message.model_dump(exclude_none=True), user())
    for request in cluster.requests[1:]:
        assert request.messages[1].text == whole_answer()[0]


async def test_an_answer_that_is_named_goes_into_the_prompt_with_its_own_tokens(client, cluster):
    """So that the worker that gave it reads only what is new; but for the token that ended it."""
    first = await ask(client, **SPOKEN)
    await ask(client, user(), {"role": "assistant", "audio": {"id": first.choices[0].message.audio.id}}, user())
    assert cluster.requests[1].messages[1].token_ids == tuple(range(len(WORDS) - 1))


@pytest.mark.parametrize(
    "how", [{"prompt_cache_key": "talk 7"}, {"extra_headers": {"X-Session-Id": "talk 7"}}], ids=str
)
async def test_a_conversation_with_a_name_stays_with_its_worker(client, cluster, how):
    """The next turn asks for the worker that answered last; another conversation, or one without a name, does not."""
    await ask(client, **how)
    cluster.worker = "w2"
    await ask(client, **how)
    await ask(client, **how)
    await ask(client, prompt_cache_key="talk 8")
    await ask(client)
    assert [request.prefer for request in cluster.requests] == ["", "w1", "w2", "", ""]


async def test_a_conversations_name_is_short(client):
    with pytest.raises(openai.BadRequestError, match="201 characters"):
        await ask(client, prompt_cache_key="x" * 201)


async def test_unknown_audio_id(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(client, user(), {"role": "assistant", "audio": {"id": "audio_of_yesterday"}}, user())
    assert (caught.value.code, caught.value.param) == ("audio_not_found", "messages.1.audio.id")


def test_answers_are_forgotten():
    """Kept answers expire with time, and the oldest goes when there are too many."""
    now = 0.0
    answers = Answers(clock=lambda: now)
    said = Message("assistant", text="text")
    expires = answers.keep("a", said)
    assert answers.find("a") == said
    now = expires + 1.0
    assert answers.find("a") is None


# --- errors, as OpenAI's client raises them ---------------------------------------------------------------------------


BAD = openai.BadRequestError
AUDIO_DATA = "messages.0.content.0.input_audio.data"
WRONG = {  # name: (what the request changes, error, code, param)
    "unknown model": ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
    "no messages": ({"messages": []}, BAD, "invalid_value", "messages"),
    "no content": ({"messages": [{"role": "user"}]}, BAD, "missing_required_parameter", "messages.0.content"),
    "strange role": ({"messages": [{"role": "god", "content": "x"}]}, BAD, "invalid_value", "messages.0"),
    "a picture": (
        {"messages": [user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})]},
        BAD, "invalid_value", "messages.0.content.0",
    ),
    "no last question": (
        {"messages": [user(), {"role": "assistant", "content": "Hi."}]}, BAD, "invalid_value", "messages",
    ),
    "temperature": ({"temperature": 3}, BAD, "invalid_value", "temperature"),
    "top_p": ({"top_p": 0}, BAD, "invalid_value", "top_p"),
    "too many tokens": ({"max_tokens": 10**6}, BAD, "invalid_value", "max_tokens"),
    "no tokens": ({"max_completion_tokens": 0}, BAD, "invalid_value", "max_completion_tokens"),
    "two answers": ({"n": 2}, BAD, "invalid_value", "n"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, BAD, "unsupported_parameter", "tools"),
    "unknown field": ({"extra_body": {"colour": "red"}}, BAD, "unknown_parameter", "colour"),
    "streamed wav": (SPOKEN | {"stream": True}, BAD, "unsupported_value", "audio.format"),
    "format": ({"audio": {"voice": "x", "format": "aac"}}, BAD, "invalid_value", "audio.format"),
    "no base64": (
        {"messages": [user({"type": "input_audio", "input_audio": {"data": "a*b", "format": "wav"}})]},
        BAD, "invalid_base64", AUDIO_DATA,
    ),
    "no audio": ({"messages": [user(spoken(b"hello"))]}, BAD, "audio_not_decodable", AUDIO_DATA),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "code", "param"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_requests(app, client, cluster, change, kind, code, param):
    """Each is typed, names its field, reaches no worker and is counted as rejected."""
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(**{"model": "fake", "messages": [user()]} | change)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error" and caught.value.message
    assert not cluster.requests
    assert app.state.registry.metrics.ended.labels("rejected")._value.get() == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 5000, b'{"model": NaN}'])
async def test_bodies_that_are_no_request(app, body):
    async with in_process(app) as http:
        response = await http.post(ROUTE, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_value", "missing_required_parameter")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(app, number):
    """Python's JSON takes NaN; we do not."""
    body = json.dumps({"model": "fake", "messages": [user()], "temperature": "?"}).replace('"?"', number)
    async with in_process(app) as http:
        response = await http.post(ROUTE, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("temperature", None)


async def test_base64_with_line_breaks(app, cluster):
    """Many encoders break lines; that changes nothing."""
    part = spoken()
    part["input_audio"]["data"] = base64.encodebytes(question()).decode()
    async with in_process(app) as http:
        response = await http.post(ROUTE, json={"model": "fake", "messages": [user(part)]})
    assert response.status_code == 200
    assert cluster.requests[0].messages[0].pcm16 == wav.to_pcm16(tone())


async def test_harmless_fields_are_taken(client):
    """What changes nothing, or asks for nothing, is no reason to refuse."""
    fields = {"user": "me", "store": False, "presence_penalty": 0, "tools": [], "n": 1, "metadata": {"a": "b"}}
    reply = await ask(client, **fields)
    assert reply.choices[0].finish_reason == "stop"


async def test_busy_is_retried_by_the_client(app, cluster):
    """503 with Retry-After is what makes OpenAI's client try again by itself."""
    cluster.error = errors.Busy("No slot.", retry_after=0.01)

    async with over_tcp(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client, **SPOKEN)
    assert caught.value.status_code == 503 and caught.value.code == "busy"
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("options", [SPOKEN, STREAMED], ids=["whole", "streamed"])
async def test_worker_lost_at_the_first_token(client, cluster, options):
    cluster.error = lost_worker()
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(client, **options)
    assert caught.value.status_code == 502 and caught.value.code == "worker_lost"


async def test_worker_lost_in_the_middle_of_a_stream(client, cluster):
    """OpenAI's client raises the stream's last event."""
    cluster.error, cluster.error_at = lost_worker(), 5
    stream = await ask(client, **STREAMED)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == "worker_lost"


async def test_models(client):
    """The model is listed and found by its name; another one is not."""
    assert [each.id async for each in client.models.list()] == ["fake"]
    assert (await client.models.retrieve("fake")).owned_by == "omni"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-4o")


async def test_key(tmp_path, cluster):
    """With a key set, OpenAI's client must have it; a wrong one is its AuthenticationError."""
    app = make_app(config(tmp_path), cluster, api_key="right-key")
    async with over_tcp(app) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="right-key") as client:
            assert (await ask(client)).choices
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong-key") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await ask(client)
    assert caught.value.code == "invalid_api_key" and "right-key" not in str(caught.value)


async def test_raw_stream_ends_as_the_protocol_says(app):
    """data: lines of JSON, and [DONE] last."""
    async with in_process(app) as http:
        response = await http.post(ROUTE, json={"model": "fake", "messages": [user()], **STREAMED})
    assert response.headers["content-type"] == "text/event-stream"
    *events, last = response.text.strip().split("\n\n")
    assert last == "data: [DONE]"
    assert all(json.loads(each.removeprefix("data: "))["object"] == "chat.completion.chunk" for each in events)
