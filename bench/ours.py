"""The engine and the vocoder in one process, one question at a time: omni without its network.

    ours = Ours(omni, vocoder, EngineConfig(num_slots=1))
    for piece in ours.answer(samples, limit=64): ...

The chunks are those of the cluster: the same planner with the same defaults. What the cluster does in two processes at
once is done here one after the other.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bench.pieces import Piece
from bench.traces import Trace
from omni.engine.engine import Engine, EngineConfig
from omni.engine.sequence import Output
from omni.model.omni import Omni
from omni.model.prompt import Utterance
from omni.model.sampling import Sampling
from omni.serve import chunks
from omni.vocoder.durations import UnitVocoder
from omni.vocoder.render import render
from omni.vocoder.streaming import ChunkPlanner, ChunkReply, seconds_per_unit


class Ours:
    def __init__(self, omni: Omni, vocoder: UnitVocoder, config: EngineConfig) -> None:
        config = replace(config, seconds_per_unit=seconds_per_unit(vocoder.config))
        self.engine, self.vocoder = Engine(omni, config), vocoder
        self.render = render
        self.num_asked = 0

    def answer(self, samples: np.ndarray, limit: int, trace: Trace | None = None) -> Iterator[Piece]:
        """Leaving the loop early frees the slot."""
        self.num_asked += 1
        turn, planner, num_tokens = f"turn {self.num_asked}", chunks.planner(self.vocoder.config), 0
        self.engine.add(turn, [Utterance("user", speech=samples)], Sampling(max_new_tokens=limit))
        finish = None
        try:
            while finish is None:
                for output in self.engine.step():
                    if output.error is not None:
                        raise output.error
                    units, finish = _units(output, num_tokens, trace), output.finish
                    num_tokens += len(output.token_ids)
                    planner.push(units)
                    if finish:
                        planner.finish()
                    yield Piece(output.token_ids, output.text, units, self._vocode(planner), finish)
        finally:
            self.engine.abort(turn)
            self.engine.step()  # the step that frees the slot

    def _vocode(self, planner: ChunkPlanner) -> bytes:
        pcm = b""
        while (chunk := planner.next()) is not None:
            (reply,) = self.render(self.vocoder, [chunk])
            if not isinstance(reply, ChunkReply):
                raise reply
            planner.accept(reply)
            pcm += reply.pcm
        return pcm


def _units(output: Output, first_token: int, trace: Trace | None) -> tuple[int, ...]:
    """The trace's instead of the engine's, where there is one."""
    if trace is None:
        return output.units
    tokens = range(first_token, first_token + len(output.token_ids))
    return tuple(unit for i in tokens for unit in trace.units[i])
