"""A turn keeps its promises whatever its workers do. The workers are scripted, the clock jumps, Ray is not needed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_cluster import UNITS_PER_TOKEN, WORDS, config, sound, units_of, whole_answer
from jumping_clock import run

from omni.serve import errors
from omni.serve.config import ServeConfig
from omni.serve.protocol import AudioDelta, Done, Event, Failed, Message, Sampling, TextDelta, Tokens, TurnRequest
from omni.serve.turn import HOLD_SECONDS, Turn
from omni.vocoder.streaming import Chunk, ChunkReply

STEP = 0.02  # seconds a token takes
Worker = Callable[[TurnRequest], AsyncIterator[Tokens]]
Vocoder = Callable[[Chunk], "asyncio.Future[ChunkReply]"]


class ScriptedCluster:
    """Each attempt at the answer goes to the next worker, each chunk to the next vocoder; the last ones stay."""

    def __init__(self, workers: list[Worker], vocoders: list | None = None) -> None:
        self.workers, self.vocoders = list(workers), list(vocoders or [vocode])
        self.requests: list[TurnRequest] = []
        self.chunks: list[Chunk] = []
        self.suspected: list[str] = []
        self.open = 0  # streams and calls that have not been given back
        self.taken = True

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        self.requests.append(request)
        worker = self.workers.pop(0) if len(self.workers) > 1 else self.workers[0]
        self.open += 1
        try:
            async for message in worker(request):
                yield message
        finally:
            self.open -= 1

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        self.chunks.append(chunk)
        vocoder = self.vocoders.pop(0) if len(self.vocoders) > 1 else self.vocoders[0]
        self.open += 1
        try:
            return await vocoder(chunk)
        finally:
            self.open -= 1

    def suspect(self, kind: str, turn_id: str) -> bool:
        self.suspected.append(kind)
        return self.taken

    async def describe(self) -> dict:
        return {}

    def ready(self) -> bool:
        return True


async def answer(request: TurnRequest) -> AsyncIterator[Tokens]:
    """A worker without fault: goes on after the forced tokens."""
    yield Tokens(request.epoch, 0, (), "", ())
    skip = request.received_units
    for number, i in enumerate(range(len(WORDS))):
        await asyncio.sleep(STEP)
        units = units_of(i)
        units, skip = units[min(skip, len(units)) :], max(0, skip - len(units))
        forced = i < len(request.forced_tokens)
        tokens, text = ((), "") if forced else ((i,), WORDS[i])
        yield Tokens(request.epoch, number + 1, tokens, text, units, "stop" if i + 1 == len(WORDS) else None)


def until(k: int, then: Exception | None) -> Worker:
    """Sends k tokens; then dies, or hangs where no error is given."""

    async def worker(request: TurnRequest) -> AsyncIterator[Tokens]:
        async for message in answer(request):
            if len(request.forced_tokens) + message.number > k:
                break
            yield message
        if then is not None:
            raise then
        await asyncio.Event().wait()

    return worker


def sending(change: Callable[[Tokens], list[Tokens]]) -> Worker:
    async def worker(request: TurnRequest) -> AsyncIterator[Tokens]:
        async for message in answer(request):
            for each in change(message):
                yield each

    return worker


def alive_without_progress(waiting: bool) -> Worker:
    async def worker(request: TurnRequest) -> AsyncIterator[Tokens]:
        for number in range(1_000):
            yield Tokens(request.epoch, number, (), "", (), waiting=waiting)
            await asyncio.sleep(0.5)

    return worker


async def vocode(chunk: Chunk) -> ChunkReply:
    await asyncio.sleep(STEP)
    durations = (1,) * len(chunk.units)
    return ChunkReply(chunk.number, sound(chunk.units[chunk.skip_frames : chunk.certain_frames(durations)]), durations)


async def vocoder_dies(chunk: Chunk) -> ChunkReply:
    raise errors.WorkerLost("The vocoder died.")


async def vocoder_hangs(chunk: Chunk) -> ChunkReply:
    return await asyncio.Event().wait()  # type: ignore[return-value]


async def vocoder_sends_half(chunk: Chunk) -> ChunkReply:
    reply = await vocode(chunk)
    return replace(reply, pcm=reply.pcm[: len(reply.pcm) // 2 // 640 * 640])


class Heard:
    """What a listener got, and when it ended."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.pcm = b""
        self.text = ""
        self.gaps: list[float] = []
        self.seconds = 0.0

    @property
    def end(self) -> Event:
        return self.events[-1]

    def add(self, event: Event, now: float) -> None:
        self.gaps.append(now - self.seconds)
        self.seconds = now
        self.events.append(event)
        if isinstance(event, TextDelta):
            self.text += event.text
        elif isinstance(event, AudioDelta):
            assert event.first_sample == len(self.pcm) // 2, "audio comes in order and without holes"
            self.pcm += event.pcm16


