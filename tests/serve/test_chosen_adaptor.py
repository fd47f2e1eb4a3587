"""A session is heard by the adaptor it chose: over every route, at every worker, and after it was resumed elsewhere."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

import openai
import pytest
from fake_cluster import FakeCluster, config, in_process, over_tcp, question, sound, tone, until
from realtime_client import talk
from talking import PUSH_TO_TALK, ask

from omni import checkpoints
from omni.audio import wav
from omni.model import checkpoint
from omni.model import sampling as model_sampling
from omni.model.prompt import Utterance
from omni.serve import errors, status
from omni.serve.answer import Here
from omni.serve.config import ConfigError, ServeConfig
from omni.serve.controller import make_app
from omni.serve.model_worker import ModelWorker
from omni.serve.protocol import Done, Failed, Message, ReadRequest, Sampling, Tokens, TurnRequest
from omni.serve.realtime_client import Answered, RealtimeError, connect_realtime
from omni.serve.realtime_settings import Settings
from omni.serve.sessions import Sessions
from omni.serve.sqlite_store import SqliteStore
from omni.serve.stores import Change, MemoryStore
from omni.serve.turn import Turn
from omni.vocoder.streaming import Chunk, ChunkReply
from tests.model import further_adaptor

NAMES = ["law", "medical"]
LISTED = "There is no adaptor 'lwa' here. Select one of law, medical, or none"


@pytest.fixture
def settings(tmp_path: Path) -> ServeConfig:
    """A controller needs only their folders."""
    for name in NAMES:
        (tmp_path / "adaptors" / name).mkdir(parents=True)
    return config(tmp_path)


@pytest.fixture
def app(settings, cluster):
    return make_app(settings, cluster)


# --- what is offered, and over HTTP -----------------------------------------------------------------------------------


async def test_what_there_is_is_told(app):
    async with in_process(app) as http:
        (model,) = (await http.get("/v1/models")).json()["data"]
        assert model["adaptors"] == (await http.get("/v1/models/fake")).json()["adaptors"] == NAMES
        state = (await http.get("/v1/cluster")).json()
    assert state["controller"]["adaptors"] == NAMES
    assert "model fake with law, medical · 0 of" in status.table(state)


async def test_a_checkpoint_without_any_says_so(tmp_path, cluster):
    async with in_process(make_app(config(tmp_path), cluster)) as http:
        assert (await http.get("/v1/models")).json()["data"][0]["adaptors"] == []
        state = (await http.get("/v1/cluster")).json()
        refused = await http.post("/v1/turns", content=question(), params={"adaptor": "law"})
    assert "model fake · 0 of" in status.table(state)
    assert refused.status_code == 404 and "Select none" in refused.json()["error"]["message"]


def test_a_folder_that_cannot_be_served_stops_the_controller(tmp_path, cluster):
    (tmp_path / "adaptors" / "Law").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"Law: an adaptor's name"):
        make_app(config(tmp_path), cluster)


@pytest.mark.parametrize("named", ["law", "", None])
async def test_a_question_says_who_hears_it(app, cluster, named):
    async with in_process(app) as http:
        asked = {} if named is None else {"adaptor": named}
        assert (await http.post("/v1/turns", content=question(), params=asked)).status_code == 200
    async with over_tcp(app) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        spoken = {"data": base64.b64encode(question()).decode(), "format": "wav"}
        messages = [{"role": "user", "content": [{"type": "input_audio", "input_audio": spoken}]}]
        await client.chat.completions.create(model="fake", messages=messages, extra_body=asked)
    assert [each.adaptor for each in cluster.requests] == [named or ""] * 2


async def test_an_unknown_one_is_refused_before_anybody_works(app, cluster):
    """Before the question was even read: with a code, the field, and the names there are."""
    async with in_process(app) as http:
        chat = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "adaptor": "lwa"}
        for refused in (
            await http.post("/v1/turns", content=question(), params={"adaptor": "lwa"}),
            await http.post("/v1/chat/completions", json=chat),
        ):
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["param"]) == (404, "adaptor_not_found", "adaptor")
            assert error["message"].startswith(LISTED)
    assert cluster.requests == []


# --- live conversations -----------------------------------------------------------------------------------------------


async def test_a_session_keeps_its_adaptor(app, cluster):
    """Its questions, and what is read ahead for them; the session shows it, and what else there is."""
    async with over_tcp(app) as url, talk(url) as client:
        created = client.heard[0]["session"]["omni"]
        assert (created["adaptor"], created["adaptors"]) == (None, NAMES)
        shown = await client.update(**PUSH_TO_TALK, omni={"adaptor": "law"})
        assert shown["omni"]["adaptor"] == "law"
        await ask(client)
        for number, name in enumerate(("law", None), 1):
            await client.update(omni={"adaptor": name})
            await client.append(wav.to_pcm16(tone()))
            await until(lambda number=number: len(cluster.readings) == number)
            await client.send("input_audio_buffer.commit")
            await client.send("response.create")
            await client.until("response.done")
    assert [each.adaptor for each in cluster.requests] == ["law", "law", ""]
    assert [each.adaptor for each in cluster.readings] == ["law", ""]


async def test_an_unknown_one_changes_nothing_in_a_session(app, cluster):
    async with over_tcp(app) as url, talk(url) as client:
        await client.update(**PUSH_TO_TALK, omni={"adaptor": "law"})
        wrong = {"type": "realtime", "instructions": "Be brief.", "omni": {"adaptor": "lwa"}}
        await client.send("session.update", session=wrong)
        error = (await client.until("error"))["error"]
        assert (error["code"], error["param"]) == ("adaptor_not_found", "session.omni.adaptor")
        assert error["message"].startswith(LISTED)
        shown = await client.update()
        assert (shown["omni"]["adaptor"], shown["instructions"]) == ("law", "")


async def test_a_session_resumed_at_another_controller_is_heard_by_the_same_one(tmp_path, settings, cluster):
    """The store keeps it: another controller, another worker, nothing said again by the client."""
    elsewhere, kept = FakeCluster(), tmp_path / "kept.db"
    first = make_app(settings, cluster, store=SqliteStore(kept, 9, 10**7))
    async with over_tcp(first) as url, talk(url) as client:
        token = client.token
        await client.update(**PUSH_TO_TALK, omni={"adaptor": "medical"})
        await ask(client)
    second = make_app(settings, elsewhere, store=SqliteStore(kept, 9, 10**7))
    async with over_tcp(second) as url, talk(url) as client:
        await client.send("omni.session.resume", session_id=token["session_id"], token=token["token"])
        assert (await client.until("session.updated"))["session"]["omni"]["adaptor"] == "medical"
        await client.until("omni.session.token")
        await ask(client)
    assert [each.adaptor for each in (*cluster.requests, *elsewhere.requests)] == ["medical", "medical"]
    assert elsewhere.requests[0].messages[0] == cluster.requests[0].messages[0]


async def test_a_session_kept_before_there_were_adaptors_is_resumed(settings, cluster):
    """Its settings lack the field: the checkpoint's own hears, and the other settings are what they were."""
    store = MemoryStore(9, 10**7)
    session, token = await Sessions(settings, store).open()
    kept = json.loads(Settings(instructions="Be brief.").model_dump_json())
    del kept["omni"]["adaptor"]
    head = {"format": 1, "model": "fake", "worker": "", "settings": kept, "order": []}
    assert await store.write(session.id, session.owner, Change(json.dumps(head).encode()), 60)
    async with over_tcp(make_app(settings, cluster, store=store)) as url, talk(url) as client:
        await client.send("omni.session.resume", session_id=session.id, token=token)
        shown = (await client.until("session.updated"))["session"]
    assert (shown["instructions"], shown["omni"]["adaptor"]) == ("Be brief.", None)


