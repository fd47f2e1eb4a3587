"""How soon the first sound is there, and how good it is, by Ω: the units one chunk brings (the paper's Table 4).

    rows = by_omega([listening for each question], OMEGAS)

Each answer is thought once, token by token, with the time at which every token's units were there. For each Ω the
chunk planner that serves decides the chunks. LLM ms: from the question's samples until the first chunk's units are
there; vocoder ms: rendering that chunk (its second rendering: a service is warm). Two look-ahead units and the
vocoder's context are waited for, so the joined sound is the whole answer's. Where it is, to one step of 16 bits, the
whole answer's quality is its own; where it is not, it is listened to again. One question at a time, no network. In a
dialogue the turns before are read anew, which a worker that holds its session's memory need not do.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from omni.audio.wav import from_pcm16, to_pcm16
from omni.model.prompt import Utterance
from omni.train import words
from omni.train.talker import Talker
from omni.vocoder.render import offline, render
from omni.vocoder.streaming import Chunk, ChunkPlanner, ChunkReply

OMEGAS = (10, 20, 40, 60, 80, 100, math.inf)  # inf: the whole answer at once
SAME_STEPS = 1  # of 16 bits

Listen = Callable[[np.ndarray], str]
Rate = Callable[[np.ndarray], float | None]


@dataclass(frozen=True)
class Timed:
    """One answer as it came: for every token the seconds since the question, and the units it added."""

    text: str
    seconds: tuple[float, ...]
    units: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Heard:
    """A sound, and what listeners make of it."""

    pcm: bytes
    word_errors: int
    mos: float | None


@dataclass(frozen=True)
class First:
    """One answer at one Ω."""

    omega: float
    llm_seconds: float
    vocoder_seconds: float
    sound_seconds: float
    num_words: int
    difference: int  # from the whole answer's samples, in steps of 16 bits, at most
    heard: Heard


def think(talker: Talker, asked: Sequence[Utterance]) -> Timed:
    """A conversation that ends with a question → the answer with its times."""
    start = time.perf_counter()
    token_ids, seconds, units = [], [], []
    for token_id, new in talker.stream(asked):
        token_ids.append(token_id)
        units.append(tuple(new))
        seconds.append(time.perf_counter() - start)
    text = talker.omni.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str), "one list of ids gives one text"
    return Timed(text.strip(), tuple(seconds), tuple(units))


def speak(vocoder, answer: Timed, omega: float) -> tuple[float, float, bytes]:
    """Until the first chunk's units were there, what rendering it took (seconds), and the whole sound's PCM."""
    planner = ChunkPlanner.of(vocoder.config, first_chunk=omega, chunk=omega, growth=1.0)
    llm = vocoding = 0.0
    pcm = b""
    for i, units in enumerate(answer.units):
        planner.push(units)
        if i + 1 == len(answer.units):
            planner.finish()
        while (chunk := planner.next()) is not None:
            reply = _render(vocoder, chunk)
            if not pcm and reply.pcm:
                start = time.perf_counter()
                _render(vocoder, chunk)
                llm, vocoding = answer.seconds[i], time.perf_counter() - start
            assert planner.accept(reply), "no other chunk is in flight"
            pcm += reply.pcm
    assert planner.done
    return llm, vocoding, pcm


def _render(vocoder, chunk: Chunk) -> ChunkReply:
    (reply,) = render(vocoder, [chunk])
    if not isinstance(reply, ChunkReply):
        raise reply
    return reply


def measure(
    talker: Talker, asked: Sequence[Utterance], listen: Listen, rate: Rate | None, omegas: Sequence[float] = OMEGAS
) -> list[First]:
    """One question at every Ω; nothing where the answer has no sound."""
    answer = think(talker, asked)
    units = [unit for some in answer.units for unit in some]
    if not units:
        return []
    meant = words.words(answer.text)

    def hear(pcm: bytes) -> Heard:
        sound = from_pcm16(pcm)
        return Heard(pcm, words.errors(words.words(listen(sound)), meant), rate(sound) if rate else None)

    whole = hear(to_pcm16(offline(talker.vocoder, units)))
    found = []
    for omega in omegas:
        llm, vocoding, pcm = speak(talker.vocoder, answer, omega)
        apart = difference(pcm, whole.pcm)
        heard = whole if apart <= SAME_STEPS else hear(pcm)
        found.append(First(omega, llm, vocoding, len(pcm) / 32_000, len(meant), apart, heard))
    return found


def difference(ours: bytes, theirs: bytes) -> int:
    """The farthest two samples are apart; 65536 where the lengths differ."""
    if len(ours) != len(theirs):
        return 65_536
    a, b = (np.frombuffer(each, "<i2").astype(np.int32) for each in (ours, theirs))
    return int(np.abs(a - b).max()) if len(a) else 0


def by_omega(answers: Iterable[Sequence[First]]) -> list[dict]:
    """Means over the answers, a row for each Ω; null for what was not measured."""
    columns: dict[float, list[First]] = {}
    for each in (first for answer in answers for first in answer):
        columns.setdefault(each.omega, []).append(each)
    return [_row(omega, firsts) for omega, firsts in sorted(columns.items())]


def _row(omega: float, firsts: Sequence[First]) -> dict:
    llm = 1000 * float(np.mean([each.llm_seconds for each in firsts]))
    vocoder = 1000 * float(np.mean([each.vocoder_seconds for each in firsts]))
    rated = [each.heard.mos for each in firsts if each.heard.mos is not None]
    num_words, seconds = sum(each.num_words for each in firsts), sum(each.sound_seconds for each in firsts)
    return {
        "omega": "offline" if math.isinf(omega) else int(omega),
        "answers": len(firsts),
        "llm_ms": llm,
        "vocoder_ms": vocoder,
        "total_ms": llm + vocoder,
        "total_ms_median": 1000 * float(np.median([each.llm_seconds + each.vocoder_seconds for each in firsts])),
        "asr_wer": sum(each.heard.word_errors for each in firsts) / num_words if num_words else None,
        "mos": float(np.mean(rated)) if rated else None,
        "words_per_second": num_words / seconds if seconds else None,
        "same_as_offline": sum(each.difference <= SAME_STEPS for each in firsts) / len(firsts),
    }