async def listen(turn: Turn) -> Heard:
    heard, clock = Heard(), asyncio.get_running_loop()
    async for event in turn.run():
        heard.add(event, clock.time())
    return heard


@pytest.fixture
def settings(tmp_path: Path) -> ServeConfig:
    return config(tmp_path, first_chunk=4, chunk=16)


def turn(cluster: ScriptedCluster, settings: ServeConfig, **more: object) -> Turn:
    return Turn(cluster, settings, [Message("user", pcm16=b"\0\0" * 1600)], Sampling(), **more)  # type: ignore[arg-type]


def hear(workers: list[Worker], settings: ServeConfig, vocoders: list | None = None) -> tuple[Heard, ScriptedCluster]:
    cluster = ScriptedCluster(workers, vocoders)
    heard = run(listen(turn(cluster, settings)))
    assert cluster.open == 0, "everything is given back"
    return heard, cluster


def assert_whole(heard: Heard) -> None:
    """Recovered = undisturbed."""
    text, pcm = whole_answer()
    assert isinstance(heard.end, Done), heard.end
    assert (heard.text, heard.pcm) == (text, pcm)
    assert (heard.end.text, heard.end.num_samples) == (text, len(pcm) // 2)
    assert heard.end.num_tokens == len(WORDS) and heard.end.num_units == UNITS_PER_TOKEN * len(WORDS)


def test_answer_is_whole(settings):
    """Text and audio come in order, and Done says how much there was."""
    heard, _ = hear([answer], settings)
    assert_whole(heard)
    assert heard.end.timings["first_text"] < heard.end.timings["first_audio"] < heard.end.timings["total"]


def test_audio_comes_while_tokens_still_arrive(settings):
    """The first chunk is vocoded long before the last token."""
    heard, _ = hear([answer], settings)
    kinds = [type(event) for event in heard.events]
    assert kinds.index(AudioDelta) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


@pytest.mark.parametrize("k", [0, 1, len(WORDS) // 2, len(WORDS) - 1])
@pytest.mark.parametrize("died", [errors.WorkerLost("gone"), None], ids=["dies", "hangs"])
def test_model_worker_lost_at_token_k(settings, k, died):
    """Another worker goes on with the tokens forced, and the listener hears what an undisturbed one would."""
    heard, cluster = hear([until(k, died), answer], settings)
    assert_whole(heard)
    first, second = cluster.requests
    assert (first.epoch, first.forced_tokens, first.received_units) == (0, (), 0)
    assert (second.epoch, second.forced_tokens, second.received_units) == (1, tuple(range(k)), k * UNITS_PER_TOKEN)
    assert cluster.suspected == ([] if died else ["model"])
    limit = len(WORDS) * 2 * STEP + 0.5 + (0.0 if died else settings.silence_deadline)
    assert heard.seconds < limit


def test_lost_in_one_answer_again_and_again(settings):
    """Each worker adds what it can, as long as attempts last."""
    heard, cluster = hear([until(3, errors.WorkerLost("1")), until(7, None), answer], settings)
    assert_whole(heard)
    assert [request.epoch for request in cluster.requests] == [0, 1, 2]


def test_workers_are_lost_until_attempts_are_spent(settings):
    """Then the stream ends with an error that says so and when to try again."""
    heard, cluster = hear([until(2, errors.WorkerLost("gone"))], settings)
    assert isinstance(heard.end, Failed)
    assert (heard.end.code, heard.end.status) == ("worker_lost", 502) and heard.end.retry_after
    assert len(cluster.requests) == settings.attempts


def test_poison_is_tried_once_elsewhere(settings):
    """A turn that breaks the worker's code breaks at most two workers, and fails alone."""
    heard, cluster = hear([until(2, errors.Internal("bug"))], settings)
    assert isinstance(heard.end, Failed) and heard.end.status == 500
    assert len(cluster.requests) == 2


def test_stream_that_ends_early_is_a_lost_worker(settings):
    async def ends(request):
        yield Tokens(request.epoch, 0, (0,), WORDS[0], units_of(0))

    heard, _ = hear([ends, answer], settings)
    assert_whole(heard)


def test_doubled_messages_are_dropped(settings):
    heard, cluster = hear([sending(lambda message: [message, message])], settings)
    assert_whole(heard)
    assert len(cluster.requests) == 1


def test_messages_of_an_old_epoch_are_dropped(settings):
    """Late output of a worker that was given up is fenced, not heard."""
    late = sending(lambda message: [replace(message, epoch=0, text="zombie", token_ids=(99,)), message])
    heard, _ = hear([until(2, None), late], settings)
    assert_whole(heard)


def test_missing_message_is_not_papered_over(settings):
    """A gap in the numbers means lost tokens: the rest is asked for again, elsewhere."""
    leaky = sending(lambda message: [] if message.number == 3 else [message])
    heard, cluster = hear([leaky, answer], settings)
    assert_whole(heard)
    assert cluster.requests[1].forced_tokens == (0, 1)


def test_unit_that_no_vocoder_knows_is_not_sent_on(settings):
    wrong = sending(lambda message: [replace(message, units=(5, 100_000))] if message.number == 4 else [message])
    heard, cluster = hear([wrong, answer], settings)
    assert_whole(heard)
    assert all(max(chunk.units) < 1000 for chunk in cluster.chunks)


def test_answer_without_units_is_done_without_audio(settings):
    silent = sending(lambda message: [replace(message, units=())])
    heard, cluster = hear([silent], settings)
    assert isinstance(heard.end, Done)
    assert (heard.pcm, heard.end.num_units, heard.end.num_samples, heard.text) == (b"", 0, 0, "".join(WORDS))
    assert cluster.chunks == []


def test_text_alone_needs_no_vocoder(settings):
    cluster = ScriptedCluster([answer], [vocoder_dies])
    heard = run(listen(turn(cluster, settings, audio=False)))
    assert isinstance(heard.end, Done) and heard.text == "".join(WORDS)
    assert cluster.chunks == []


@pytest.mark.parametrize("fault", [vocoder_dies, vocoder_hangs, vocoder_sends_half], ids=["dies", "hangs", "lies"])
def test_vocoder_fault_sends_the_same_chunk_elsewhere(settings, fault):
    """No token is generated twice for it, and no sample is lost or doubled."""
    heard, cluster = hear([answer], settings, [vocode, fault, vocode])
    assert_whole(heard)
    assert len(cluster.requests) == 1
    assert cluster.chunks[1] == cluster.chunks[2]


def test_vocoders_that_all_fail_end_the_turn(settings):
    heard, cluster = hear([answer], settings, [vocoder_dies])
    assert isinstance(heard.end, Failed) and heard.end.code == "worker_lost" and heard.end.retry_after
    assert len(cluster.chunks) == settings.attempts


def test_vocoders_that_all_hang_end_the_turn(settings):
    """At most two hold the chunk at once."""
    heard, cluster = hear([answer], settings, [vocoder_hangs])
    assert isinstance(heard.end, Failed) and heard.end.status == 503
    assert len(cluster.chunks) == 2
    assert heard.seconds < settings.vocoder_deadline + 1


def test_both_kinds_lost_at_once(settings):
    heard, _ = hear([until(5, errors.WorkerLost("gone")), answer], settings, [vocoder_dies, vocode])
    assert_whole(heard)


def test_queue_holds_until_its_deadline(settings):
    """Heartbeats from the queue keep the turn waiting, not for ever: 503, and when to come back."""
    heard, cluster = hear([alive_without_progress(waiting=True)], settings)
    assert isinstance(heard.end, Failed)
    assert (heard.end.code, heard.end.status) == ("busy", 503) and heard.end.retry_after
    assert heard.seconds == pytest.approx(settings.queue_deadline, abs=1.0)
    assert cluster.suspected == []


def test_no_worker_at_all(settings):
    """Silence is nobody's fault while nobody has taken the turn; the queue's deadline ends it."""
    cluster = ScriptedCluster([until(0, None)])
    cluster.taken = False
    heard = run(listen(turn(cluster, settings)))
    assert isinstance(heard.end, Failed) and heard.end.code == "busy"
    assert heard.seconds == pytest.approx(settings.queue_deadline, abs=settings.silence_deadline)


def test_full_worker_says_busy_at_once(settings):
    heard, _ = hear([until(0, errors.Busy("full", retry_after=1.0))], settings)
    assert isinstance(heard.end, Failed) and (heard.end.code, heard.end.retry_after) == ("busy", 1.0)
    assert heard.seconds < 0.1


def test_answer_that_was_begun_waits_for_a_slot_elsewhere(settings):
    """Busy after a loss is no reason to drop what the listener already hears."""
    full = until(0, errors.Busy("full"))
    heard, _ = hear([until(4, errors.WorkerLost("gone")), full, full, answer], settings)
    assert_whole(heard)


def test_alive_without_progress(settings):
    """A worker that only sends heartbeats is given up after the progress deadline."""
    heard, cluster = hear([alive_without_progress(waiting=False), answer], settings)
    assert_whole(heard)
    assert cluster.suspected == ["model"]
    assert settings.progress_deadline < heard.seconds < settings.progress_deadline + 2


def test_their_mistake_is_told_as_it_is(settings):
    heard, cluster = hear([until(0, errors.BadRequest("too long", code="context_too_long"))], settings)
    assert isinstance(heard.end, Failed) and (heard.end.code, heard.end.status) == ("context_too_long", 400)
    assert len(cluster.requests) == 1


def test_our_mistake_is_told_in_one_sentence(settings, caplog):
    """An exception that nobody foresaw ends the turn; the log has it whole, the client does not."""
    heard, _ = hear([until(1, KeyError("secret"))], settings)
    assert isinstance(heard.end, Failed) and heard.end.status == 500
    assert "secret" not in heard.end.message and "secret" in caplog.text


@pytest.mark.parametrize("number_of_events", [0, 1, 2, 5, 9])
def test_client_that_leaves(settings, number_of_events):
    """Everything is given back at once: stream, calls, tasks."""

    async def leave() -> None:
        cluster = ScriptedCluster([answer])
        events = turn(cluster, settings).run()
        for _ in range(number_of_events):
            await anext(events)
        start = asyncio.get_running_loop().time()
        await events.aclose()
        assert cluster.open == 0
        assert asyncio.get_running_loop().time() - start < STEP
        assert len(asyncio.all_tasks()) == 1

    run(leave())


def test_cancel_drops_what_is_queued(settings):
    """After cancel() nothing of the answer is delivered, though it may have been ready."""

    async def scenario() -> list[Event]:
        cluster = ScriptedCluster([answer])
        spoken = turn(cluster, settings)
        events = spoken.run()
        await anext(events)
        await asyncio.sleep(20 * STEP)  # more events wait in the outbox
        await spoken.cancel("The user spoke again.")
        assert cluster.open == 0 and spoken.ledger.epoch == 1
        return [event async for event in events]

    assert run(scenario()) == [Failed("cancelled", "The user spoke again.", 499)]


def test_cancel_before_the_turn_runs(settings):
    async def scenario() -> tuple[list[Event], ScriptedCluster]:
        cluster = ScriptedCluster([answer])
        spoken = turn(cluster, settings)
        await spoken.cancel()
        return [event async for event in spoken.run()], cluster

    events, cluster = run(scenario())
    assert [event.code for event in events] == ["cancelled"] and cluster.requests == []


def test_slow_client_holds_the_turn_up_and_not_in_memory(settings):
    """Events wait in a bounded outbox; a client that comes back finds all of them."""

    async def scenario() -> Heard:
        heard, clock = Heard(), asyncio.get_running_loop()
        async for event in turn(ScriptedCluster([answer]), settings).run():
            await asyncio.sleep(1.0)
            heard.add(event, clock.time())
        return heard

    assert_whole(run(scenario()))


def told(message: Tokens) -> list[Tokens]:
    """A worker that says where its tokens end; two of them in one message where they waited together."""
    return [replace(message, ends=tuple(ends_of(i) for i in message.token_ids))]


def ends_of(i: int) -> tuple[int, int]:
    """Units and characters of the answer up to the end of token i."""
    return (i + 1) * UNITS_PER_TOKEN, len("".join(WORDS[: i + 1]))


@pytest.mark.parametrize("workers", [[sending(told)], [answer]], ids=["told", "by message"])
def test_the_alignment_says_until_which_sample_each_token_sounds(settings, workers):
    """All of it in the end, but for the token that ends the answer."""

    async def scenario() -> Turn:
        spoken = turn(ScriptedCluster(workers), settings)
        await listen(spoken)
        return spoken

    found = run(scenario()).alignment()
    count = len(WORDS) - 1
    assert found.whole and found.token_ids == tuple(range(count))
    assert found.sample_ends == tuple((i + 1) * UNITS_PER_TOKEN * 320 for i in range(count))
    assert found.heard(3 * UNITS_PER_TOKEN * 320).text == "".join(WORDS[:3])
    assert found.num_samples == len(WORDS) * UNITS_PER_TOKEN * 320


def test_the_alignment_survives_a_lost_worker(settings):
    async def scenario() -> Turn:
        spoken = turn(ScriptedCluster([until(5, errors.WorkerLost("gone")), sending(told)]), settings)
        await listen(spoken)
        return spoken

    assert run(scenario()).alignment().char_ends == tuple(ends_of(i)[1] for i in range(len(WORDS) - 1))


def test_the_alignment_of_a_cancelled_answer_ends_with_what_was_sent(settings):
    async def scenario() -> tuple[Turn, int]:
        spoken, sent = turn(ScriptedCluster([answer]), settings), 0
        async for event in spoken.run():
            sent += len(event.pcm16) // 2 if isinstance(event, AudioDelta) else 0
            if sent > 2 * UNITS_PER_TOKEN * 320:
                await spoken.cancel()
                return spoken, sent
        raise AssertionError("no sound came")

    spoken, sent = run(scenario())
    found = spoken.alignment()
    assert not found.whole and found.num_samples == sent
    assert found.sample_ends and found.sample_ends[-1] <= sent < len(WORDS) * UNITS_PER_TOKEN * 320
    assert len(found.char_ends) == len(found.token_ids) > len(found.sample_ends)


def test_ends_that_do_not_fit_are_not_believed(settings):
    wrong = sending(lambda message: [replace(message, ends=((1, 1), (2, 2)))] if message.number == 2 else [message])
    heard, cluster = hear([wrong, answer], settings)
    assert_whole(heard)
    assert len(cluster.requests) == 2


# --- a listener who holds back ----------------------------------------------------------------------------------------


@pytest.fixture
def small_outbox(monkeypatch) -> None:
    monkeypatch.setattr("omni.serve.turn.OUTBOX_EVENTS", 4)


async def listen_but_pause(turn: Turn, cluster: ScriptedCluster, after: int, seconds: float) -> tuple[Heard, int]:
    """Takes `after` events, nothing for a while, and then the rest. Returns also how many streams were open then."""
    heard, clock, still_open = Heard(), asyncio.get_running_loop(), -1
    async for event in turn.run():
        heard.add(event, clock.time())
        if len(heard.events) == after:
            await asyncio.sleep(seconds)
            still_open = cluster.open
    return heard, still_open


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_listener_who_holds_back_gives_the_slot_back(settings, small_outbox, after):
    """No worker has work for a paused player; where it was left, the answer goes on: whole, and none of it twice."""
    cluster = ScriptedCluster([answer])
    heard, still_open = run(listen_but_pause(turn(cluster, settings), cluster, after, 2 * HOLD_SECONDS))
    assert_whole(heard)
    assert still_open == cluster.open == 0
    first, second = cluster.requests
    assert first.forced_tokens == () and 0 < len(second.forced_tokens) <= after + 4 + 1
    assert second.epoch == first.epoch + 1


def test_a_short_pause_costs_nothing(settings, small_outbox):
    """The stream waits, and goes on: nothing is asked for again."""
    cluster = ScriptedCluster([answer])
    heard, still_open = run(listen_but_pause(turn(cluster, settings), cluster, 2, HOLD_SECONDS / 2))
    assert_whole(heard)
    assert still_open == 1 and len(cluster.requests) == 1


def test_who_comes_back_waits_for_a_slot(settings, small_outbox):
    """The worker that was left may be full by then: the answer is begun, so it knocks again."""
    busy: list[TurnRequest] = []

    async def full(request: TurnRequest) -> AsyncIterator[Tokens]:
        busy.append(request)
        raise errors.Busy("Every slot is taken.")
        yield  # a generator

    cluster = ScriptedCluster([answer, full, full, answer])
    heard, _ = run(listen_but_pause(turn(cluster, settings), cluster, 2, 2 * HOLD_SECONDS))
    assert_whole(heard)
    assert len(busy) == 2 and cluster.open == 0


def test_a_paused_listener_may_leave(settings, small_outbox):
    """Held back, then gone: nothing is left, and nothing was asked for again."""

    async def leave() -> None:
        events = running.run()
        await anext(events)
        await asyncio.sleep(2 * HOLD_SECONDS)
        await events.aclose()

    cluster = ScriptedCluster([answer])
    running = turn(cluster, settings)
    run(leave())
    assert cluster.open == 0 and len(cluster.requests) == 1
