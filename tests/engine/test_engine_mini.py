"""The mini checkpoint as it is served: the engine gives what the reference path gives, streamed sound is the whole.

The tiny checkpoint's random weights say that the arithmetic is right; real weights, whose next tokens are often close
to each other and whose answers end by themselves, that nothing is lost where it matters.
"""

from collections import defaultdict

import numpy as np
import pytest

from bench import questions
from omni import checkpoints
from omni.audio.wav import to_pcm16
from omni.engine.engine import Engine, EngineConfig
from omni.model import checkpoint
from omni.model.omni import Omni
from omni.model.packaged import FetchError
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.serve.config import ServeConfig
from omni.vocoder import checkpoint as vocoder_checkpoint
from omni.vocoder.render import Vocoder, offline, render
from omni.vocoder.streaming import ChunkPlanner, ChunkReply
from tests.engine.conftest import Answer, reference

LIMITED = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module")
def found() -> checkpoints.Checkpoint:
    try:
        return checkpoints.resolve("mini")
    except FetchError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def mini(found) -> Omni:
    return checkpoint.load(found.model)


@pytest.fixture(scope="module")
def vocoder(found) -> Vocoder:
    return vocoder_checkpoint.load(found.vocoder)


def planner(vocoder: Vocoder) -> ChunkPlanner:
    """As a turn has it."""
    return ChunkPlanner.of(
        vocoder.config,
        first_chunk=ServeConfig.first_chunk,
        chunk=ServeConfig.chunk,
        growth=ServeConfig.chunk_growth,
    )


def test_engine_and_streamed_sound_equal_the_slow_paths(mini, vocoder):
    """Three spoken questions, the third while the others are being answered; chunks vocoded together as units come."""
    shortest = sorted(questions.recordings(), key=len)[:3]
    asked = {f"{i}": [Utterance("user", speech=samples)] for i, samples in enumerate(shortest)}
    engine, waiting = Engine(mini, EngineConfig(num_slots=3)), dict(asked)
    answers: dict[str, Answer] = defaultdict(Answer)
    planners = {turn: planner(vocoder) for turn in asked}
    pcm: dict[str, bytes] = defaultdict(bytes)
    num_chunks = 0
    while not all(each.done for each in planners.values()):
        while waiting and (len(waiting) > 1 or len(answers["0"].tokens) >= 2):
            turn = min(waiting)
            engine.add(turn, waiting.pop(turn), LIMITED)
        for output in engine.step():
            answers[output.turn_id].take(output)
            planners[output.turn_id].push(output.units)
            if output.finish:
                planners[output.turn_id].finish()
        chunks = {turn: chunk for turn, each in planners.items() if (chunk := each.next()) is not None}
        num_chunks += len(chunks)
        for turn, reply in zip(chunks, render(vocoder, list(chunks.values())) if chunks else [], strict=True):
            assert isinstance(reply, ChunkReply) and planners[turn].accept(reply)
            pcm[turn] += reply.pcm

    wanted = {turn: reference(mini, question, LIMITED) for turn, question in asked.items()}
    assert answers == wanted
    assert all(len(each.tokens) > 3 and len(each.units) > 20 for each in wanted.values())
    assert num_chunks > len(asked)
    for turn, each in wanted.items():
        whole = np.frombuffer(to_pcm16(offline(vocoder, each.units)), dtype="<i2").astype(int)
        streamed = np.frombuffer(pcm[turn], dtype="<i2").astype(int)
        assert len(streamed) == len(whole)
        assert np.abs(streamed - whole).max() <= 1