@pytest.mark.parametrize("kind", [TurnRequest, ReadRequest])
def test_a_request_of_a_controller_that_knows_no_adaptors_is_read(kind):
    """What Ray carries is pickled: its fields, without the one that its sender did not have."""
    made = TurnRequest("t", 0, ()) if kind is TurnRequest else ReadRequest("t", ())
    old = kind.__new__(kind)
    old.__dict__.update({name: value for name, value in vars(made).items() if name != "adaptor"})
    assert old.adaptor == "" and asdict(old)["adaptor"] == "" and old == made


async def test_our_client_chooses_one(app, cluster):
    async with over_tcp(app) as url:
        async with connect_realtime(url, adaptor="law", settings={"omni": {"top_k": 5}}) as session:
            await session.ask(wav.to_pcm16(tone()))
            async with aclosing(session.events()) as events:
                async for event in events:
                    if isinstance(event, Answered):
                        break
        with pytest.raises(RealtimeError, match=LISTED):
            async with connect_realtime(url, adaptor="lwa"):
                pass
    (request,) = cluster.requests
    assert (request.adaptor, request.sampling.top_k) == ("law", 5)


# --- real workers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> ServeConfig:
    """The tiny checkpoint, with two further adaptors, and its voice."""
    directory = tmp_path_factory.mktemp("real")
    tiny = checkpoints.resolve("tiny")
    for path in tiny.model.iterdir():
        (directory / path.name).symlink_to(path)
    for seed, name in enumerate(NAMES):
        further_adaptor.put(directory, name, seed)
    return ServeConfig("several", str(directory), str(tiny.vocoder), slots=2, max_new_tokens=64, model_dtype="float32")


