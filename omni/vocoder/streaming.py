"""Which units go to the vocoder now, and with how much context. Decides only: knows no tensor, thread or wire.

    planner = ChunkPlanner.of(config, first_chunk=10, chunk=80)      # the vocoder's config.json
    planner.push(units)                    # as the unit decoder emits them
    if chunk := planner.next():            # None: wait for more units, or for the reply in flight
        reply = ...                        # any vocoder worker: a chunk says all there is to know
        planner.accept(reply)              # reply.pcm is the next piece of the answer
    planner.finish()                       # no more units; goes on until planner.done

One sample depends on `history_frames` before its own and `context_frames` after it, one duration on the units within
two of its own. So a chunk is cut at a frame, not at a unit:

    units     left context │ new                         │ last two: durations not final
    frames    ≥ history    │ certain: sent to the user   │ context │ unknown
              skip_frames ─┘                             └─ re-rendered as the next chunk's new part

The last chunk ends where the answer ends, and sends everything. Joined, the chunks are the offline waveform.
A vocoder with pulses of its own says at which phase a chunk's certain frames end; the next chunk brings that along.
A duration is decided once: later chunks carry it, so that rounding on another machine cannot shift the frame grid.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from omni.audio.wav import SAMPLE_RATE

DURATION_CONTEXT = 2  # units on each side that one duration depends on: two convolutions of width 3
SAMPLE_BYTES = 2  # int16
FRAMES_PER_UNIT = 1.5  # of the published units, about
SECONDS_PER_UNIT = FRAMES_PER_UNIT * 0.02  # whose frames last 20 ms
SOURCE_FILTER = "source_filter"  # "generator" in the config.json of vocoder/source_filter.py


class ChunkError(ValueError):
    """A chunk cannot be rendered, or a reply does not fit its chunk: another vocoder, or a broken one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Units to vocode, left and right context included. Stateless: the same chunk gives the same reply anywhere."""

    number: int
    units: tuple[int, ...]
    skip_frames: int  # frames of the chunk that the user already has
    first: bool  # units[0] is the answer's first unit
    final: bool  # units[-1] is the answer's last unit
    durations: tuple[int, ...] = ()  # in frames, of the leading units: decided earlier, binding
    context_frames: int = 0  # frames held back at an open right edge
    phase: float = 0.0  # of the vocoder's pulses where the new frames begin, in cycles

    def __post_init__(self) -> None:
        assert self.units, "a chunk holds at least one unit"
        assert len(self.durations) <= len(self.units), "more durations than units"
        assert self.first or len(self.durations) >= DURATION_CONTEXT, "an open left edge needs decided durations"

    @classmethod
    def whole(cls, units: Iterable[int]) -> "Chunk":
        """All units of an answer in one chunk: offline vocoding."""
        return cls(number=0, units=tuple(units), skip_frames=0, first=True, final=True)

    def certain_frames(self, durations: tuple[int, ...]) -> int:
        """Where the certain frames end, counted from the chunk's first frame."""
        if self.final:
            return sum(durations)
        return max(self.skip_frames, sum(durations[:-DURATION_CONTEXT]) - self.context_frames)


@dataclass(frozen=True, slots=True)
class ChunkReply:
    """What a vocoder makes of a chunk."""

    number: int
    pcm: bytes  # int16 LE, 16 kHz: the certain frames from skip_frames on
    durations: tuple[int, ...]  # in frames, of every unit of the chunk
    phase: float = 0.0  # of the pulses where the certain frames end


def samples_per_frame(config: Mapping[str, Any]) -> int:
    """Samples the vocoder makes of one frame: 320 in the published shape, 20 ms at 16 kHz."""
    if config.get("generator") == SOURCE_FILTER:
        return config["code_hop_size"]
    return math.prod(config["upsample_rates"])


def frames_per_unit(config: Mapping[str, Any]) -> float:
    """On average, from the vocoder's config; a published one does not say, and its units are the published ones."""
    return config.get("frames_per_unit", FRAMES_PER_UNIT)


def seconds_per_unit(config: Mapping[str, Any]) -> float:
    """How long a unit sounds on average: what an answer's sound is counted in before the vocoder has made it."""
    return frames_per_unit(config) * samples_per_frame(config) / SAMPLE_RATE


