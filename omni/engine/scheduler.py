"""What the next step does: who gets a slot, whose prompt is read on, which rows give a token. No torch, no clock.

    scheduler.add(sequence)
    plan = scheduler.schedule(now)      # Plan(places, encode, prefill=[Piece(sequence, start, stop)], decode)
    scheduler.emitted(sequence, num_units, now) ; scheduler.remove(sequence)
    scheduler.has_read(sequence)        # who reads ahead is done

It works by the listener's clock. A listener's buffer is the speech given out minus what was played since its first
audio; somebody who has not heard anything yet comes first. A newcomer's prompt is read in pieces beside the running
rows: small pieces while somebody runs dry, larger ones otherwise, never none. So is its speech encoded: an utterance
cannot be cut, but beside running rows there are only a few in a step. While anybody waits for first audio or runs dry,
those who are far ahead sit out; their buffers drain in real time, so that they never sit out for long.

Who reads ahead has not asked for anything yet: it takes a slot only where another one stays free, reads one small piece
a step, and none while somebody waits for first audio.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from omni.engine.prefixes import Place, Prefixes
from omni.engine.sequence import Sequence, Spoken, State
from omni.vocoder.streaming import SECONDS_PER_UNIT


@dataclass(frozen=True)
class SchedulerConfig:
    num_slots: int
    max_rows: int  # that give a token in one step
    prefill_alone: int = 512  # prompt positions in a step that nobody else shares
    prefill_beside: int = 128  # beside running rows
    prefill_dry: int = 32  # beside a row that runs dry
    prefill_ahead: int = (
        64  # of what nobody has asked for yet: a question that comes now waits no longer than this takes
    )
    worth_reading: int = 32  # positions; fewer are read with the question in hardly more time
    encode_alone: int = 300  # speech embeddings, of 0.1 s each, encoded in a step; one utterance whatever its length
    encode_beside: int = 100
    encode_dry: int = 1
    far_ahead: float = 3.0  # seconds of buffer from which a sequence may sit out
    run_dry: float = 0.5  # seconds of buffer below which it goes first
    seconds_per_unit: float = SECONDS_PER_UNIT  # on average; the checkpoint's vocoder knows
    first_chunk: int = 8  # units after which a listener can hear something


# A GPU reads 512 positions in about the time of three steps, and encodes 30 s in that of two (computed for an H200 and
# 8B, not measured): smaller pieces would read the weights more often for nothing.
GPU_BUDGETS = {
    "prefill_alone": 2048,
    "prefill_beside": 512,
    "prefill_dry": 128,
    "encode_alone": 1200,
    "encode_beside": 600,
    "encode_dry": 300,
}


@dataclass(frozen=True)
class Piece:
    """Positions start … stop - 1 of what a sequence has to prefill."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def slot(self) -> int:
        assert self.sequence.slot is not None, "who is prefilled has a slot"
        return self.sequence.slot

    @property
    def last(self) -> bool:
        return self.stop == self.sequence.num_to_prefill


@dataclass(frozen=True)
class Plan:
    places: list[Place] = field(default_factory=list)  # of those admitted now; to be copied first, in this order
    encode: list[tuple[Sequence, Spoken]] = field(default_factory=list)  # before anything is prefilled
    prefill: list[Piece] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.encode or self.prefill or self.decode)