class RealWorkers:
    """Two workers of their own; the first is lost when it has given this many tokens. What is said sounds as a fake."""

    def __init__(self, workers: list[ModelWorker], lost_after: int | None) -> None:
        self.workers, self.lost_after = workers, lost_after
        self.asked: list[TurnRequest] = []

    async def generate(self, request: TurnRequest) -> AsyncIterator[Tokens]:
        worker = self.workers[len(self.asked)]
        self.asked.append(request)
        given = 0
        async with aclosing(worker.generate(request)) as stream:
            async for message in stream:
                yield message
                given += len(message.token_ids)
                if worker is self.workers[0] and self.lost_after is not None and given >= self.lost_after:
                    raise errors.WorkerLost("The worker died.")

    async def vocode(self, turn_id: str, epoch: int, chunk: Chunk) -> ChunkReply:
        durations = (1,) * len(chunk.units)
        certain = chunk.units[chunk.skip_frames : chunk.certain_frames(durations)]
        return ChunkReply(chunk.number, sound(certain), durations)

    def suspect(self, kind: str, turn_id: str) -> bool:
        return False


async def answer(cluster: RealWorkers, real: ServeConfig, adaptor: str) -> tuple[Done, bytes]:
    pcm16 = wav.to_pcm16(wav.read(Path(__file__).parents[1] / "golden" / "audio" / "utt0.wav"))
    turn = Turn(cluster, real, [Message("user", pcm16=pcm16)], Sampling(max_new_tokens=24), adaptor=adaptor)
    events = [event async for event in turn.run()]
    assert isinstance(events[-1], Done), events[-1]
    return events[-1], b"".join(event.pcm16 for event in events if hasattr(event, "pcm16"))


async def test_another_worker_goes_on_with_the_same_adaptor(real):
    """Recovered = undisturbed, to the sample; and each adaptor gives another answer."""
    workers = [ModelWorker(real, f"w{i}") for i in range(2)]
    try:
        whole = {}
        for name in ("", *NAMES):
            undisturbed = await answer(RealWorkers(workers[1:], None), real, name)
            lossy = RealWorkers(workers, 5)
            recovered = await answer(lossy, real, name)
            assert (recovered[0].text, recovered[1]) == (undisturbed[0].text, undisturbed[1])
            assert [each.adaptor for each in lossy.asked] == [name] * 2
            assert len(lossy.asked[1].forced_tokens) >= 5
            whole[name] = undisturbed[0].text
        assert len(set(whole.values())) == 3
        assert real.adaptors == tuple(checkpoint.load(real.model).adaptors)
    finally:
        for worker in workers:
            worker.stop()


async def test_a_worker_whose_copy_lacks_it_says_which_it_has(real):
    """The controller's folder and a worker's differ: the turn ends with the error that the controller would give."""
    worker = ModelWorker(real, "w")
    try:
        request = TurnRequest("t", 0, (Message("user", text="Hi"),), adaptor="lwa")
        with pytest.raises(errors.UnknownAdaptor, match=LISTED):
            _ = [message async for message in worker.generate(request)]
        with pytest.raises(errors.UnknownAdaptor, match=LISTED):
            await worker.read(ReadRequest("r", (Message("user", text="Hi"),), adaptor="lwa"))
        assert worker.load()["running"] == worker.load()["waiting"] == 0
    finally:
        worker.stop()


def test_omni_answer_takes_one(real):
    """In this process, as the reference path hears it; a name that is not there is told with those that are."""
    options = dict.fromkeys(("system", "adaptor")) | {"max_new_tokens": 8}
    samples, omni = tone(), checkpoint.load(real.model)
    heard = wav.decode(wav.wav_bytes(wav.to_pcm16(samples)))
    with Here(real.model, real.vocoder) as here:
        for name in ("", "law"):
            *_, done = here.ask(wav.wav_bytes(wav.to_pcm16(samples)), options | {"adaptor": name})
            steps = omni.answer([Utterance("user", speech=heard)], model_sampling.Sampling(max_new_tokens=8), (), name)
            assert done.text == "".join(step.text for step in steps)
        (failed,) = here.ask(question(), options | {"adaptor": "lwa"})
    assert isinstance(failed, Failed) and failed.message.startswith(LISTED)