def context_frames(config: Mapping[str, Any]) -> int:
    """Later frames that the samples of one frame depend on; exact, from the vocoder's config."""
    return _reach(config)[1]


def history_frames(config: Mapping[str, Any]) -> int:
    """Earlier frames that the samples of one frame depend on; exact, from the vocoder's config."""
    return _reach(config)[0]


def _reach(config: Mapping[str, Any]) -> tuple[int, int]:
    if config.get("generator") == SOURCE_FILTER:
        return _source_filter_reach(config)
    both = _hifigan_reach(config)
    return both, both


def _source_filter_reach(config: Mapping[str, Any]) -> tuple[int, int]:
    """A frame's samples come from windows of four hops, two hops being a frame; windows from pulses and spectra."""
    first, last = -2, 1 + 2  # half frames whose windows reach into half frames 0 and 1
    pulses = first - 2 - 1, last + 1 + 1  # under those windows; between two half frames, the pitch is on a line
    spectra = (
        first - sum(a for a, _ in config["decoder"]["reach"]),
        last + sum(b for _, b in config["decoder"]["reach"]),
    )
    first, last = min(pulses[0], spectra[0]) // 2, max(pulses[1], spectra[1]) // 2  # in frames
    first -= sum(before for before, _ in config["prosody"]["reach"])
    last += sum(after for _, after in config["prosody"]["reach"])
    return -first, last


def _hifigan_reach(config: Mapping[str, Any]) -> int:
    """The interval of one frame's samples is traced back through every layer to the frames that can reach it."""
    first, last = 0, samples_per_frame(config) - 1
    first, last = first - 3, last + 3  # conv_post, width 7
    resblocks = max(
        sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)  # convs1 dilated, convs2 not
        for kernel, dilations in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
    )
    stages = list(zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True))
    for rate, kernel in reversed(stages):
        first, last = first - resblocks, last + resblocks
        padding = (kernel - rate) // 2  # transposed: output o hears inputs i with 0 <= o + padding - i * rate < kernel
        first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
    first, last = first - 3, last + 3  # conv_pre, width 7
    return max(-first, last)