class Scheduler:
    def __init__(self, config: SchedulerConfig) -> None:
        assert 1 <= config.max_rows <= config.num_slots, "max_rows is 1 … num_slots"
        assert min(config.prefill_alone, config.prefill_beside, config.prefill_dry) >= 1, "a piece is never empty"
        self.config = config
        self.waiting: deque[Sequence] = deque()
        self.admitted: list[Sequence] = []  # in order of arrival
        self.free = list(range(config.num_slots))  # the one free for longest first: it forgets first
        self.prefixes = Prefixes(config.num_slots)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.admitted

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, clean: bool = True) -> None:
        """Finished or aborted: its slot is free at once, and remembers what it holds. Not `clean`: it holds nothing."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self.admitted.remove(sequence)
            self.free.append(sequence.slot)
            self.prefixes.hold(sequence.slot, self._remembered(sequence) if clean else ())
            sequence.slot = None
        sequence.state = State.FINISHED

    def schedule(self, now: float) -> Plan:
        places = self._admit()
        decode = self._choose_rows(now)
        pace = self._pace(decode, now)
        encode = self._choose_speech(pace)
        return Plan(places, encode, self._cut_prefill(encode, pace), decode)

    def emitted(self, sequence: Sequence, num_units: int, now: float) -> None:
        """`num_units` more units were given out. The clock of a listener starts when there is something to hear."""
        sequence.num_units += num_units
        if sequence.playing_since is None and sequence.num_units >= self.config.first_chunk:
            sequence.playing_since = now

    def buffer(self, sequence: Sequence, now: float) -> float | None:
        """Seconds the listener has still to hear; None before there was anything."""
        if sequence.playing_since is None:
            return None
        told_at, played = sequence.played or (sequence.playing_since, 0.0)
        return sequence.num_units * self.config.seconds_per_unit - (played + now - told_at)

    def prefilled(self, piece: Piece) -> None:
        """The piece is in its slot: others with the same beginning may copy it from there."""
        sequence = piece.sequence
        assert sequence.slot is not None
        sequence.num_prefilled = piece.stop
        self.prefixes.hold(sequence.slot, sequence.keys[: piece.stop])
        if piece.last:
            sequence.state = State.RUNNING

    def has_read(self, sequence: Sequence) -> bool:
        """It read ahead to its end, or found so little to read that it is not worth a step."""
        if not sequence.reads_ahead or sequence.slot is None:
            return False
        missing = sequence.num_to_prefill - sequence.num_prefilled
        begun = sequence.num_prefilled > sequence.num_reused
        return not missing or (not begun and missing < self.config.worth_reading)

    def _next(self) -> Sequence | None:
        """Who gets a slot: those who ask come first, and who reads ahead leaves one free for them."""
        asks = next((each for each in self.waiting if not each.reads_ahead), None)
        if asks is not None:
            return asks if self.free else None
        leaves_one = len(self.free) > 1 or (self.free and not self.admitted)  # or the only slot, of an idle engine
        return self.waiting[0] if self.waiting and leaves_one else None

    def _admit(self) -> list[Place]:
        places = []
        while (sequence := self._next()) is not None:
            self.waiting.remove(sequence)
            place = self.prefixes.place(sequence.keys, self.free)
            places.append(place)
            self.free.remove(place.slot)
            sequence.slot = place.slot
            sequence.num_prefilled = sequence.num_reused = place.length
            sequence.state = State.PREFILL
            self.admitted.append(sequence)
        return places

    def _remembered(self, sequence: Sequence) -> list[Hashable]:
        """The prompt as far as it was read, and the tokens that were fed: all but the last."""
        if sequence.state is State.PREFILL:
            return sequence.keys[: sequence.num_prefilled]
        return sequence.keys + list(sequence.tokens[:-1])

    def _choose_rows(self, now: float) -> list[Sequence]:
        """Running rows by urgency: no audio yet, then the smallest buffer; who is far ahead yields to who is not."""
        running = [each for each in self.admitted if each.state is State.RUNNING]
        buffers = {id(each): self.buffer(each, now) for each in running}

        def urgency(each: Sequence) -> float:
            buffered = buffers[id(each)]
            return float("-inf") if buffered is None else buffered

        newcomers = any(not each.reads_ahead for each in self._readers())
        hurry = newcomers or any(urgency(each) < self.config.run_dry for each in running)
        if hurry:
            running = [each for each in running if urgency(each) <= self.config.far_ahead]
        return sorted(running, key=urgency)[: self.config.max_rows]  # a stable sort: first come, first served

    def _readers(self) -> list[Sequence]:
        """Those whose prompt is being read; of those who read ahead one, while nobody waits."""
        reading = [each for each in self.admitted if each.state is State.PREFILL and not self.has_read(each)]
        return [each for each in reading if not each.reads_ahead] or reading[:1]

    def _pace(self, decode: list[Sequence], now: float) -> str:
        """How much of a newcomer's prompt fits into this step: nobody waits for it, somebody does, or runs dry."""
        buffers = [buffered for each in decode if (buffered := self.buffer(each, now)) is not None]
        if buffers and min(buffers) < self.config.run_dry:
            return "dry"
        return "beside" if decode else "alone"

    def _choose_speech(self, pace: str) -> list[tuple[Sequence, Spoken]]:
        """Utterances in order of arrival, as many as fit; the first one always."""
        budget = {
            "alone": self.config.encode_alone,
            "beside": self.config.encode_beside,
            "dry": self.config.encode_dry,
        }[pace]
        chosen: list[tuple[Sequence, Spoken]] = []
        for sequence in self._readers():
            for spoken in sequence.unheard:
                if chosen and spoken.length > budget:
                    return chosen
                chosen.append((sequence, spoken))
                budget -= spoken.length
        return chosen

    def _cut_prefill(self, encode: list[tuple[Sequence, Spoken]], pace: str) -> list[Piece]:
        """Pieces of the prompts whose speech is encoded, in this step at the latest."""
        budget = {
            "alone": self.config.prefill_alone,
            "beside": self.config.prefill_beside,
            "dry": self.config.prefill_dry,
        }[pace]
        encoded = {(id(sequence), spoken.key) for sequence, spoken in encode}
        pieces = []
        for sequence in self._readers():
            if budget <= 0:
                break
            if any((id(sequence), each.key) not in encoded for each in sequence.unheard):
                continue
            most = min(budget, self.config.prefill_ahead) if sequence.reads_ahead else budget
            stop = min(sequence.num_prefilled + most, sequence.num_to_prefill)
            pieces.append(Piece(sequence, sequence.num_prefilled, stop))
            budget -= stop - sequence.num_prefilled
        return pieces