class ChunkPlanner:
    """Decides one answer's chunks; at most one is in flight.

    A chunk is asked for once it should bring `first_chunk` units' worth of new frames; every later one wants `growth`
    times as much, up to `chunk` (the paper's Ω; math.inf waits for the end, which is offline vocoding). How many frames
    a unit lasts is learnt from the replies; `frames_per_unit` is the guess before the first.
    """

    GUESS_WEIGHT = 10  # units whose measured durations weigh as much as the guess

    def __init__(
        self,
        context_frames: int,
        history_frames: int | None = None,
        *,
        first_chunk: float = 10,
        chunk: float = 80,
        growth: float = 2.0,
        frames_per_unit: float = FRAMES_PER_UNIT,
        samples_per_frame: int = 320,
    ) -> None:
        if not 1 <= first_chunk <= chunk:
            raise ValueError(f"Chunks of {first_chunk} units growing to {chunk}: need 1 <= first_chunk <= chunk.")
        if growth < 1 or frames_per_unit < 1:
            raise ValueError(f"growth {growth} and frames_per_unit {frames_per_unit} must be at least 1.")
        self.context_frames = context_frames
        self.history_frames = context_frames if history_frames is None else history_frames
        self.in_flight: Chunk | None = None  # send it again if its reply is lost
        self.frames_sent = 0  # frames of the answer in accepted replies
        self._largest, self._growth, self._size = chunk, growth, first_chunk
        self._guess = frames_per_unit
        self._frame_bytes = samples_per_frame * SAMPLE_BYTES
        self._units: list[int] = []
        self._starts = [0]  # first frame of every unit with a decided duration, and the end of the last one
        self._in_flight_from = 0  # index of the in-flight chunk's first unit
        self._number = 0
        self._phase = 0.0
        self._finished = False
        self._done = False

    @classmethod
    def of(cls, config: Mapping[str, Any], *, first_chunk: float, chunk: float, growth: float) -> "ChunkPlanner":
        """The planner for a vocoder's config.json."""
        return cls(
            context_frames(config),
            history_frames(config),
            first_chunk=first_chunk,
            chunk=chunk,
            growth=growth,
            frames_per_unit=frames_per_unit(config),
            samples_per_frame=samples_per_frame(config),
        )

    @property
    def done(self) -> bool:
        """The whole answer has been vocoded (or had no units)."""
        return self._done

    @property
    def units_received(self) -> int:
        return len(self._units)

    def frames_of(self, num_units: int) -> int | None:
        """How long the answer's first units are; None while a duration among them is not decided."""
        return self._starts[num_units] if num_units < len(self._starts) else None

    def push(self, units: Iterable[int]) -> None:
        """The answer goes on with these units."""
        assert not self._finished, "units after finish()"
        self._units.extend(units)

    def finish(self) -> None:
        """No more units will come. An answer without any is done, without audio."""
        self._finished = True
        self._done = self._done or not self._units

    def next(self) -> Chunk | None:
        """The chunk to vocode now, or None: nothing worth a call yet, one in flight, or done."""
        if self.in_flight is not None or self._done:
            return None
        end = self._chunk_end()
        if end is None:
            return None
        self.in_flight = self._make_chunk(end)
        return self.in_flight

    def accept(self, reply: ChunkReply) -> bool:
        """Take the reply of the chunk in flight; False for any other, whose audio must not be played (again)."""
        chunk = self.in_flight
        if chunk is None or reply.number != chunk.number:
            return False
        self._check(chunk, reply)
        self.in_flight = None
        self._number += 1
        self.frames_sent += len(reply.pcm) // self._frame_bytes
        self._phase = reply.phase
        self._done = chunk.final
        self._decide(reply.durations if chunk.final else reply.durations[:-DURATION_CONTEXT])
        if reply.pcm:
            self._size = min(self._size * self._growth, self._largest)
        return True

    def _chunk_end(self) -> int | None:
        """How many of the answer's units the next chunk may see; None to wait."""
        num_decided, pace = len(self._starts) - 1, self._pace()
        wanted = self._size * pace  # frames
        undecided = len(self._units) - num_decided
        owed = self._starts[-1] + undecided * pace - self.frames_sent
        if self._finished and owed <= wanted + self.context_frames:
            return len(self._units)  # a chunk with look-ahead would render as much
        frames_to_decide = self.frames_sent + wanted + self.context_frames - self._starts[-1]
        units_to_decide = frames_to_decide / pace
        if units_to_decide + DURATION_CONTEXT > undecided:
            return len(self._units) if self._finished else None
        return num_decided + math.ceil(units_to_decide) + DURATION_CONTEXT

    def _pace(self) -> float:
        """Expected frames per unit."""
        return (self._guess * self.GUESS_WEIGHT + self._starts[-1]) / (self.GUESS_WEIGHT + len(self._starts) - 1)

    def _make_chunk(self, end: int) -> Chunk:
        num_decided = len(self._starts) - 1
        start = bisect_right(self._starts, self.frames_sent - self.history_frames) - 1
        start = max(0, min(start, num_decided - DURATION_CONTEXT))
        self._in_flight_from = start
        return Chunk(
            number=self._number,
            units=tuple(self._units[start:end]),
            skip_frames=self.frames_sent - self._starts[start],
            first=start == 0,
            final=self._finished and end == len(self._units),
            durations=tuple(b - a for a, b in zip(self._starts[start:], self._starts[start + 1 :], strict=False)),
            context_frames=self.context_frames,
            phase=self._phase,
        )

    def _check(self, chunk: Chunk, reply: ChunkReply) -> None:
        if len(reply.durations) != len(chunk.units) or min(reply.durations) < 1:
            raise ChunkError(f"Chunk {chunk.number}: {len(reply.durations)} durations for {len(chunk.units)} units.")
        if reply.durations[: len(chunk.durations)] != chunk.durations:
            raise ChunkError(f"Chunk {chunk.number}: the reply changes durations that were already decided.")
        expected = (chunk.certain_frames(reply.durations) - chunk.skip_frames) * self._frame_bytes
        if len(reply.pcm) != expected:
            raise ChunkError(f"Chunk {chunk.number}: {len(reply.pcm)} bytes of PCM, expected {expected}.")

    def _decide(self, durations: tuple[int, ...]) -> None:
        """Keep the durations of the in-flight chunk's units that are new and final."""
        new = durations[len(self._starts) - 1 - self._in_flight_from :]
        self._starts.extend(list(accumulate(new, initial=self._starts[-1]))[1:])
